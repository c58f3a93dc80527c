"""Each bad input gives an error of our own that names the file and says what to do."""

import os
from pathlib import Path

import pytest
from bad_inputs import CASES, Case
from conftest import MPP, draw_tissue, write_lossless

from sslpath.slides import Slide
from sslpath.tiling import tile_slides


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_refused_with_a_clear_error(case: Case, tmp_path: Path) -> None:
    if "permission" in case.name and os.geteuid() == 0:
        pytest.skip("root may read every file")
    with pytest.raises(case.error, match=case.says) as caught:
        case.use(tmp_path)
    assert str(caught.value)[0].isupper() or str(tmp_path) in str(caught.value)


def test_no_two_cases_have_the_same_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_limit_of_places_can_be_raised(tmp_path: Path) -> None:
    slides = [Slide(write_lossless(tmp_path / "a.tif", [draw_tissue(600, 600)]))]
    how = {"mpp": MPP, "tile_px": 64, "progress": False}
    tiles, failures = tile_slides(slides, **how, max_places=50)
    assert tiles.empty
    assert "--max-places" in failures[0].error
    assert len(tile_slides(slides, **how, max_places=100)[0])
