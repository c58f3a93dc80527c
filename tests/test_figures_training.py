"""Figures of runs: every run told apart without colour, and shares that add up."""

import pytest

from sslpath.errors import ConfigError
from sslpath.figures_training import LINES, runs_compared, shares_of_time

LOG = [
    {"step": s, "loss": 1 / s, "spread": 0.6, "effective_rank": 8.0, "other": 1} for s in (1, 2, 4)
]


def test_runs_differ_in_line_style_and_marker_in_every_panel():
    figure = runs_compared({f"run {i}": LOG for i in range(len(LINES))})
    for ax in figure.axes:
        lines = ax.get_lines()
        assert len(lines) == len(LINES)
        assert len({line.get_marker() for line in lines}) == len(LINES)
        assert len({line.get_color() for line in lines}) == len(LINES)
        assert ax.get_ylim()[0] == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"run {i}" for i in range(len(LINES))
    ]


def test_each_panel_draws_its_own_column():
    figure = runs_compared({"a": LOG})
    drawn = [list(ax.get_lines()[0].get_ydata()) for ax in figure.axes]
    assert drawn == [[1, 0.5, 0.25], [0.6] * 3, [8.0] * 3]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [1, 2, 4]


@pytest.mark.parametrize("logs", [{}, {"a": []}, {str(i): LOG for i in range(6)}])
def test_no_run_an_empty_log_and_too_many_runs_are_refused(logs):
    with pytest.raises(ConfigError, match="Give 1 to 5 runs"):
        runs_compared(logs)


def test_shares_of_time_add_up_and_keep_their_order():
    figure = shares_of_time({"read": 2.0, "learn": 6.0, "save": 8.0})
    ax = figure.axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.125, 0.375, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["read", "learn", "save"]
    top_first = [bar.get_y() for bar in ax.patches]
    assert top_first == sorted(top_first)
    assert ax.yaxis_inverted()


@pytest.mark.parametrize("seconds", [{}, {"read": 0.0}, {"read": 1.0, "learn": -1.0}])
def test_parts_that_take_no_time_are_refused(seconds):
    with pytest.raises(ConfigError, match="takes time"):
        shares_of_time(seconds)
