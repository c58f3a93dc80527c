"""Figures of pairs: tiles with their near and far partners, and the pairs of a batch as a matrix.

What this module does not do: draw pairs or read tiles; see :mod:`sslpath.pairs`.
"""

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, styled


@styled
def triples(anchor: NDArray[np.uint8], near: NDArray[np.uint8], far: NDArray[np.uint8]) -> Picture:
    """Anchors in the top row, the near partner of each below it, the far one below that.

    Near tiles have a solid frame, far tiles a dashed one.

    Args:
        anchor: Tiles, uint8 ``(n, h, w, 3)``.
        near: Their near partners, of the same shape.
        far: Their far partners, of the same shape.

    Raises:
        ConfigError: If the three differ in shape.

    Example:
        >>> tile = np.full((2, 8, 8, 3), 200, np.uint8)
        >>> len(triples(tile, tile, tile).axes)
        6
    """
    if not anchor.shape == near.shape == far.shape:
        raise ConfigError(
            f"Anchors {anchor.shape}, near {near.shape} and far tiles {far.shape} must be alike."
        )
    n = len(anchor)
    figure = Picture(figsize=(1.25 * n + 0.8, 4.1), layout="constrained")
    axes = figure.subplots(3, n, squeeze=False)
    rows: tuple[tuple[str, NDArray[np.uint8], str, Any], ...] = (
        ("anchor", anchor, "black", "-"),
        ("near", near, "blue", "-"),
        ("far", far, "orange", (0, (2.2, 1.4))),
    )
    for own, (name, images, colour, line) in zip(axes, rows, strict=True):
        for ax, image in zip(own, images, strict=True):
            ax.imshow(image, interpolation="lanczos")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.grid(visible=False)
            ax.add_patch(
                Rectangle(
                    (0.02, 0.02), 0.96, 0.96, transform=ax.transAxes, fill=False, linewidth=3.2,
                    edgecolor=PALETTE[colour], linestyle=line, clip_on=False,
                )
            )  # fmt: skip
        own[0].set_ylabel(name, fontweight="bold", fontsize=11)
    return figure


@styled
def pair_matrix(near: ArrayLike, far: ArrayLike, slide: ArrayLike) -> Picture:
    """The pairs of a batch: a row and a column a tile, a dot where two are near, a cross where far.

    Args:
        near: Bool ``(b, b)``; see :func:`sslpath.pairs.pair_masks`.
        far: Bool ``(b, b)``.
        slide: Slide of each tile of the batch, ``(b,)``; tiles of a slide stand together.

    Raises:
        ConfigError: If shapes do not match.

    Example:
        >>> near = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
        >>> len(pair_matrix(near, ~near & False, ["a", "a", "b"]).axes)
        1
    """
    masks = [np.asarray(near, bool), np.asarray(far, bool)]
    names = np.asarray(slide).astype(str)
    b = len(names)
    if any(mask.shape != (b, b) for mask in masks):
        raise ConfigError(
            f"Masks {masks[0].shape} and {masks[1].shape} do not fit a batch of {b} tiles."
        )
    figure = Picture(figsize=(6.4, 6.6), layout="constrained")
    ax = figure.subplots()
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    ends = np.r_[starts[1:], b]
    for start, end in zip(starts, ends, strict=True):
        ax.add_patch(
            Rectangle(
                (start - 0.5, start - 0.5), end - start, end - start, facecolor="#F4F4F4",
                edgecolor=PALETTE["grey"], linewidth=0.8, zorder=0.5,
            )
        )  # fmt: skip
    size = float(np.clip(190 / b, 1.5, 9))
    handles: list[Any] = []
    for mask, text, colour, marker in (
        (masks[0], "near", "blue", "o"),
        (masks[1], "far", "orange", "x"),
    ):
        row, column = np.nonzero(mask)
        ax.plot(
            column, row, marker, color=PALETTE[colour], markersize=size, markeredgewidth=size / 4
        )
        pairs = int(np.triu(mask | mask.T, 1).sum())
        handles.append(
            Line2D([], [], color=PALETTE[colour], marker=marker, linestyle="none",
                   markersize=6, label=f"{text}: {pairs:,} pairs")
        )  # fmt: skip
    ax.set(xlim=(-0.5, b - 0.5), ylim=(b - 0.5, -0.5), aspect="equal")
    middle = (starts + ends - 1) / 2
    labels = names[starts]
    ax.set_xticks(middle, labels, fontsize=8)
    ax.set_yticks(middle, labels, fontsize=8, rotation=90, va="center")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set(xlabel="tile of the batch, by slide", ylabel="tile of the batch, by slide")
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return figure
