"""Charts of the chapter on retrieval."""

import numpy as np
import pandas as pd
import pytest

from sslpath.errors import ConfigError
from sslpath.figures_retrieval import NAMED, cost_by_length, slide_by_slide

VALUES = pd.DataFrame({"spatial": [0.8, 0.4, 0.6], "imagenet": [0.7, 0.5, 0.6]}, list("abc"))


def test_slides_stand_in_the_order_of_their_queries_with_both_methods():
    [ax] = slide_by_slide(VALUES, [3, 9, 5], "P@10").axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b (9)", "c (5)", "a (3)"]
    _, ours, theirs = ax.collections
    assert ours.get_offsets()[:, 0].tolist() == [0.4, 0.6, 0.8]
    assert theirs.get_offsets()[:, 0].tolist() == [0.5, 0.6, 0.7]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the most queries on top


def test_many_slides_have_no_names_and_still_a_line_each():
    many = pd.DataFrame({"spatial": np.linspace(0, 1, NAMED + 1)})
    [ax] = slide_by_slide(many, np.ones(NAMED + 1), "P@10").axes
    assert not ax.get_yticklabels()
    assert len(ax.collections[-1].get_offsets()) == NAMED + 1


@pytest.mark.parametrize(("values", "queries"), [(VALUES, [1, 2]), (VALUES[:0], [])])
def test_slides_without_their_number_of_queries_are_refused(values, queries):
    with pytest.raises(ConfigError):
        slide_by_slide(values, queries, "P@10")


def test_costs_are_multiples_of_the_base():
    [ax] = cost_by_length([64, 128, 256], {"bytes": [2, 4, 8], "time": [3, 5, 20]}).axes
    proportion, size, time = (line.get_ydata().tolist() for line in ax.lines)
    assert proportion == [0.5, 1, 2]
    assert size == [0.5, 1, 2]
    assert time == [0.6, 1, 4]
    assert len({(line.get_linestyle(), line.get_linewidth()) for line in ax.lines}) == 3


@pytest.mark.parametrize(
    ("lengths", "costs"), [([64, 256], {"bytes": [1, 2]}), ([64, 128], {"bytes": [1]})]
)
def test_a_cost_that_is_missing_is_refused(lengths, costs):
    with pytest.raises(ConfigError):
        cost_by_length(lengths, costs)
