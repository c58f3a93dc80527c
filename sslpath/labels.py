"""What outlines say about tiles: tumour or not, and which kind of tissue.

A tile is

- 1 (tumour) if at least half of it (``tumour_share``) lies in tumour that is not excluded;
- 0 if it touches neither tumour nor an excluded area, and the slide was annotated exhaustively;
- missing otherwise: on the rim of a tumour, in what is excluded, and, where the annotation is not
  exhaustive, wherever no tumour is drawn.

Its region is the name of the outline that covers most of it, missing if none does. Which names
mean tumour or excluded stands in :mod:`sslpath.annotations`.
"""

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from sslpath.annotations import Annotations


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
    if exhaustive:
        label[(tumour == 0) & (share_inside(annotations.excluded, boxes) == 0)] = 0
    # Overlays are exact but for rounding: half a tile may come out as 0.49999999.
    label[tumour >= tumour_share - 1e-9] = 1
    most = np.zeros(len(boxes))
    for name, area in annotations.kinds.items():
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
