"""Textures of a phantom slide: noise that wraps, upsampled fields, and the walls of fat cells."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from sslpath.datasets import phantom_layout as lay
from sslpath.datasets import phantom_nuclei as nuc
from sslpath.datasets.phantom_layout import Field


def wrapped_noise(
    rng: np.random.Generator, side: int, *scales: tuple[float, float, float]
) -> Field:
    """Noise ``(side, side)`` of unit variance that wraps; scales are (weight, rows, columns) px."""
    white = fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    rows = fft.fftfreq(side).astype(np.float32)[:, None]
    columns = fft.rfftfreq(side).astype(np.float32)[None]
    keep = np.zeros(white.shape, np.float32)
    for weight, down, across in scales:
        # A Gaussian filter in frequency; the factor gives each scale unit variance.
        gain = weight * 2 * np.sqrt(np.pi * down * across)
        keep += gain * np.exp(-2 * np.pi**2 * ((rows * down) ** 2 + (columns * across) ** 2))
    noise = fft.irfft2(white * keep, s=(side, side))
    return np.asarray(noise / noise.std(), np.float32)


def cut(
    field: Field, row: int, column: int, size: tuple[int, int], cell: int, smooth: bool = False
) -> Field:
    """Upsample the part of a coarse ``field`` under a block of ``size`` px at (row, column).

    ``smooth`` (bicubic) is for fields whose level lines show as borders.
    """
    box = (column / cell, row / cell, (column + size[1]) / cell, (row + size[0]) / cell)
    left, top = max(0, int(box[0]) - 3), max(0, int(box[1]) - 3)
    part = field[top : int(box[3]) + 4, left : int(box[2]) + 4]
    box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    image = Image.fromarray(np.ascontiguousarray(part, np.float32))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    return np.asarray(image.resize((size[1], size[0]), how, box=box))


def step(x: Field, width: float) -> Field:
    """0 well below zero, 1 well above, over about ``width``."""
    y = np.clip(x / np.float32(width) + np.float32(0.5), 0, 1)
    return np.asarray(y * y * (3 - 2 * y), np.float32)


class Adipocytes:
    """Fat: round cells pressed together, a Voronoi diagram with rounded corners and thin walls."""

    def __init__(self, rng: np.random.Generator, layout: lay.Layout, mpp: float):
        h, w = layout.kind.shape
        self.cell_um = lay.GRID_PX * mpp
        n = int(h * w * self.cell_um**2 / 400) + 20
        radius = rng.normal(26, 6, n).clip(13, 45).astype(np.float32)
        at = (rng.random((n, 2)) * [w, h] * self.cell_um).astype(np.float32)
        self.centres = at[nuc.thin(at, radius)]
        # Which three cells are nearest changes slowly: look them up on the coarse grid.
        self.nearest = np.zeros((4, h, w), np.int32)
        row, column = np.nonzero(binary_dilation(layout.kind == lay.FAT, iterations=8))
        where = np.column_stack([column + 0.5, row + 0.5]) * self.cell_um
        if len(where) and len(self.centres) > 3:
            self.nearest[:, row, column] = cKDTree(self.centres).query(where, k=4)[1].T

    def wall(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> Field:
        """Distance to the nearest wall at the points ``(x, y)``, um."""
        h, w = self.nearest.shape[1:]
        row = (y / self.cell_um).astype(np.int32).clip(0, h - 1)
        column = (x / self.cell_um).astype(np.int32).clip(0, w - 1)
        centres = self.centres[self.nearest[:, row, column]]
        gap = np.sort(np.hypot(centres[..., 0] - x, centres[..., 1] - y), axis=0)
        a, b = gap[1] - gap[0], gap[2] - gap[0]
        return np.asarray(a * b / (a + b + 1e-3), np.float32)
