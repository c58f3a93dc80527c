"""The table of paper to code."""

from pathlib import Path

import pytest

from sslpath.paper_map import PLACES, locate, paper_map

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.where)
def test_each_line_holds_the_object_that_it_names(place):
    file, line = locate(place.where)
    text = (ROOT / file).read_text(encoding="utf-8").splitlines()
    name = place.where.split(":")[1].split(".")[-1]
    # A decorated object begins with its decorator.
    near = text[line - 1 : line + 2]
    assert any(f"def {name}(" in row or f"class {name}" in row for row in near)


def test_an_object_that_is_gone_is_an_error():
    with pytest.raises(AttributeError):
        locate("model:triplet_loss_of_yesterday")


def test_the_table_has_a_row_a_notion_and_four_columns():
    rows = paper_map().splitlines()
    assert len(rows) == len(PLACES) + 2
    assert {row.count(" | ") for row in rows} == {3}
