"""Figures on slides: the grid of tiles, near and far tiles, heat maps; and galleries of tiles.

Everything is drawn in um from the slide's top-left corner, so the scale bar is right by
construction. Lines on tissue are blue, orange or black with a white edge.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Circle, Patch, PathPatch
from matplotlib.path import Path as MplPath
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import TableError
from sslpath.figure_style import HEAT, PALETTE, Picture, as_text, halo, key, scale_bar, styled
from sslpath.slides import Slide
from sslpath.table import centres_um

WIDTH = 8.0  # inches


def _own(slide: Slide, tiles: pd.DataFrame) -> pd.DataFrame:
    own = tiles[tiles["slide_id"] == slide.slide_id]
    if own.empty:
        raise TableError(f"The table has no tiles of the slide {slide.slide_id!r}.")
    return own


def _squares(tiles: pd.DataFrame) -> NDArray[np.float64]:
    """Corners of the tiles in um, (n, 4, 2)."""
    corner = tiles[["x", "y"]].to_numpy(np.float64)[:, None]
    side = tiles["size"].to_numpy(np.float64)[:, None, None]
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    return np.asarray((corner + side * unit) * tiles["slide_mpp"].to_numpy()[:, None, None])


def _show(ax: Axes, image: NDArray[np.uint8], mpp: float) -> tuple[float, float]:
    """Draw a thumbnail in um; its width and height."""
    height, width = image.shape[0] * mpp, image.shape[1] * mpp
    ax.imshow(image, extent=(0, width, height, 0), interpolation="lanczos")
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    scale_bar(ax, width, height)
    return width, height


def _canvas(slide: Slide, max_px: int, panels: int = 1) -> tuple[Picture, list[Axes], Any]:
    """A figure of the slide's shape, with its thumbnail."""
    image, mpp = slide.thumbnail(max_px)
    width = WIDTH if panels == 1 else WIDTH * 1.4
    tall = min(1.6, image.shape[0] / image.shape[1]) * width / panels
    # Room for a title and a key, or for a colour bar.
    figure = Picture(figsize=(width, tall + (0.7 if panels == 1 else 1.3)), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes), (image, mpp)


def _veil(ax: Axes, squares: NDArray[np.float64], width: float, height: float) -> None:
    """Pale out what no tile covers."""
    side = np.ptp(squares[0, :, 0])
    # A trifle larger than they are: rounding to whole pixels leaves gaps between tiles.
    covered = shapely.union_all(
        shapely.buffer(shapely.polygons(squares), side / 50, join_style="mitre")
    )
    rest = shapely.difference(shapely.box(0, 0, width, height), covered)
    ax.add_patch(_patch(rest, facecolor="white", edgecolor="none", alpha=0.55))


def _patch(area: Any, **style: Any) -> PathPatch:
    """A shapely area with its holes as a patch."""
    rings = []
    for part in getattr(area, "geoms", [area]):
        if part.geom_type == "Polygon":
            rings += [part.exterior, *part.interiors]
    paths = [MplPath(shapely.get_coordinates(ring), closed=True) for ring in rings]
    return PathPatch(MplPath.make_compound_path(*paths), **style)


@styled
def slide_with_grid(slide: Slide, tiles: pd.DataFrame, *, max_px: int = 2000) -> Picture:
    """The slide with its tiles: what was cut, what was left out (paled), what is labelled tumour.

    Args:
        slide: The slide.
        tiles: The table; tiles of other slides are ignored.
        max_px: Longer side of the thumbnail.

    Raises:
        TableError: If the table has no tiles of this slide.
    """
    own = _own(slide, tiles)
    figure, (ax,), thumbnail = _canvas(slide, max_px)
    width, height = _show(ax, *thumbnail)
    squares = _squares(own)
    _veil(ax, squares, width, height)
    grid = PolyCollection(list(squares), facecolor="none", linewidth=0.4, edgecolor="#00000060")
    ax.add_collection(grid, autolim=False)
    tumour = own["label"].eq(1).fillna(False).to_numpy(bool)
    unknown = own["label"].isna().to_numpy()
    kinds: tuple[tuple[NDArray[np.bool_], str, str, str, float], ...] = (
        (~tumour & ~unknown, "labelled, no tumour", PALETTE["blue"], "-", 0),
        (unknown, "no label", PALETTE["black"], ":", 0),
        (tumour, "tumour", PALETTE["orange"], "-", 0.1),
    )
    handles: list[Any] = []
    for mask, name, colour, line, fill in kinds:
        if mask.any():
            style: dict[str, Any] = {"edgecolor": colour, "linestyle": line, "linewidth": 1.6}
            style["facecolor"] = mpl.colors.to_rgba(colour, fill)
            # Drawn a little smaller than it is, so that outlines of two kinds lie side by side.
            area = shapely.union_all(shapely.polygons(squares[mask]))
            inner = area.buffer(-width / 800, join_style="mitre")
            ax.add_patch(_patch(inner, path_effects=halo(3.2), **style))
            handles.append(Patch(label=f"{name} ({mask.sum():,})", **style))
    side = float(np.sqrt(np.abs(np.prod(squares[0, 2] - squares[0, 0]))))
    ax.set_title(f"{as_text(slide.slide_id)}: {len(own):,} tiles of {side:.0f} µm")
    key(figure, ax, handles)
    return figure


