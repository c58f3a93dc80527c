"""The timeline names works that the book cites; pairs are drawn as the graph that they are."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE
from sslpath.figures_since import THEMES, WORKS, Work, pair_graphs, timeline

BOOK = Path(__file__).resolve().parents[1] / "book"


def test_every_work_of_the_timeline_is_cited_in_the_chapter():
    cells = json.loads((BOOK / "10-since-2019.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells)
    cited = {key for keys in re.findall(r"\{cite:p\}`([^`]+)`", text) for key in keys.split(",")}
    assert {work.source for work in WORKS} <= cited


def test_the_year_of_a_work_is_that_of_its_source():
    wrong = [work for work in WORKS if str(work.year) not in work.source]
    assert not wrong


def test_themes_differ_in_marker_and_colour():
    assert len({marker for _, marker in THEMES.values()}) == len(THEMES)
    assert len({colour for colour, _ in THEMES.values()}) == len(THEMES)


def test_a_work_stands_within_its_year():
    theme = next(iter(THEMES))
    works = [Work(name, year, theme, "") for name, year in (("a", 2019), ("b", 2019), ("c", 2020))]
    [ax] = timeline(works).axes
    at = {text.get_text(): text.xy[0] for text in ax.texts}
    assert 2019 < at["a"] < at["b"] < 2020 < at["c"] < 2021


def test_names_on_the_timeline_do_not_overlap():
    figure = timeline()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    touching = [
        (WORKS[i].name, WORKS[j].name)
        for i, one in enumerate(boxes)
        for j, other in enumerate(boxes[:i])
        if one.overlaps(other)
    ]
    assert not touching


def test_unknown_themes_and_empty_timelines_are_refused():
    with pytest.raises(ConfigError, match="gossip"):
        timeline([Work("a", 2020, "gossip", "")])
    with pytest.raises(ConfigError, match="Give works"):
        timeline([])


def segments(ax, colour):
    return sum(
        len(one.get_segments())
        for one in ax.collections
        if hasattr(one, "get_segments") and to_hex(one.get_edgecolor()[0]) == colour.lower()
    )


def test_edges_between_two_kinds_are_told_from_those_within_one():
    xy = [[0, 0], [10, 0], [20, 0], [30, 0]]
    tissue = pd.array([1, 1, 0, pd.NA], dtype="Int8")
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 3]])  # same, two kinds, unknown, itself
    [ax] = pair_graphs(xy, tissue, [("near", edges)]).axes
    assert segments(ax, PALETTE["grey"]) == 2
    assert segments(ax, PALETTE["black"]) == 1


def test_own_views_join_nothing():
    itself = np.array([[0, 0], [1, 1]])
    figure = pair_graphs([[0, 0], [10, 0]], [1, 0], [("own", itself), ("near", itself[:, ::-1])])
    assert all(segments(ax, PALETTE[c]) == 0 for ax in figure.axes for c in ("grey", "black"))


def test_the_part_shown_is_where_the_kinds_meet():
    x = np.arange(0, 10_000, 100.0)
    xy = np.stack([x, np.zeros(100)], axis=1)
    edges = np.stack([np.arange(99), np.arange(1, 100)], axis=1)
    figure = pair_graphs(xy, (x > 7000).astype(int), [("near", edges)], side_um=1000)
    low, high = figure.axes[0].get_xlim()
    assert low < 7.05 < high
    assert high - low == pytest.approx(1.0)
