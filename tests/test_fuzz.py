"""A little of what ``benchmarks/fuzz.py`` does for minutes: mutated files and our readers."""

from pathlib import Path

import pytest
from fuzz import TARGETS, survives
from hypothesis import given
from hypothesis import strategies as st

# A place, counted from the start or the end, how much is taken out there, and what comes instead.
CHANGE = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12))


@pytest.mark.parametrize("name", TARGETS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole{TARGETS[name].ending}"
    TARGETS[name].whole(path)
    assert survives(TARGETS[name], path.read_bytes(), path)


@pytest.mark.parametrize("name", TARGETS)
@given(changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_a_mutated_file_gives_no_error_but_our_own(
    name: str, changes: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    path = tmp_path / f"input{TARGETS[name].ending}"
    TARGETS[name].whole(path)
    data = path.read_bytes()
    for place, out, instead in changes:
        at = int(place * len(data))
        data = data[:at] + instead + data[at + out :]
    survives(TARGETS[name], data, path)


def test_another_error_is_not_swallowed(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        survives(TARGETS["results"]._replace(read=read), b"", tmp_path / "a")
