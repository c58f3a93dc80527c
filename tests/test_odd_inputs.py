"""Odd inputs are read as they are meant, or the user is warned."""

import warnings
from pathlib import Path

import pytest
from odd_inputs import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_odd_input_is_read_as_it_is_meant_or_warned_of(case: Case, tmp_path: Path) -> None:
    if case.warns:
        with pytest.warns(UserWarning, match=case.warns):
            found = case.use(tmp_path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = case.use(tmp_path)
    assert found == case.gives


def test_no_two_cases_have_the_same_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
