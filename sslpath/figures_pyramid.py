"""Pictures of slides as files: the levels of the pyramid, one place at several scales, thumbnails.

What this module does not do: tiles and pairs on a slide, which :mod:`sslpath.figures_slide` draws.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, halo, styled
from sslpath.slides import Slide


def _box(ax: Axes, x: float, y: float, side: float) -> None:
    """A square that shows on glass and on tissue."""
    outline = Rectangle(
        (x, y), side, side, fill=False, ec=PALETTE["black"], lw=1.6, path_effects=halo(4)
    )
    ax.add_patch(outline)


@styled
def pyramid(slide: Slide, x: int, y: int, side: int) -> Picture:
    """The levels side by side, each as large as its pixels make it.

    Args:
        slide: The slide.
        x: Left edge of a square to mark on each level, level-0 px.
        y: Its top edge, level-0 px.
        side: Its side, level-0 px.

    Returns:
        One picture; the widths of the panels are to scale.

    Example:
        >>> pyramid(Slide("slide.svs"), 0, 0, 512)  # doctest: +SKIP
    """
    sizes = slide.level_dimensions[:4]  # more would be specks
    image, _ = slide.thumbnail(1200)
    figure = Picture(figsize=(9, 3.9))
    widths = np.array([size[0] for size in sizes], float)
    gap = 0.04 * widths.sum()
    total = widths.sum() + gap * len(sizes)  # room for the last title
    left = 0.0
    for level, (width, height) in enumerate(sizes):
        tall = height / total * 9 / 3.9
        ax = figure.add_axes((left / total, 0.84 - tall, width / total, tall))
        ax.imshow(image, extent=(0, width, height, 0))
        ratio = width / slide.dimensions[0]
        _box(ax, x * ratio, y * ratio, side * ratio)
        ax.set_axis_off()
        ax.text(
            0, 1.03, f"level {level}\n{width} x {height}", transform=ax.transAxes, va="bottom",
            fontsize=8,
        )  # fmt: skip
        left += width + gap
    return figure


@styled
def zoom(slide: Slide, x: int, y: int, mpps: Sequence[float], size_px: int) -> Picture:
    """One place at several pixel sizes, from far to near.

    Args:
        slide: The slide.
        x: The place, level-0 px: the centre of each picture.
        y: As ``x``.
        mpps: um per pixel of each picture, falling.
        size_px: Side of each picture in its own pixels.

    Returns:
        A row of pictures; in each, a square marks what the next one shows.

    Raises:
        ConfigError: If ``mpps`` do not fall.

    Example:
        >>> zoom(Slide("slide.svs"), 900, 900, (4, 1), 224)  # doctest: +SKIP
    """
    if any(after >= before for before, after in pairwise(mpps)):
        raise ConfigError(f"The pixel sizes must fall, from far to near: {list(mpps)}.")
    figure = Picture(figsize=(2.4 * len(mpps), 2.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(mpps)))
    for i, (ax, mpp) in enumerate(zip(axes, mpps, strict=True)):
        half = size_px * mpp / slide.mpp / 2  # level-0 px
        ax.imshow(slide.read(round(x - half), round(y - half), size_px, mpp))
        if i + 1 < len(mpps):
            side = size_px * mpps[i + 1] / mpp
            _box(ax, (size_px - side) / 2, (size_px - side) / 2, side)
        ax.set_title(f"{mpp:g} µm a pixel\n{size_px * mpp:,.0f} µm wide", fontsize=9)
        ax.set_axis_off()
    return figure


@styled
def thumbnails(slides: Mapping[str, Slide], columns: int = 3, max_px: int = 500) -> Picture:
    """Whole slides side by side, each below its title.

    Args:
        slides: Title to slide.
        columns: Pictures in a row.
        max_px: Longer side of each picture.

    Returns:
        A grid of pictures.

    Raises:
        ConfigError: If there is no slide.

    Example:
        >>> thumbnails({"mine": Slide("slide.svs")})  # doctest: +SKIP
    """
    if not slides:
        raise ConfigError("There is no slide to show.")
    rows = -(-len(slides) // columns)
    figure = Picture(figsize=(9, 2.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, slide) in zip(axes, slides.items(), strict=False):
        ax.imshow(slide.thumbnail(max_px)[0])
        ax.set_title(title, fontsize=10)
    return figure


@styled
def mask_beside(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Picture:
    """A thumbnail and its tissue mask.

    Args:
        image: RGB, ``(h, w, 3)``.
        mask: True on tissue, ``(h, w)``.

    Example:
        >>> len(mask_beside(np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool)).axes)
        2
    """
    figure = Picture(figsize=(9, 9 / 2 * image.shape[0] / image.shape[1] + 0.4))
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    right.imshow(mask, cmap="gray_r", vmin=0, vmax=1.4)
    for ax, title in ((left, "slide"), (right, "tissue (dark)")):
        ax.set_title(title, fontsize=10)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(True)
    return figure


@styled
def tile_sheet(pixels: NDArray[np.uint8], titles: Sequence[str], columns: int = 8) -> Picture:
    """Tiles side by side, each below its title.

    Args:
        pixels: Tiles, ``(n, h, w, 3)``.
        titles: One a tile.
        columns: Tiles in a row.

    Example:
        >>> len(tile_sheet(np.zeros((3, 4, 4, 3), np.uint8), ["a", "b", "c"]).axes)
        8
    """
    rows = -(-len(pixels) // columns)
    figure = Picture(figsize=(9, 1.45 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, tile, title in zip(axes, pixels, titles, strict=False):
        ax.imshow(tile)
        ax.set_title(title, fontsize=7)
    return figure
