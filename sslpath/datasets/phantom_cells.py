"""The cells of a phantom slide: what kinds there are, which tissue holds which, how each looks.

Each kind has a sheet of sprites, drawn once a slide and turned through half a circle, which
:mod:`~sslpath.datasets.phantom_nuclei` stamps onto the slide.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sslpath.datasets import phantom_layout as lay

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
    "lymphocyte": Cell(6.7, 0.10, 1.12, 100, 0.28, 0.9, 0.12, room=0.81),
    "mantle": Cell(6.3, 0.08, 1.12, 108, 0.26, 0.9, 0.12, room=0.8),
    "blast": Cell(9.6, 0.16, 1.15, 55, 0.40, 0.8, 0.5, 1.6, 0.06),
    "centrocyte": Cell(7.6, 0.14, 1.45, 66, 0.35, 0.8, 0.35, 0.4, 0.12),
    "histiocyte": Cell(9.0, 0.14, 1.5, 46, 0.3, 0.8, 0.55, 0.7, 0.08, 9.0),
    "plasma": Cell(6.8, 0.08, 1.08, 96, 0.5, 1.3, 0.15, room=1.35),
    "fibroblast": Cell(6.2, 0.22, 3.6, 84, 0.25, 0.8, 0.15, 0.2, 0.05),
    "muscle": Cell(6.4, 0.18, 3.8, 70, 0.25, 0.8, 0.2),
    "endothelium": Cell(6.4, 0.15, 2.2, 82, 0.3, 0.8, 0.25),
    "debris": Cell(2.8, 0.4, 1.2, 120, 0.1, 1.0, 0.0, lumpy=0.2),
    "mitosis": Cell(8.0, 0.2, 1.9, 135, 0.2, 0.9, 0.0, 0, 0.35, 9.5),
    "tumour 1": Cell(7.9, 0.11, 1.45, 62, 0.32, 0.8, 0.35, 0.7, 0.06, 8.5, 1.05),
    "tumour 2": Cell(9.4, 0.16, 1.35, 56, 0.38, 0.9, 0.45, 1.1, 0.10, 9.5, 1.12),
    "tumour 3": Cell(10.8, 0.25, 1.3, 54, 0.45, 1.0, 0.5, 1.6, 0.15, 11.5, 1.24),
}
NAMES = tuple(CELLS)

# For each painted kind of tissue: cells, their shares, and how many of the places that would fit
# are filled.
MIXTURES: dict[int, tuple[dict[str, float], float]] = {
    lay.CAPSULE: ({"fibroblast": 0.9, "lymphocyte": 0.1}, 0.09),
    lay.STROMA: ({"fibroblast": 0.8, "lymphocyte": 0.14, "plasma": 0.06}, 0.10),
    lay.DESMOPLASIA: ({"fibroblast": 0.75, "lymphocyte": 0.2, "plasma": 0.05}, 0.22),
    lay.CORTEX: (
        {"lymphocyte": 0.98, "blast": 0.008, "histiocyte": 0.004, "endothelium": 0.008},
        0.97,
    ),
    lay.MANTLE: ({"mantle": 0.995, "blast": 0.005}, 1.0),
    lay.PARACORTEX: (
        {"lymphocyte": 0.935, "blast": 0.02, "histiocyte": 0.02, "endothelium": 0.025},
        0.85,
    ),
    lay.GERMINAL: (
        {"blast": 0.45, "centrocyte": 0.43, "histiocyte": 0.05, "lymphocyte": 0.05, "debris": 0.02},
        0.95,
    ),
    lay.SINUS: ({"histiocyte": 0.25, "lymphocyte": 0.7, "plasma": 0.05}, 0.40),
    lay.FAT: ({"fibroblast": 1.0}, 0.0),
    lay.WALL: ({"muscle": 0.8, "endothelium": 0.2}, 0.28),
    lay.NECROSIS: ({"debris": 0.8, "lymphocyte": 0.2}, 0.18),
    lay.TUMOUR1: ({"tumour 1": 0.965, "lymphocyte": 0.03, "mitosis": 0.001}, 0.97),
    lay.TUMOUR2: ({"tumour 2": 0.95, "lymphocyte": 0.04, "mitosis": 0.003}, 0.97),
    lay.TUMOUR3: ({"tumour 3": 0.92, "lymphocyte": 0.05, "mitosis": 0.006, "debris": 0.01}, 0.95),
}


def vary(rng: np.random.Generator) -> dict[str, Cell]:
    """The cells of one slide: every patient's differ a little, their tumours a lot."""
    cells = {}
    for name, cell in CELLS.items():
        tumour = name.startswith(("tumour", "mitosis"))
        by = 0.11 if tumour else 0.04

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
    soft = rng.choice([0.8, 1.1, 1.8], n, p=[0.6, 0.32, 0.08])[:, None, None]  # out of focus
    cover = 1 / (1 + np.exp(-(inside - 0.3) * 2.2 / soft))
    grain = gaussian_filter(
        rng.standard_normal(u.shape, dtype=np.float32),
        (0, cell.grain / mpp / 2, cell.grain / mpp / 2),
    )
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
    return np.asarray(np.clip(cell.stain * depth * stain * cover, 0, 255), np.uint8)
