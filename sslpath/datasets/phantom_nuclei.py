"""The nuclei of a phantom slide: their kinds, their places, and stamping them onto the slide.

Each kind of cell has a sheet of sprites, drawn once a slide, turned through half a circle; a
nucleus is one sprite copied into a plane of haematoxylin. Places are drawn at random and thinned
until no two nuclei overlap by more than a section of 4 um shows.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from sslpath.datasets import phantom_layout as lay

Plane = NDArray[np.uint8]
SPRITES = 96


@dataclass(frozen=True)
class Cell:
    """One kind of cell. Lengths in um; stain in units of the plane, 80 = optical density 1.

    Attributes:
        diameter: Mean diameter of the nucleus (geometric mean of its axes).
        spread: Its relative standard deviation.
        stretch: Long axis over short axis.
        stain: Haematoxylin.
        clumps: Strength of the chromatin's texture, relative.
        grain: Size of the clumps.
        rim: Extra stain of the nuclear membrane, relative; with pale chromatin it looks vesicular.
        nucleoli: Mean number.
        lumpy: Irregularity of the outline.
        body: Radius of the cell around the nucleus; 0 leaves the cytoplasm undrawn.
        room: Centres keep ``room`` times the sum of two nuclear radii apart.
    """

    diameter: float
    spread: float = 0.08
    stretch: float = 1.15
    stain: float = 90
    clumps: float = 0.25
    grain: float = 0.8
    rim: float = 0.2
    nucleoli: float = 0.0
    lumpy: float = 0.05
    body: float = 0.0
    room: float = 0.95


CELLS = {
    "lymphocyte": Cell(6.4, 0.10, 1.12, 98, 0.30, 0.9, 0.15),
    "mantle": Cell(6.0, 0.08, 1.12, 108, 0.28, 0.9, 0.15),
    "blast": Cell(9.6, 0.16, 1.15, 55, 0.40, 0.8, 0.5, 1.6, 0.06),
    "centrocyte": Cell(7.6, 0.14, 1.45, 66, 0.35, 0.8, 0.35, 0.4, 0.12),
    "histiocyte": Cell(9.0, 0.14, 1.5, 46, 0.3, 0.8, 0.55, 0.7, 0.08, 9.0),
    "plasma": Cell(6.8, 0.08, 1.08, 96, 0.5, 1.3, 0.15, room=1.35),
    "fibroblast": Cell(6.2, 0.22, 3.6, 84, 0.25, 0.8, 0.15, 0.2, 0.05),
    "muscle": Cell(6.4, 0.18, 3.8, 70, 0.25, 0.8, 0.2),
    "endothelium": Cell(6.4, 0.15, 2.2, 82, 0.3, 0.8, 0.25),
    "debris": Cell(2.8, 0.4, 1.2, 120, 0.1, 1.0, 0.0, lumpy=0.2),
    "mitosis": Cell(8.0, 0.2, 1.9, 135, 0.2, 0.9, 0.0, 0, 0.35, 9.5),
    "tumour 1": Cell(9.0, 0.12, 1.45, 68, 0.32, 0.8, 0.35, 0.7, 0.06, 9.0, 1.15),
    "tumour 2": Cell(10.5, 0.17, 1.3, 66, 0.38, 0.9, 0.4, 1.1, 0.10, 9.5, 1.15),
    "tumour 3": Cell(12.0, 0.26, 1.3, 64, 0.45, 1.0, 0.45, 1.5, 0.17, 11.0, 1.15),
}
NAMES = tuple(CELLS)

# For each painted kind of tissue: cells, their shares, and how many of the places that would fit
# are filled.
MIXTURES: dict[int, tuple[dict[str, float], float]] = {
    lay.CAPSULE: ({"fibroblast": 0.9, "lymphocyte": 0.1}, 0.09),
    lay.STROMA: ({"fibroblast": 0.8, "lymphocyte": 0.14, "plasma": 0.06}, 0.10),
    lay.DESMOPLASIA: ({"fibroblast": 0.75, "lymphocyte": 0.2, "plasma": 0.05}, 0.22),
    lay.CORTEX: ({"lymphocyte": 0.93, "blast": 0.03, "histiocyte": 0.02, "endothelium": 0.02}, 0.95),
    lay.MANTLE: ({"mantle": 0.98, "blast": 0.02}, 1.0),
    lay.PARACORTEX: (
        {"lymphocyte": 0.82, "blast": 0.08, "histiocyte": 0.05, "endothelium": 0.05},
        0.85,
    ),
    lay.GERMINAL: (
        {"blast": 0.45, "centrocyte": 0.43, "histiocyte": 0.05, "lymphocyte": 0.05, "debris": 0.02},
        0.95,
    ),
    lay.SINUS: ({"histiocyte": 0.45, "lymphocyte": 0.5, "plasma": 0.05}, 0.40),
    lay.FAT: ({"fibroblast": 1.0}, 0.0),
    lay.WALL: ({"muscle": 0.8, "endothelium": 0.2}, 0.28),
    lay.NECROSIS: ({"debris": 0.8, "lymphocyte": 0.2}, 0.18),
    lay.TUMOUR1: ({"tumour 1": 0.965, "lymphocyte": 0.03, "mitosis": 0.005}, 0.97),
    lay.TUMOUR2: ({"tumour 2": 0.95, "lymphocyte": 0.04, "mitosis": 0.01}, 0.97),
    lay.TUMOUR3: ({"tumour 3": 0.92, "lymphocyte": 0.05, "mitosis": 0.02, "debris": 0.01}, 0.95),
}


def vary(rng: np.random.Generator) -> dict[str, Cell]:
    """The cells of one slide: every patient's differ a little, their tumours a lot."""
    cells = {}
    for name, cell in CELLS.items():
        tumour = name.startswith(("tumour", "mitosis"))
        by = 0.14 if tumour else 0.04

        def factor(by: float = by) -> float:
            return float(np.exp(by * rng.standard_normal()))

        cells[name] = replace(
            cell,
            diameter=cell.diameter * factor(),
            stretch=max(1.0, cell.stretch * factor()),
            stain=cell.stain * factor(),
            clumps=cell.clumps * factor(),
            nucleoli=cell.nucleoli * factor(4 * by),
            body=cell.body * factor(),
            room=cell.room * (factor() if tumour else 1.0),
        )
    return cells


