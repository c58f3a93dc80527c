"""Pictures of slides as files."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from sslpath.datasets.phantom import make_phantom
from sslpath.errors import ConfigError
from sslpath.figures_pyramid import mask_beside, pyramid, thumbnails, tile_sheet, zoom
from sslpath.slides import Slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return Slide(make_phantom(tmp_path_factory.mktemp("p"), "s", 3, width=1024, height=1024))


def test_panels_of_the_pyramid_are_to_scale_and_mark_the_same_place(slide):
    figure = pyramid(slide, 256, 128, 512)
    widths = np.array([ax.get_position().width for ax in figure.axes])
    sizes = np.array([size[0] for size in slide.level_dimensions[: len(widths)]])
    assert np.allclose(widths / widths[0], sizes / sizes[0], rtol=0.02)
    for ax, size in zip(figure.axes, sizes, strict=True):
        box = next(p for p in ax.patches if isinstance(p, Rectangle))
        assert box.get_x() / size == pytest.approx(256 / 1024, rel=0.01)


def test_the_square_in_a_picture_is_what_the_next_one_shows(slide):
    figure = zoom(slide, 512, 512, (2, 1, 0.5), 64)
    boxes = [[p for p in ax.patches if isinstance(p, Rectangle)] for ax in figure.axes]
    assert [len(found) for found in boxes] == [1, 1, 0]
    assert boxes[0][0].get_width() == pytest.approx(32)
    with pytest.raises(ConfigError, match="must fall"):
        zoom(slide, 512, 512, (0.5, 1), 64)


def test_each_slide_has_a_titled_picture(slide):
    figure = thumbnails({"a": slide, "b": slide})
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.images] == ["a", "b"]
    with pytest.raises(ConfigError, match="no slide"):
        thumbnails({})


def test_a_mask_is_dark_where_there_is_tissue():
    mask = np.zeros((8, 10), bool)
    mask[2:4] = True
    shown = mask_beside(np.full((8, 10, 3), 240, np.uint8), mask).axes[1].images[0]
    colours = shown.cmap(shown.norm(shown.get_array()))
    assert colours[2, 0, 0] < colours[0, 0, 0] - 0.5


def test_a_sheet_shows_each_tile_below_its_title():
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4, 3), np.uint8)
    figure = tile_sheet(pixels, ["a", "b", "c"], columns=2)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in shown] == ["a", "b", "c"]
    assert [int(np.max(ax.images[0].get_array())) for ax in shown] == [0, 1, 2]