@styled
def near_far_on_slide(
    slide: Slide,
    tiles: pd.DataFrame,
    anchor: int,
    *,
    near_um: float,
    far_um: float,
    max_px: int = 2000,
) -> Picture:
    """What counts as near to one tile, as far from it, and what lies between and is not used.

    Args:
        slide: The slide.
        tiles: The table; tiles of other slides are ignored.
        anchor: Position of the tile in the table.
        near_um: Near tiles lie at most this far away.
        far_um: Far tiles lie farther away than this.
        max_px: Longer side of the thumbnail.

    Raises:
        TableError: If the table has no tiles of this slide, or the anchor is of another.
    """
    own = _own(slide, tiles)
    one = tiles.iloc[anchor : anchor + 1]
    if one.empty or one["slide_id"].iloc[0] != slide.slide_id:
        raise TableError(f"Row {anchor} of the table is no tile of the slide {slide.slide_id!r}.")
    figure, (ax,), thumbnail = _canvas(slide, max_px)
    width, height = _show(ax, *thumbnail)
    squares, centre = _squares(own), centres_um(one)[0]
    distance = np.linalg.norm(centres_um(own) - centre, axis=1)
    near, far = (distance <= near_um) & (distance > 0), distance > far_um
    _veil(ax, squares, width, height)
    handles: list[Any] = []
    for mask, colour, name in (
        (near, PALETTE["blue"], f"near, up to {near_um:,.0f} µm"),
        (far, PALETTE["orange"], f"far, beyond {far_um:,.0f} µm"),
    ):
        fill = mpl.colors.to_rgba(colour, 0.25)
        shapes = PolyCollection(
            list(squares[mask]),
            facecolor=fill,
            edgecolor=mpl.colors.to_rgba(colour, 0.8),
            linewidth=0.4,
        )
        ax.add_collection(shapes, autolim=False)
        label = f"{name} ({mask.sum():,} tiles)"
        handles.append(Patch(facecolor=fill, edgecolor=colour, label=label))
    for radius, style in ((near_um, "-"), (far_um, "--")):
        circle = Circle(
            (centre[0], centre[1]), radius, fill=False, edgecolor=PALETTE["black"],
            linewidth=1.4, linestyle=style, path_effects=halo(3.2),
        )  # fmt: skip
        ax.add_patch(circle)
    (point,) = ax.plot(
        *centre, marker="*", markersize=17, color=PALETTE["black"], markeredgecolor="white",
        markeredgewidth=1.2, linestyle="none", label="anchor",
    )  # fmt: skip
    ax.set_title(f"{as_text(slide.slide_id)}: one anchor, its near and its far tiles")
    key(figure, ax, [point, *handles])
    return figure


