"""What outlines say about tiles: tumour or not, and which kind of tissue.

A tile is

- 1 (tumour) if at least half of it (``tumour_share``) lies in tumour that is not excluded;
- 0 if it touches neither tumour nor an excluded area, and the slide was annotated exhaustively;
- missing otherwise: on the rim of a tumour, in excluded areas, where points or lines mark tumour,
  and wherever no tumour is drawn, if the annotation is not exhaustive or its file holds no area at
  all, only points.

Its region is the name of the outline that covers most of it, the smaller one of two that cover as
much, and missing if none does. Which names mean tumour or excluded stands in
:mod:`sslpath.annotations`.
"""

import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from sslpath.annotations import MENTIONS_TUMOUR, Annotations, Reading, says_nothing
from sslpath.errors import AnnotationError, counted
from sslpath.outlines import EMPTY, areas_only
from sslpath.slide_files import same
from sslpath.slides import Slide


def label_tiles(
    boxes: NDArray[np.object_],
    annotations: Annotations,
    *,
    exhaustive: bool = True,
    tumour_share: float = 0.5,
) -> tuple[pd.Series, pd.Series]:
    """Label and region of each tile.

    Args:
        boxes: The tiles as shapely boxes in level-0 px, shape ``(n,)``.
        annotations: Outlines of their slide.
        exhaustive: Whether all tumour is outlined, so that the rest is known not to be tumour.
        tumour_share: Least share of a tumour tile that lies in tumour.

    Returns:
        Label, ``Int8``, 1, 0 or missing; and region, text or missing.

    Example:
        >>> drawn = Annotations({"tumour": shapely.box(0, 0, 15, 10)})
        >>> label, region = label_tiles(shapely.box([0, 10, 20], 0, [10, 20, 30], 10), drawn)
        >>> label.tolist(), region.tolist()
        ([1, 1, 0], ['tumour', 'tumour', nan])
    """
    label = pd.Series(pd.NA, range(len(boxes)), "Int8")
    region = pd.Series(pd.NA, range(len(boxes)), "str")
    tumour = share_inside(annotations.tumour, boxes)
    if exhaustive and not annotations.holds_no_area:
        loose = annotations.loose
        marked = shapely.intersects(boxes, loose) & ~shapely.touches(boxes, loose)
        label[(tumour == 0) & (share_inside(annotations.excluded, boxes) == 0) & ~marked] = 0
    # Overlays are exact but for rounding: half a tile may come out as 0.49999999.
    label[tumour >= tumour_share - 1e-9] = 1
    most = np.zeros(len(boxes))
    for name, area in sorted(annotations.kinds.items(), key=lambda kind: kind[1].area):
        if annotations.reading(name) == "tumour":  # less the normal tissue in it
            area = areas_only(shapely.intersection(area, annotations.tumour))
        share = share_inside(area, boxes)
        region[share > most] = name
        most = np.maximum(most, share)
    return label, region


def share_inside(area: BaseGeometry, boxes: NDArray[np.object_]) -> NDArray[np.float64]:
    """The share of each box that lies inside ``area``.

    Args:
        area: A (multi)polygon.
        boxes: Shapely boxes, shape ``(n,)``.

    Returns:
        Shape ``(n,)``, 0 to 1.

    Example:
        >>> share_inside(shapely.box(0, 0, 10, 10), shapely.box([0, 5, 20], 0, [10, 15, 30], 10))
        array([1. , 0.5, 0. ])
    """
    inside = np.zeros(len(boxes))
    parts = shapely.get_parts(area)
    if not len(parts) or not len(boxes):
        return inside
    # Most tiles lie wholly inside or outside, which prepared outlines tell quickly; only those on
    # an outline need the costly overlay.
    shapely.prepare(parts)
    box, part = shapely.STRtree(parts).query(boxes)
    touching = shapely.intersects(parts[part], boxes[box])
    box, part = box[touching], part[touching]
    overlap = shapely.area(boxes[box])
    cut = ~shapely.covers(parts[part], boxes[box])
    overlap[cut] = shapely.area(shapely.intersection(parts[part[cut]], boxes[box[cut]]))
    np.add.at(inside, box, overlap)
    return np.asarray(np.clip(inside / shapely.area(boxes), 0.0, 1.0))


