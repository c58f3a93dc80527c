"""Figures of pairs: every pair is drawn, kinds differ by more than colour, bad input refused."""

import numpy as np
import pytest

from sslpath.errors import ConfigError
from sslpath.figures_pairs import pair_matrix, triples
from sslpath.pairs import pair_masks
from sslpath.table import make_table


@pytest.fixture
def batch():
    """Two slides of 6 tiles in a row, 100 um apart."""
    tiles = make_table(
        {"slide_id": ["a"] * 6 + ["b"] * 6, "x": [*range(0, 600, 100)] * 2, "y": 0, "size": 100,
         "slide_mpp": 1.0},
        mpp=1, tile_px=100, source={},
    )  # fmt: skip
    near, far = pair_masks(tiles, np.arange(12), near_um=150, far_um=350)
    return near, far, tiles["slide_id"]


def test_each_mark_is_a_pair_and_each_pair_is_marked(batch):
    near, far, slide = batch
    ax = pair_matrix(near, far, slide).axes[0]
    for line, mask in zip(ax.lines, (near, far), strict=True):
        drawn = np.zeros_like(mask)
        drawn[np.asarray(line.get_ydata(), int), np.asarray(line.get_xdata(), int)] = True
        assert (drawn == mask).all()


def test_the_key_counts_each_pair_once(batch):
    near, far, slide = batch
    legend = pair_matrix(near, far, slide).axes[0].get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    # 5 neighbours a slide; 0-4, 0-5 and 1-5 are far: more than 350 um.
    assert texts == ["near: 10 pairs", "far: 6 pairs"]


def test_near_and_far_differ_by_marker_and_slides_are_named(batch):
    ax = pair_matrix(*batch).axes[0]
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert len(ax.patches) == 2


def test_masks_of_another_batch_are_refused(batch):
    near, far, slide = batch
    with pytest.raises(ConfigError, match="do not fit a batch of 11"):
        pair_matrix(near, far, slide[:-1])


def test_triples_show_the_tiles_of_each_row_with_a_frame_of_its_own():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 255, (3, 8, 8, 3), np.uint8) for _ in range(3)]
    axes = np.array(triples(*rows).axes).reshape(3, 3)
    for own, images in zip(axes, rows, strict=True):
        for ax, image in zip(own, images, strict=True):
            assert (ax.images[0].get_array() == image).all()
    assert [own[0].get_ylabel() for own in axes] == ["anchor", "near", "far"]
    assert axes[1, 0].patches[0].get_linestyle() != axes[2, 0].patches[0].get_linestyle()


def test_rows_of_different_lengths_are_refused():
    tile = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match="must be alike"):
        triples(tile, tile[:1], tile)