def sprites(cell: Cell, mpp: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw :data:`SPRITES` nuclei, the i-th turned by ``i / SPRITES`` of half a circle.

    Returns:
        Haematoxylin, shape ``(SPRITES, side, side)``.
    """
    n = SPRITES
    mean = cell.diameter / 2 / mpp
    radius = mean * np.exp(cell.spread * rng.standard_normal(n)).clip(0.5, 1.9)[:, None, None]
    stretch = np.sqrt(1 + (cell.stretch - 1) * rng.gamma(4, 0.25, n))[:, None, None]
    side = 2 * int(np.ceil((radius * stretch).max() * (1 + cell.lumpy) + 2)) + 1
    y, x = np.indices((side, side), np.float32) - side // 2
    angle = (np.arange(n) * np.pi / n)[:, None, None]
    u = (x * np.cos(angle) + y * np.sin(angle)) / (radius * stretch)
    v = (y * np.cos(angle) - x * np.sin(angle)) / radius * stretch
    v = v + rng.normal(0, 0.12, n)[:, None, None] * (u**2) * (stretch - 1)
    turn = np.arctan2(v, u)
    edge = np.zeros_like(u)
    for k in (2, 3, 4, 5):
        size, phase = rng.normal(0, cell.lumpy / np.sqrt(k - 1), n), rng.uniform(0, 6.3, n)
        edge += size[:, None, None] * np.cos(k * turn + phase[:, None, None])
    inside = (1 + edge - np.hypot(u, v)) * radius / stretch  # px from the outline, roughly
    soft = rng.choice([0.8, 1.1, 1.8], n, p=[0.5, 0.35, 0.15])[:, None, None]  # out of focus
    cover = 1 / (1 + np.exp(-(inside - 0.3) * 2.2 / soft))
    grain = gaussian_filter(rng.standard_normal(u.shape), (0, cell.grain / mpp / 2, cell.grain / mpp / 2))
    grain = grain / grain.std()
    stain = 1 + cell.clumps * np.where(grain > 0, grain, 0.6 * grain)
    stain = stain + cell.rim * np.exp(-(((inside - 1.2) / (0.9 / mpp * 0.5)) ** 2)) / soft
    count = rng.poisson(cell.nucleoli, n)
    for k in range(3):
        where, far = rng.uniform(0, 2 * np.pi, n), rng.uniform(0, 0.55, n)
        px = (far * np.cos(where))[:, None, None]
        py = (far * np.sin(where))[:, None, None]
        size = (rng.uniform(0.5, 1.0, n) / mpp * cell.diameter / 11)[:, None, None]
        spot = np.exp(-((np.hypot(u - px, v - py) * radius / size) ** 2))
        stain = stain + np.where((count > k)[:, None, None], 0.9 * spot, 0)
    depth = rng.normal(1, 0.16, n).clip(0.5, 1.5)[:, None, None] / soft**0.5
    return np.clip(cell.stain * depth * stain * cover, 0, 255).astype(np.uint8)


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
    # Pairs of two small points lie closer than pairs with a big one: two trees save most pairs.
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

    n = int(area / 22)
    at = rng.random((n, 2), dtype=np.float32) * np.array([w, h], np.float32)
    fuzzy = (at + rng.normal(0, 0.6, (n, 2))).astype(int)  # tissues mix over a few um
    row, column = fuzzy[:, 1].clip(0, h - 1), fuzzy[:, 0].clip(0, w - 1)
    kind = layout.kind[row, column]
    solid = (layout.tissue[row, column] > 2) & (layout.hollow[row, column] < 0.05)
    stays = (rng.random(n) < fill[kind]) & solid
    cell = (rng.random(n)[:, None] > cumulative[kind]).sum(1).clip(0, len(NAMES) - 1)
    guest = np.isin(kind, infiltrated) & (rng.random(n) < patchy[row, column])
    cell[guest] = NAMES.index("lymphocyte")
    stays |= guest & solid & (rng.random(n) < 0.6)
    at, cell, row, column = at[stays], cell[stays], row[stays], column[stays]
    # Sparse tissues were thinned before packing; big cells go first so that they find room.
    order = np.argsort(-(diameter[cell] > 7.5).astype(int), kind="stable")
    at, cell, row, column = at[order], cell[order], row[order], column[order]
    keep = thin(at * lay.GRID_PX * mpp, (diameter * room / 2)[cell])
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
            top, left, bottom, right = max(0, top), max(0, left), min(height, bottom), min(width, right)
        first, runner = nearest[top:bottom, left:right], second[top:bottom, left:right]
        np.maximum(runner, np.minimum(first, cone), out=runner)
        np.maximum(first, cone, out=first)


def fibre_axis(layout: lay.Layout) -> NDArray[np.float32]:
    """Direction along which fibres run and flat nuclei lie, radians, per grid cell.

    Along the capsule near the surface, around nests in tumour, along smooth noise elsewhere.
    """
    flow = gaussian_filter(layout.wild, 6) * 120
    field = np.where(layout.depth < 150, layout.depth, flow)
    near = np.abs(layout.epithelium) < 1.5
    field = np.where(near, gaussian_filter(layout.epithelium, 1.5) * 30, field)
    gy, gx = np.gradient(gaussian_filter(field, 2.0))
    return np.asarray(np.arctan2(gy, gx) + np.pi / 2, np.float32)


def stamp_red_cells(
    plane: Plane, rng: np.random.Generator, layout: lay.Layout, mpp: float
) -> None:
    """Fill some lumens of vessels with red cells, 7 um wide, as eosin in ``plane``, in place."""
    h, w = layout.kind.shape
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
    n = int(len(row) * (lay.GRID_PX * mpp) ** 2 / 14)
    pick = rng.integers(len(row), size=n)
    at = np.column_stack([column[pick], row[pick]]) + rng.random((n, 2))
    at = at.astype(np.float32)[thin(at.astype(np.float32) * lay.GRID_PX * mpp, np.full(n, 2.7, np.float32))]
    cells = Nuclei(
        np.floor(at * lay.GRID_PX).astype(np.int32),
        np.zeros(len(at), np.uint8),
        rng.integers(12, size=len(at)).astype(np.uint8),
    )
    stamp(plane, cells, [np.asarray(sheet).astype(np.uint8)])
