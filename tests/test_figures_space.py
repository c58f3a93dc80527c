"""The map in the tiles' own colours."""

import numpy as np
import pytest

from sslpath.errors import ConfigError
from sslpath.figures_space import colour_panels

RNG = np.random.default_rng(0)
POINTS, RGB = RNG.normal(size=(30, 2)), RNG.uniform(size=(30, 3))


def test_each_tile_is_drawn_at_its_place_in_its_own_colour():
    figure = colour_panels({"a": POINTS, "b": POINTS[::-1]}, RGB)
    for ax, points in zip(figure.axes, (POINTS, POINTS[::-1]), strict=True):
        [dots] = ax.collections
        drawn = {tuple(np.round([*xy, *rgba[:3]], 6)) for xy, rgba in
                 zip(dots.get_offsets().data, dots.get_facecolor(), strict=True)}  # fmt: skip
        assert drawn == {tuple(np.round([*xy, *c], 6)) for xy, c in zip(points, RGB, strict=True)}


def test_dots_have_an_edge_so_that_pale_tiles_stay_visible():
    [dots] = colour_panels({"a": POINTS}, RGB).axes[0].collections
    assert dots.get_linewidths()[0] > 0
    assert dots.get_edgecolor()[0, :3].max() < 0.2


@pytest.mark.parametrize(
    ("embeddings", "rgb"),
    [({}, RGB), ({"a": POINTS[:5]}, RGB), ({"a": POINTS}, RGB[:, :2]), ({"a": POINTS}, RGB * 255)],
)
def test_what_cannot_be_drawn_is_refused(embeddings, rgb):
    with pytest.raises(ConfigError):
        colour_panels(embeddings, rgb)
