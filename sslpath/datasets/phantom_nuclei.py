"""The nuclei of a phantom slide: finding their places and stamping them onto the slide.

Places are drawn at random and thinned until no two nuclei overlap by more than a section of 4 um
shows; a nucleus is one sprite copied into a plane of haematoxylin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from sslpath.datasets import phantom_layout as lay
from sslpath.datasets.phantom_cells import MIXTURES, NAMES, SPRITES, Cell
from sslpath.datasets.phantom_layout import Field

Plane = NDArray[np.uint8]


def thin(xy: NDArray[np.float32], radius: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points stay if each, in order, stays unless one before it is too close.

    Two points are too close below the sum of their radii. Shapes ``(n, 2)`` and ``(n,)``.

    Example:
        >>> thin(np.array([[0, 0], [1, 0], [5, 0]], np.float32), np.ones(3, np.float32)).tolist()
        [True, False, True]
    """
    keep = np.zeros(len(xy), bool)
    if len(xy) == 0:
        return keep
    pairs = cKDTree(xy).query_pairs(2 * float(radius.max()), output_type="ndarray")
    gap = np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T)
    pairs = pairs[gap < radius[pairs[:, 0]] + radius[pairs[:, 1]]]
    open_ = np.ones(len(xy), bool)
    while open_.any():
        pairs = pairs[open_[pairs[:, 0]] & open_[pairs[:, 1]]]
        later = np.zeros(len(xy), bool)
        later[pairs[:, 1]] = True  # query_pairs gives i < j
        won = open_ & ~later
        keep |= won
        open_ &= ~won
        lost = pairs[won[pairs[:, 0]], 1]
        open_[lost] = False
    return keep


def _pack(xy: NDArray[np.float32], radius: NDArray[np.float32]) -> NDArray[np.bool_]:
    """As :func:`thin`, but big points choose first, so that they find room among the small."""
    big = radius > 4.0
    keep = np.zeros(len(xy), bool)
    keep[big] = thin(xy[big], radius[big])
    small = np.flatnonzero(~big)
    if keep.any() and len(small):
        gap, which = cKDTree(xy[keep]).query(xy[small], k=min(3, int(keep.sum())))
        clear = gap > radius[keep][which] + radius[small, None]
        small = small[clear.all(1)]
    keep[small] = thin(xy[small], radius[small])
    return keep


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a slide: centres in px ``(n, 2)``, index into :data:`NAMES`, sprite's index."""

    xy: NDArray[np.int32]
    cell: NDArray[np.uint8]
    sprite: NDArray[np.uint8]