def how_read(
    annotations: Annotations,
    slide: Slide,
    places: NDArray[np.int64],
    side: float,
    tissue: NDArray[np.bool_],
    *,
    bounds: bool = False,
) -> dict[str, Any]:
    """What the table keeps of a slide's outlines: file, names with what they are read as, notes.

    Args:
        annotations: The outlines.
        slide: Their slide.
        places: Corners of all tiles of the grid, shape ``(n, 2)``.
        side: Side of a tile, level-0 px.
        tissue: Whether each tile holds any tissue, shape ``(n,)``.
        bounds: Whether the outlines were moved by the corner of the scanned area.

    Raises:
        AnnotationError: If all outlines lie outside the slide, or are smaller than two pixels.
    """
    whole = shapely.box(0, 0, *slide.dimensions)
    areas = list(annotations.regions.values())
    left, top, width, height = slide.scanned
    remedy = "They belong to another slide, or are not in level-0 px."
    if bounds:
        remedy = (
            remedy[:-1] + ", or are counted from the corner of the slide: leave out `--bounds`."
        )
    if areas and not any(shapely.intersects(area, whole) for area in areas):
        raise AnnotationError(
            f"All outlines of {annotations.path} lie outside the slide {slide.path}. {remedy}"
        )
    # An empty area, of which the bounds are NaN, is near to nothing.
    low, high = np.reshape(shapely.total_bounds([*areas, EMPTY]), (2, 2))
    if (high - low < 2).all():
        raise AnnotationError(
            f"All outlines of {annotations.path} fit into two pixels: their places are not in "
            "level-0 px, but shares of the slide or degrees. Export them in pixels."
        )
    # Boxes of a whole slide would take much memory: only those that outlines can touch are made.
    near = ((places + side >= low) & (places <= high)).all(axis=1)
    x, y = places[near].T
    notes = misplaced(
        annotations,
        shapely.box(left, top, left + width, top + height),
        shapely.box(x, y, x + side, y + side),
        tissue[near],
    )
    if notes:
        notes[-1] += (
            " They belong to another slide, are not in level-0 px, or are counted from the corner "
            f"of the scanned area ({left}, {top}): in that case use `--bounds`."
            if (left or top) and not bounds
            else f" {remedy}"
        )
    return {
        "file": annotations.path,
        "names": {name: annotations.reading(name) for name in annotations.regions},
        "groups": list(annotations.groups),
        "notes": [*annotations.notes, *notes],
    }


def misplaced(
    annotations: Annotations,
    scanned: BaseGeometry,
    places: NDArray[np.object_],
    tissue: NDArray[np.bool_],
) -> list[str]:
    """Notes on outlines that lie where nothing was scanned, or where there is no tissue.

    Each outline of tumour must lie on tissue. Of other outlines only one must, as some are drawn
    around glass. Outlines smaller than a tile, or between tiles, count only if there are no others:
    tissue is looked for tile by tile, and misses specks.

    Args:
        annotations: Outlines of a slide.
        scanned: The area that was scanned, level-0 px.
        places: Boxes of all tiles of the grid, level-0 px, shape ``(n,)``.
        tissue: Whether each holds any tissue, shape ``(n,)``.

    Example:
        >>> drawn = Annotations({"tumour": shapely.box(50, 0, 90, 10)}, "case.xml")
        >>> grid, tissue = shapely.box([0, 10], 0, [10, 20], 10), np.array([True, False])
        >>> misplaced(drawn, shapely.box(0, 0, 60, 60), grid, tissue)
        ['case.xml: outlines mostly outside of the scanned area: 1 of 1.']
    """
    kinds = annotations.kinds
    tumour = [area for name, area in kinds.items() if annotations.reading(name) == "tumour"]
    parts = shapely.get_parts(tumour or list(kinds.values()))
    if not len(parts):
        return []
    place, part = shapely.STRtree(places).query(parts, "intersects")[::-1]
    every = np.arange(len(parts))
    on_grid, on_tissue = np.isin(every, part), np.isin(every, part[tissue[place]])
    off = shapely.area(shapely.intersection(parts, scanned)) < shapely.area(parts) / 2
    large = shapely.area(parts) >= shapely.area(places).min(initial=np.inf)
    large &= on_grid | off
    each = len(tumour) > 0 and large.any()
    if large.any():
        off, on_tissue = off[large], on_tissue[large]
    bare = ~off & ~on_tissue
    found = {"mostly outside of the scanned area": off, "where there is no tissue": bare}
    return [
        f"{annotations.path}: outlines {where}: {lost.sum()} of {len(lost)}."
        for where, lost in found.items()
        if lost.any() and (each or lost.all())
    ]