@styled
def heat_map(
    slide: Slide,
    tiles: pd.DataFrame,
    scores: ArrayLike,
    *,
    label: str = "share of tumour among the nearest tiles of other patients",
    truth: Any = None,
    max_px: int = 2000,
) -> Picture:
    """The slide, and a score of each tile on the same slide in grey.

    Args:
        slide: The slide.
        tiles: Its tiles, and no others.
        scores: One score a tile, 0..1, such as :func:`sslpath.retrieval.tumour_share`.
        label: What the score is.
        truth: Outline of the tumour, a shapely area in level-0 px, if it is known.
        max_px: Longer side of the thumbnail.

    Raises:
        TableError: If tiles are of another slide, or the scores are not one a tile.
    """
    values = np.asarray(scores, np.float64)
    if len(_own(slide, tiles)) != len(tiles) or values.shape != (len(tiles),):
        raise TableError(
            f"A heat map of {slide.slide_id!r} takes its tiles only ({len(tiles)} given) and one "
            f"score for each ({values.shape} given)."
        )
    figure, (left, right), (image, mpp) = _canvas(slide, max_px, panels=2)
    _show(left, image, mpp)
    grey = 255 - (255 - image.mean(axis=2, keepdims=True)) * 0.6
    _show(right, np.repeat(grey.astype(np.uint8), 3, axis=2), mpp)
    shapes = PolyCollection(
        list(_squares(tiles)), array=values, cmap=HEAT, clim=(0, 1), alpha=0.85, linewidth=0
    )
    shapes.set_antialiased(False)  # no pale seams between neighbouring tiles
    right.add_collection(shapes, autolim=False)
    figure.colorbar(
        shapes, ax=[left, right], location="bottom", label=label, aspect=50, fraction=0.04, pad=0.02
    )
    if truth is not None and not truth.is_empty:
        outline = shapely.transform(truth, lambda xy: xy * slide.mpp)
        for ax, colour, edge in ((left, PALETTE["black"], "white"), (right, "white", "black")):
            style = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.2}
            ax.add_patch(_patch(outline, path_effects=halo(2.6, edge), **style))
        left.set_title(f"{as_text(slide.slide_id)}, tumour outlined")
    else:
        left.set_title(as_text(slide.slide_id))
    right.set_title("score of each tile")
    return figure


@styled
def gallery(
    queries: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.uint8]],
    correct: Mapping[str, ArrayLike] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Picture:
    """Query tiles and the tiles most like them, one row a method.

    An answer with the query's label has a blue frame and a ring, one with another label an orange
    frame and a cross.

    Args:
        queries: Tiles, uint8 (q, h, w, 3).
        answers: Method to tiles, nearest first, uint8 (q, k, h, w, 3).
        correct: Method to (q, k): 1 the query's label, 0 another, -1 unknown.
        names: What to write above each query.
    """
    methods = list(answers)
    q, k, m = len(queries), max(answers[one].shape[1] for one in methods), len(methods)
    gap, block = 0.5, m * 1.06  # in tile widths
    side = min(1.7, block - 0.06)
    start = side + 0.3 + 0.1 * max(len(one) for one in methods)  # where the answers begin
    wide, tall = start + k * 1.06, q * (block + gap) + (0.45 if correct else 0.1)
    figure = Picture(figsize=(wide * 0.95, tall * 0.95))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, wide), ylim=(tall, 0))
    ax.set_axis_off()
    for i, query in enumerate(queries):
        top = i * (block + gap) + gap
        y = top + (block - 0.06 - side) / 2
        _tile(ax, query, 0.1, y, side, PALETTE["black"])
        ax.text(
            0.1, top - 0.1, as_text(names[i]) if names else "query", fontweight="bold", va="bottom"
        )
        for j, method in enumerate(methods):
            row = top + j * 1.06
            ax.text(start - 0.1, row + 0.5, as_text(method), ha="right", va="center", fontsize=9)
            for n, image in enumerate(answers[method][i]):
                known = -1 if correct is None else int(np.asarray(correct[method])[i, n])
                colour = {1: PALETTE["blue"], 0: PALETTE["orange"]}.get(known, PALETTE["grey"])
                x = start + n * 1.06
                _tile(ax, image, x, row, 1.0, colour)
                if known >= 0:
                    _mark(ax, x + 0.15, row + 0.15, bool(known))
    if correct is not None:
        y = tall - 0.22
        for x, known, text in ((0.25, True, "query's label"), (2.6, False, "another label")):
            _mark(ax, x, y, known)
            ax.text(x + 0.2, y, text, va="center", fontsize=9)
    return figure


def _tile(ax: Axes, image: NDArray[np.uint8], x: float, y: float, side: float, colour: str) -> None:
    ax.imshow(image, extent=(x, x + side, y + side, y), aspect="auto", interpolation="lanczos")
    outline = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    ax.plot(*np.transpose(outline), color=colour, linewidth=2.2, solid_joinstyle="miter")


def _mark(ax: Axes, x: float, y: float, correct: bool) -> None:
    """A ring or a cross on a white disc."""
    ax.plot(x, y, "o", color="white", markersize=11, markeredgecolor="none")
    colour = PALETTE["blue"] if correct else PALETTE["orange"]
    if correct:
        ax.plot(x, y, "o", color="none", markersize=7, markeredgecolor=colour, markeredgewidth=2.2)
    else:
        ax.plot(x, y, "X", color=colour, markersize=8, markeredgecolor="none")