def place(
    rng: np.random.Generator,
    layout: lay.Layout,
    cells: dict[str, Cell],
    mpp: float,
    axis: NDArray[np.float32],
    infiltrate: float,
) -> Nuclei:
    """Put nuclei into the tissues.

    Args:
        rng: Source of every choice.
        layout: The tissues.
        cells: The slide's own kinds of cell.
        mpp: um per pixel.
        axis: Direction of fibres and of gland walls per grid cell, radians; long nuclei follow it.
        infiltrate: Share of lymphocytes among tumour cells and stroma, on average.
    """
    h, w = layout.kind.shape
    area = h * w * (lay.GRID_PX * mpp) ** 2  # um2
    diameter = np.array([c.diameter for c in cells.values()], np.float32)
    room = np.array([c.room for c in cells.values()], np.float32)
    table = np.zeros((lay.KINDS, len(NAMES)))
    fill = np.zeros(lay.KINDS)
    for kind, (mixture, share) in MIXTURES.items():
        for name, part in mixture.items():
            table[kind, NAMES.index(name)] = part
        fill[kind] = share
    cumulative = table.cumsum(1)
    patchy = np.clip(infiltrate * np.exp(1.2 * layout.wild), 0, 0.8)
    infiltrated = (lay.STROMA, lay.DESMOPLASIA, lay.TUMOUR1, lay.TUMOUR2, lay.TUMOUR3)

    n = int(area / 12)
    at = rng.random((n, 2), dtype=np.float32) * np.array([w, h], np.float32)
    fuzzy = (at + rng.normal(0, 0.6, (n, 2))).astype(int)  # tissues mix over a few um
    row, column = fuzzy[:, 1].clip(0, h - 1), fuzzy[:, 0].clip(0, w - 1)
    kind = layout.kind[row, column]
    fat = gaussian_filter((layout.kind == lay.FAT).astype(np.float32), 0.8)
    inside = at.astype(int)
    solid = (
        (fat[inside[:, 1], inside[:, 0]] < 0.2)
        & (layout.tissue[row, column] > 2)
        & (layout.hollow[row, column] < -0.25)
    )
    stays = (rng.random(n) < fill[kind]) & solid
    cell = (rng.random(n)[:, None] > cumulative[kind]).sum(1).clip(0, len(NAMES) - 1)
    guest = np.isin(kind, infiltrated) & (rng.random(n) < patchy[row, column])
    cell[guest] = NAMES.index("lymphocyte")
    stays |= guest & solid & (rng.random(n) < 0.6)
    at, cell, row, column = at[stays], cell[stays], row[stays], column[stays]
    keep = _pack(at * lay.GRID_PX * mpp, (diameter * room / 2)[cell])
    at, cell, row, column = at[keep], cell[keep], row[keep], column[keep]
    stretch = np.array([c.stretch for c in cells.values()])[cell]
    loose = np.where(stretch > 1.4, 0.25, 3.0)
    turn = axis[row, column] + loose * rng.standard_normal(len(at))
    sprite = np.floor(turn / np.pi * SPRITES).astype(int) % SPRITES
    xy = np.floor(at * lay.GRID_PX).astype(np.int32)
    return Nuclei(xy, cell.astype(np.uint8), sprite.astype(np.uint8))


def stamp(plane: Plane, nuclei: Nuclei, sheets: list[NDArray[np.uint8]]) -> None:
    """Copy the nuclei's sprites into ``plane``, in place; where two overlap the darker shows."""
    height, width = plane.shape
    for (x, y), cell, index in zip(
        nuclei.xy.tolist(), nuclei.cell.tolist(), nuclei.sprite.tolist(), strict=True
    ):
        sheet = sheets[cell]
        half = sheet.shape[1] // 2
        x0, y0 = x - half, y - half
        x1, y1 = x + half + 1, y + half + 1
        sprite = sheet[index]
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            sprite = sprite[
                max(0, -y0) : sprite.shape[0] - max(0, y1 - height),
                max(0, -x0) : sprite.shape[1] - max(0, x1 - width),
            ]
            x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
        part = plane[y0:y1, x0:x1]
        np.maximum(part, sprite, out=part)