def warn_of_outlines(
    tiles: pd.DataFrame, bare: list[str], folder: str | Path, tumour: Collection[str]
) -> None:
    """Warn of outlines that may not have been read as they were meant.

    Args:
        tiles: The table of tiles.
        bare: Slides without a file of annotations.
        folder: Where the files are.
        tumour: The names that mean tumour, if they were given.
    """
    outlines = outlines_of(tiles)
    if bare:
        warnings.warn(
            f"No annotations in {folder} for {counted(len(bare), 'slide')}, whose tiles have no "
            f"label: {', '.join(bare)}. Name each file after its slide, such as {bare[0]}.geojson "
            "or .xml." + ("" if outlines else " No file there is named like a slide."),
            stacklevel=3,
        )
    for one in outlines.values():
        for note in one["notes"]:
            warnings.warn(note, stacklevel=3)
    blank = [
        slide
        for slide, one in outlines.items()
        if one["names"]
        and "tumour" not in one["names"].values()
        and all(says_nothing(name) for name, how in one["names"].items() if how == "region")
        and "region" in one["names"].values()
    ]
    doubt = _doubt(outlines, tumour)
    if blank and not doubt:
        warnings.warn(
            f"No outline has a name that says what it is on {counted(len(blank), 'slide')}, so no "
            f"tile there is tumour: {', '.join(blank)}. Name the outlines, or say which names mean "
            "tumour with `--tumour NAME ...`.",
            stacklevel=3,
        )
    if doubt:
        warnings.warn(
            f"{doubt}. {names_read(tiles)}. Say which names mean tumour with `--tumour NAME ...` "
            "on the command line, `tumour=` in Python.",
            stacklevel=3,
        )


def _doubt(outlines: dict[str, dict[str, Any]], tumour: Collection[str]) -> str:
    """Why the names of outlines may mean something else than was read; empty if all is clear."""
    readings = {name: how for one in outlines.values() for name, how in one["names"].items()}
    if not readings:
        return ""
    met = {same(name) for one in outlines.values() for name in (*one["names"], *one["groups"])}
    met |= {name.split(":")[0].strip() for name in met}
    unmet = [name for name in tumour if same(name) not in met]
    if unmet:
        return f"No outline is named {', '.join(unmet)}"
    if "tumour" not in readings.values():
        return "No outline has a name that means tumour"
    odd = [n for n, how in readings.items() if how == "region" and MENTIONS_TUMOUR.search(same(n))]
    return f"Not read as tumour: {', '.join(odd)}" if odd and not tumour else ""


def outlines_of(tiles: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How the outlines of each annotated slide were read; see :func:`how_read`."""
    slides = tiles.attrs["source"].get("slides", {})
    return {name: where["outlines"] for name, where in slides.items() if "outlines" in where}


def names_read(tiles: pd.DataFrame) -> str:
    """The names of the outlines that gave a table its labels, and what each was read as.

    Behind each name stands the number of slides that have it. Empty if there are no outlines.
    """
    parts = []
    for reading in get_args(Reading):
        count = Counter(
            name
            for one in outlines_of(tiles).values()
            for name, how in one["names"].items()
            if how == reading
        )
        if count:
            parts.append(f"{reading}: " + ", ".join(f"{n} ({count[n]})" for n in sorted(count)))
    return f"Outlines (slides) read as {'; '.join(parts)}" if parts else ""
