"""Where the tissues of a phantom slide lie: a lymph node, its surroundings, and metastases in it.

Everything is drawn from smooth random fields on a coarse grid of :data:`GRID_PX` pixels, so that a
border is the level line of a field and never a straight edge. Two maps come out: ``labels``, the
ground truth as a pathologist would outline it, and ``kind``, what is really painted (an outlined
tumour also holds stroma, lymphocytes, glands' lumens and necrosis).

Not modelled: more than one node on a slide, and anything that a lymph node does not hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

GRID_PX = 8

TISSUES = (
    "background",
    "capsule",
    "stroma",
    "cortex",
    "germinal centre",
    "sinus",
    "fat",
    "vessel",
    "tumour grade 1",
    "tumour grade 2",
    "tumour grade 3",
)
(BACKGROUND, CAPSULE, STROMA, CORTEX, GERMINAL, SINUS, FAT, VESSEL, TUMOUR1, TUMOUR2, TUMOUR3) = (
    range(len(TISSUES))
)
# Painted, but outlined as part of something else.
MANTLE, PARACORTEX, NECROSIS, WALL, DESMOPLASIA = range(len(TISSUES), len(TISSUES) + 5)
KINDS = len(TISSUES) + 5

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """The maps of one slide, each ``(h, w)`` with a cell of :data:`GRID_PX` level-0 pixels.

    Attributes:
        labels: Ground truth, index into :data:`TISSUES`.
        kind: What is painted, index below :data:`KINDS`.
        tissue: Positive on tissue, negative on glass, um from the edge.
        epithelium: Positive where tumour cells lie, in units of the nests' field.
        hollow: Positive in lumens of vessels and glands; around vessels in units of 10 um.
        depth: um below the node's surface; collagen of the capsule runs along it.
        wild: Smooth noise of unit variance, for whatever varies slowly over a slide.
    """

    labels: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    tissue: Field
    epithelium: Field
    hollow: Field
    depth: Field
    wild: Field


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Field:
    """Gaussian noise ``shape`` whose correlation length is ``scale`` cells, with unit variance."""
    step = max(1.0, scale / 3)
    h, w = (int(np.ceil(n / step)) + 1 for n in shape)
    pad = int(4 * scale / step) + 1
    coarse = rng.standard_normal((h + 2 * pad, w + 2 * pad), dtype=np.float32)
    coarse = gaussian_filter(coarse, scale / step, truncate=3.0)
    coarse *= 2 * np.sqrt(np.pi) * scale / step  # the filter's loss of variance
    image = Image.fromarray(coarse[pad : pad + h, pad : pad + w])
    box = (0.0, 0.0, shape[1] / step, shape[0] / step)
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC, box=box))


def fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    scale: float,
    octaves: int = 4,
    gain: float = 0.55,
) -> Field:
    """Sum of smooth noises, each half as long and ``gain`` as strong as the one before."""
    weights = gain ** np.arange(octaves)
    total = sum(
        weight * smooth_noise(rng, shape, max(0.8, scale / 2**octave))
        for octave, weight in enumerate(weights)
    )
    return np.asarray(total / np.sqrt(np.sum(weights**2)), np.float32)


def signed_distance(inside: NDArray[np.bool_], cell_um: float) -> Field:
    """Distance to the border of ``inside`` in um, positive inside."""
    if not inside.any() or inside.all():
        return np.full(inside.shape, 1e4 if inside.any() else -1e4, np.float32)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return np.asarray(distance * cell_um, np.float32)


def make_layout(
    rng: np.random.Generator,
    shape: tuple[int, int],
    cell_um: float,
    tumour: float,
    grades: tuple[int, ...],
) -> Layout:
    """Draw the tissues of one slide.

    Args:
        rng: Source of every choice.
        shape: Rows and columns of the grid.
        cell_um: Side of a grid cell, um.
        tumour: Share of the node that is outlined as tumour, 0 to 1.
        grades: One or two of 1, 2, 3.
    """
    h, w = shape
    y, x = (np.indices(shape, dtype=np.float32) + 0.5) * cell_um
    width, height = w * cell_um, h * cell_um

    def noise(scale_um: float, octaves: int = 1, gain: float = 0.55) -> Field:
        return fractal(rng, shape, max(0.8, scale_um / cell_um), octaves, gain)

    # The node: a warped ellipse, often cut off by the border of the scanned area.
    cx, cy = rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height
    a, b = rng.uniform(0.4, 0.75) * width, rng.uniform(0.42, 0.8) * height
    turn = rng.uniform(-0.5, 0.5)
    dx, dy = x - cx, y - cy
    dx, dy = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    node = 1 - np.sqrt((dx / a) ** 2 + (dy / b) ** 2) + 0.13 * noise(350, 4)
    depth = signed_distance(node > 0, cell_um)
    warped = depth + 12 * noise(60, 3)

    kind = np.full(shape, CORTEX, np.uint8)
    kind[(noise(260, 3) + (warped - 450) / 350) > 0.6] = PARACORTEX
    # Medulla: cords of lymphocytes between sinuses.
    channels = np.abs(noise(45, 2)) < rng.uniform(0.25, 0.6)
    deep = (warped - rng.uniform(450, 1000)) / 300 + noise(220, 2)
    kind[(deep > 0) & channels] = SINUS
    # Follicles under the capsule, most with a germinal centre.
    for _ in range(int(rng.poisson(max(2.0, 7.5e-6 * width * height * rng.uniform(0.3, 1.2))))):
        row, column = rng.integers(h), rng.integers(w)
        radius = float(rng.uniform(90, 230))
        squash = rng.uniform(0.7, 1.4)
        if not 0.6 * radius < depth[row, column] < 750:
            continue
        gap = np.hypot((x - x[row, column]) * squash, (y - y[row, column]) / squash)
        gap = gap * (1 + 0.12 * noise(70, 2))
        kind[gap < radius] = MANTLE
        if rng.random() < 0.85:
            kind[gap < radius * rng.uniform(0.6, 0.82)] = GERMINAL
    # Trabeculae, the subcapsular sinus, the capsule.
    ridge = np.abs(noise(170, 2)) * 170
    kind[(ridge < rng.uniform(6, 16) * (1.4 - warped / 800)) & (warped < 900)] = STROMA
    thickness = rng.uniform(18, 55) * np.exp(0.35 * noise(200, 2))
    kind[warped < thickness + rng.uniform(8, 30) * np.exp(0.5 * noise(120))] = SINUS
    kind[warped < thickness] = CAPSULE
    # Around the node: fat with strands, then glass. A hilum of fat and stroma reaches in.
    reach = rng.uniform(0, 1) ** 2 * 900 * np.exp(0.6 * noise(300, 3)) - 30
    hilum_x, hilum_y = cx + a * rng.uniform(-0.9, 0.9), cy + b * rng.choice([-0.75, 0.75])
    hilum_size = rng.uniform(0, 520)
    hilum = hilum_size - np.hypot(x - hilum_x, (y - hilum_y) / 1.3) + 130 * noise(160, 3)
    outside = (depth < 0) | (hilum > 60)
    kind[(hilum > 0) & (warped > 0)] = STROMA
    kind[outside] = FAT
    kind[outside & (np.abs(noise(110, 3)) < rng.uniform(0.04, 0.16))] = STROMA
    kind[outside & (noise(140, 3) > rng.uniform(1.0, 2.0))] = STROMA
    tissue = np.where(hilum > 0, np.maximum(depth + reach, hilum), depth + reach)
    tissue = np.asarray(tissue + 6 * noise(25, 2), np.float32)

    hollow = _vessels(rng, x, y, kind, tissue, noise)
    tumour_map, epithelium, lumen = _tumour(rng, kind, depth, tissue, noise, tumour, grades)
    epithelium[np.isin(kind, (VESSEL, WALL))] = -1
    grown = epithelium > 0
    kind[(tumour_map > 0) & ~np.isin(kind, (VESSEL, WALL))] = DESMOPLASIA
    lymphoid = (tumour_map > 0) & (noise(70, 3) > rng.uniform(-0.6, 1.6)) & (depth > 60)
    kind[lymphoid & (kind == DESMOPLASIA)] = CORTEX
    kind[grown] = tumour_map[grown]
    if max(grades) > 1 and rng.random() < 0.6:
        kind[grown & (noise(90, 3) > rng.uniform(1.1, 1.8))] = NECROSIS
    hollow = np.maximum(hollow, np.where(grown, lumen, -4)).astype(np.float32)

    labels = kind.copy()
    labels[np.isin(kind, (MANTLE, PARACORTEX))] = CORTEX
    labels[kind == WALL] = VESSEL
    inside = (tumour_map > 0) & (labels != VESSEL)
    labels[inside] = tumour_map[inside]
    labels[tissue <= 0] = BACKGROUND
    kind[tissue <= -2 * cell_um] = BACKGROUND
    return Layout(labels, kind, tissue, epithelium, hollow, depth, noise(400, 3))


def _vessels(
    rng: np.random.Generator,
    x: Field,
    y: Field,
    kind: NDArray[np.uint8],
    tissue: Field,
    noise: Callable[..., Field],
) -> Field:
    """Cut vessels into ``kind`` (in place); returns the field of their lumens."""
    hollow = np.full(kind.shape, -4, np.float32)
    width, height = float(x.max()), float(y.max())
    bend_x, bend_y = 25 * noise(80, 2), 25 * noise(80, 2)
    for _ in range(int(rng.poisson(4e-6 * width * height)) + 1):
        row, column = rng.integers(kind.shape[0]), rng.integers(kind.shape[1])
        if tissue[row, column] < 60:
            continue
        lumen = float(np.exp(rng.uniform(np.log(4), np.log(45))))
        wall = 5 + lumen * rng.uniform(0.15, 0.9)
        angle, half = rng.uniform(0, np.pi), lumen * rng.exponential(1.2)
        dx, dy = x - x[row, column] + bend_x, y - y[row, column] + bend_y
        along = np.clip(dx * np.cos(angle) + dy * np.sin(angle), -half, half)
        gap = np.hypot(dx - along * np.cos(angle), dy - along * np.sin(angle))
        gap = gap + 0.3 * lumen * noise(max(20.0, 1.5 * lumen), 2)
        kind[gap < lumen + wall] = WALL
        kind[gap < lumen] = VESSEL
        hollow = np.maximum(hollow, (lumen - gap) / 10)
    return hollow


def _tumour(
    rng: np.random.Generator,
    kind: NDArray[np.uint8],
    depth: Field,
    tissue: Field,
    noise: Callable[..., Field],
    share: float,
    grades: tuple[int, ...],
) -> tuple[NDArray[np.uint8], Field, Field]:
    """Outline tumour and its nests: (grade's tissue or 0, epithelium field, lumen field)."""
    place = np.zeros(kind.shape, np.uint8)
    nothing = np.full(kind.shape, -1, np.float32)
    node = (depth > -60) & (tissue > 10)
    if share <= 0 or not node.any():
        return place, nothing, nothing
    # Metastases start at the subcapsular sinus and grow inwards, with islands before the front.
    potential = noise(rng.uniform(260, 480), 5, 0.75) + 0.7 * np.exp(-np.maximum(depth, 0) / 350)
    potential = potential - np.quantile(potential[node], 1 - share)
    potential = np.where(node, potential, -3).astype(np.float32)
    second = noise(300, 3) > 0
    grade = np.where(second, grades[0], grades[-1])
    scale = {1: 20, 2: 17, 3: 26}[grades[0]]  # um
    nests = noise(scale * rng.uniform(0.75, 1.4), 2)
    lows, highs = (np.zeros(kind.shape, np.float32) for _ in range(2))
    shift = rng.uniform(-0.35, 0.5)  # some tumours are mostly stroma
    # Glands with lumens, cribriform nests, solid sheets: thresholds of epithelium and of lumen.
    for g, low, high in ((1, -0.2, 1.35), (2, -0.35, 1.9), (3, -0.9, 3.2)):
        lows[grade == g], highs[grade == g] = low + shift, high + shift
    cover = np.clip(noise(150, 3) * 0.5, -0.8, 1.2)
    epithelium = nests - lows - np.maximum(cover, 0) - 4 * np.maximum(-potential, 0)
    epithelium = np.where(node & (potential > -0.6), epithelium, -1)
    grown = (potential > 0) | binary_dilation(epithelium > 0, iterations=3)
    place[grown & node] = (TUMOUR1 - 1 + grade)[grown & node]
    return place, epithelium.astype(np.float32), (nests - highs).astype(np.float32)
