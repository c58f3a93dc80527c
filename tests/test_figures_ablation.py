"""The chart of an ablation: verdicts by interval, repeats as a band, refusals."""

import pytest

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE
from sslpath.figures_ablation import LOOKS, ablation_chart, verdict
from sslpath.results import row


def rows_of(*differences, metric="knn_auc"):
    """The base line, and a difference to it for each (setting, value, low, high)."""
    rows = [row("base", metric, 0.8, 0.7, 0.9)]
    for name, value, low, high in differences:
        rows.append(row(f"{name} - base", metric, value, low, high, versus="base"))
    return rows


def dots(ax, marker):
    return [line.get_xdata()[0] for line in ax.lines if line.get_marker() == marker]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "undecided"),
     (0.0, 0.1, "undecided"), (-0.1, 0.0, "undecided"), (None, None, "undecided")],
)  # fmt: skip
def test_only_an_interval_that_leaves_out_zero_decides(low, high, said):
    assert verdict({"low": low, "high": high}) == said


def test_a_marker_and_a_colour_say_the_same():
    assert len({marker for _, marker in LOOKS.values()}) == len(LOOKS)
    rows = rows_of(("up", 0.2, 0.1, 0.3), ("down", -0.2, -0.3, -0.1), ("flat", 0.0, -0.1, 0.1))
    [ax] = ablation_chart(rows, metrics=["knn_auc"]).axes
    for name, value in (("higher", 0.2), ("lower", -0.2), ("undecided", 0.0)):
        colour, marker = LOOKS[name]
        assert dots(ax, marker) == [value]
        [dot] = [line for line in ax.lines if line.get_marker() == marker]
        assert dot.get_color() == PALETTE[colour]


def test_settings_stand_in_the_order_of_the_rows_from_the_top():
    rows = rows_of(("b", 0.1, 0.0, 0.2), ("a", 0.2, 0.1, 0.3))
    [ax] = ablation_chart(rows, metrics=["knn_auc"]).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    bottom, top = ax.get_ylim()
    assert bottom > top


def test_the_title_gives_the_base_line_of_the_first_rows():
    rows = [*rows_of(("a", 0.1, 0.0, 0.2)), row("base", "knn_auc", 0.1)]
    [ax] = ablation_chart(rows, metrics=["knn_auc"]).axes
    assert "base: 0.80" in ax.get_title(loc="left")


def test_further_seeds_are_hollow_dots_without_interval():
    rows = [*rows_of(("a", 0.1, 0.05, 0.2)), *rows_of(("a", 0.3, 0.25, 0.4))]
    [ax] = ablation_chart(rows, metrics=["knn_auc"]).axes
    assert dots(ax, "o") == [0.3]
    intervals = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert [0.05, 0.2] in intervals
    assert [0.25, 0.4] not in intervals


def test_the_band_is_as_wide_as_the_largest_repeat():
    rows = rows_of(("a", 0.5, 0.4, 0.6), ("seed 1", 0.02, 0, 0.1), ("seed 2", -0.07, -0.1, 0))
    [ax] = ablation_chart(rows, metrics=["knn_auc"], repeats=["seed 1", "seed 2"]).axes
    [band] = ax.patches
    assert band.get_x() == pytest.approx(-0.07)
    assert band.get_width() == pytest.approx(0.14)


def test_a_metric_that_a_setting_lacks_leaves_a_gap():
    rows = rows_of(("a", 0.1, 0.05, 0.2)) + rows_of(("b", 0.1, 0.05, 0.2), metric="addr_global")
    figure = ablation_chart(rows, metrics=["knn_auc", "addr_global"])
    assert [len(dots(ax, "^")) for ax in figure.axes] == [1, 1]


def test_rows_without_a_difference_to_the_base_line_are_refused():
    with pytest.raises(ConfigError, match="difference"):
        ablation_chart([row("a", "knn_auc", 0.5)])
    with pytest.raises(ConfigError, match="other"):
        ablation_chart(rows_of(("a", 0.1, 0.0, 0.2)), versus="other")