def stamp_bodies(
    nearest: Plane, second: Plane, nuclei: Nuclei, cells: dict[str, Cell], mpp: float
) -> None:
    """Write how close each pixel is to the nearest and second-nearest cell body, in place.

    Where the two are equal is a border between cells: a Voronoi diagram by stamping. Units are
    255 at a centre, falling by 8 a pixel at 0.5 um.
    """
    height, width = nearest.shape
    bodies = [cell.body for cell in cells.values()]
    reach = int(31 * 0.5 / mpp)
    y, x = np.indices((2 * reach + 1, 2 * reach + 1), np.float32) - reach
    cones = {}
    for index, body in enumerate(bodies):
        if body > 0:
            for k in range(12):
                a = k * np.pi / 12
                far = np.hypot(
                    (x * np.cos(a) + y * np.sin(a)) / 1.12, (y * np.cos(a) - x * np.sin(a)) * 1.12
                )
                size = body / 9.5
                cones[index, k] = np.clip(255 - far * 16 * mpp / size, 0, 255).astype(np.uint8)
    for (x0, y0), cell, index in zip(
        nuclei.xy.tolist(), nuclei.cell.tolist(), nuclei.sprite.tolist(), strict=True
    ):
        cone = cones.get((cell, index * 12 // SPRITES))
        if cone is None:
            continue
        top, left, bottom, right = y0 - reach, x0 - reach, y0 + reach + 1, x0 + reach + 1
        if top < 0 or left < 0 or bottom > height or right > width:
            cone = cone[
                max(0, -top) : cone.shape[0] - max(0, bottom - height),
                max(0, -left) : cone.shape[1] - max(0, right - width),
            ]
            top, left, bottom, right = (
                max(0, top),
                max(0, left),
                min(height, bottom),
                min(width, right),
            )
        first, runner = nearest[top:bottom, left:right], second[top:bottom, left:right]
        np.maximum(runner, np.minimum(first, cone), out=runner)
        np.maximum(first, cone, out=first)


def fibre_axis(layout: lay.Layout, fibres: list[Field], weave: Field) -> Field:
    """Direction along which fibres run and flat nuclei lie, radians, per grid cell.

    Args:
        layout: The tissues.
        fibres: Coordinates across the fibres of both woven families.
        weave: Positive where the second family lies on top.
    """

    def along(field: Field) -> Field:
        gy, gx = np.gradient(gaussian_filter(field, 1.5))
        return np.asarray(np.arctan2(gy, gx) + np.pi / 2, np.float32)

    axis = np.where(weave > 0, along(fibres[1]), along(fibres[0]))
    axis = np.where(np.abs(layout.depth) < 70, along(layout.depth), axis)
    axis = np.where(layout.kind == lay.WALL, along(layout.hollow), axis)
    # Gland walls: their cells stand across, the stroma around them lies along.
    nests = along(layout.epithelium)
    beside = (layout.epithelium > -0.9) & (layout.epithelium < 0)
    axis = np.where(beside, nests, axis)
    return np.where(layout.epithelium > 0, nests + np.pi / 2, axis).astype(np.float32)


def stamp_red_cells(plane: Plane, rng: np.random.Generator, layout: lay.Layout, mpp: float) -> None:
    """Fill some lumens of vessels with red cells, 7 um wide, as eosin in ``plane``, in place."""
    blood = (layout.kind == lay.VESSEL) & (layout.hollow > 0.1) & (layout.wild > rng.normal(0, 0.7))
    spill = (layout.kind == lay.SINUS) & (layout.wild > rng.uniform(1.2, 3))
    row, column = np.nonzero(blood | spill)
    if len(row) == 0:
        return
    side = 2 * int(np.ceil(4 / mpp)) + 1
    y, x = (np.indices((side, side), np.float32) - side // 2) * mpp
    sheet = []
    for k in range(12):
        a, flat = k * np.pi / 12, rng.uniform(1, 1.35)
        far = np.hypot(
            (x * np.cos(a) + y * np.sin(a)) * flat, (y * np.cos(a) - x * np.sin(a)) / flat**0.3
        )
        level = 88 - 26 * np.exp(-((far / 1.3) ** 2))
        sheet.append(level / (1 + np.exp((far - 3.1) * 4)))
    n = int(len(row) * (lay.GRID_PX * mpp) ** 2 / 5)
    pick = rng.integers(len(row), size=n)
    at = np.column_stack([column[pick], row[pick]]).astype(np.float32)
    at += rng.random((n, 2), dtype=np.float32)
    at = at[thin(at * lay.GRID_PX * mpp, np.full(n, 2.45, np.float32))]
    cells = Nuclei(
        np.floor(at * lay.GRID_PX).astype(np.int32),
        np.zeros(len(at), np.uint8),
        rng.integers(12, size=len(at)).astype(np.uint8),
    )
    stamp(plane, cells, [np.asarray(sheet).astype(np.uint8)])
