"""From stain to pixels: the laboratory's stain, the scanner's camera, and accidents on the way.

Beer-Lambert: the optical density of a pixel is haematoxylin times its colour vector plus eosin
times its own (Ruifrok and Johnston 2001). A laboratory sets vectors and concentrations, a scanner
white point, gamma, saturation and sharpness; slides of one laboratory still differ.
"""

from dataclasses import dataclass

import numpy as np
import pyvips
from numpy.typing import NDArray

from sslpath.datasets.phantom_layout import GRID_PX, Field, fractal, smooth_noise

UNIT = 80.0  # stain per optical density
HAEMATOXYLIN = (0.62, 0.72, 0.32)
EOSIN = (0.16, 0.84, 0.52)
LABORATORIES = 6
SCANNERS = 4


@dataclass(frozen=True)
class Colour:
    """How one slide turns stain into light; see :func:`colour`.

    Attributes:
        table: RGB of each (haematoxylin, eosin), shape ``(256, 256, 3)``.
        sigma: Blur of the optics, px at 0.5 um.
        sharpen: Strength of the scanner's sharpening.
        noise: Standard deviation of the camera's noise, grey levels.
        quality: Of the JPEG.
    """

    table: NDArray[np.uint8]
    sigma: float
    sharpen: float
    noise: float
    quality: int


def colour(laboratory: int, scanner: int, rng: np.random.Generator) -> Colour:
    """The colour of a slide of this laboratory on this scanner.

    Laboratories and scanners are the same in every set; ``rng`` adds what differs between slides.
    """
    lab = np.random.default_rng([1, laboratory])
    vectors = np.array([HAEMATOXYLIN, EOSIN]) + lab.normal(
        0, [[0.06, 0.04, 0.06], [0.05, 0.03, 0.09]]
    )
    vectors = np.clip(vectors + rng.normal(0, 0.015, (2, 3)), 0.01, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    amount = np.exp(lab.normal(0, [0.16, 0.2]) + rng.normal(0, 0.13, 2))

    camera = np.random.default_rng([2, scanner])
    white = camera.uniform(0.93, 0.985) * (1 + camera.normal(0, 0.008, 3))
    gamma = camera.uniform(0.85, 1.2)
    saturation = camera.uniform(0.75, 1.08)
    level = np.arange(256) / UNIT
    density = (level[:, None, None] * amount[0]) * vectors[0]
    density = density + (level[None, :, None] * amount[1]) * vectors[1]
    light = np.minimum(white, 1) * np.exp(-np.log(10) * density * 0.56) ** gamma
    grey = light.mean(-1, keepdims=True)
    light = grey + saturation * (light - grey)
    # A floor of stray light: the darkest nucleus is not black.
    light = 0.03 + 0.97 * light
    return Colour(
        table=np.clip(255 * light + 0.5, 0, 255).astype(np.uint8),
        sigma=float(camera.uniform(0.55, 1.0) * np.exp(0.1 * rng.standard_normal())),
        sharpen=float(camera.choice([0.0, 0.5, 1.0])),
        noise=float(camera.uniform(0.8, 2.4)),
        quality=int(camera.integers(80, 92)),
    )


def thickness(rng: np.random.Generator, shape: tuple[int, int], fold: bool) -> Field:
    """Factor on both stains per grid cell: an uneven section, with a fold or two if ``fold``."""
    thick = 1 + 0.07 * fractal(rng, shape, 90, 3)
    if fold:
        for _ in range(int(rng.integers(1, 3))):
            wave = fractal(rng, shape, 130, 3)
            row, column, width = (
                rng.integers(shape[0]),
                rng.integers(shape[1]),
                rng.uniform(0.03, 0.09),
            )
            part = smooth_noise(rng, shape, 120)
            part = np.clip((part - part[row, column] + 0.6) * 3, 0, 1)
            thick = thick + 0.9 * part * np.exp(-(((wave - wave[row, column]) / width) ** 4))
    return np.asarray(thick, np.float32)


def pen(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Field, NDArray[np.float32]]:
    """A stroke of a marker: (cover 0 to 1 per grid cell, optical density per channel)."""
    h, w = shape
    y, x = np.indices(shape, np.float32)
    cx, cy = rng.uniform(0, w), rng.choice([rng.uniform(0, 0.15), rng.uniform(0.85, 1)]) * h
    squash = rng.uniform(0.8, 1.6)
    far = np.hypot(x - cx, (y - cy) * squash)
    radius = far[int(rng.uniform(0.3, 0.7) * h), int(rng.uniform(0.1, 0.9) * w)]
    ring = np.abs(far - radius)
    ring = ring + 2.5 * fractal(rng, shape, 30, 3)
    width = rng.uniform(8, 20)
    cover = np.clip((width - ring) / 2.5, 0, 1) * (1 + 0.12 * fractal(rng, shape, 12, 2))
    inks = np.array([[0.65, 0.4, 0.06], [0.6, 0.16, 0.45], [0.85, 0.85, 0.8]])
    return cover.astype(np.float32), inks[rng.integers(3)].astype(np.float32)


def optics(
    rgb: NDArray[np.uint8], look: Colour, mpp: float, rng: np.random.Generator, blur: bool
) -> NDArray[np.uint8]:
    """Blur, sharpen and add noise as the scanner does; ``blur`` loses focus in places."""
    height, width = rgb.shape[:2]
    image = pyvips.Image.new_from_memory(rgb.data, width, height, 3, "uchar")
    sharp = image.gaussblur(look.sigma * 0.5 / mpp)
    if look.sharpen:
        sharp = sharp + (sharp - image.gaussblur(1.6 * 0.5 / mpp)) * look.sharpen
        sharp = sharp.cast("uchar")
    if blur:
        shape = (height // GRID_PX, width // GRID_PX)
        field = smooth_noise(rng, shape, 100)
        field = field - np.quantile(field, rng.uniform(0.5, 0.9))
        mask = np.clip(field * 2, 0, 1).astype(np.float32)
        out = pyvips.Image.new_from_memory(mask.data, shape[1], shape[0], 1, "float")
        out = out.resize(width / shape[1], vscale=height / shape[0], kernel="linear")
        soft = image.gaussblur(rng.uniform(2.0, 4.0) * 0.5 / mpp)
        sharp = (sharp + (soft - sharp) * out).cast("uchar")
    result = np.array(np.ndarray((height, width, 3), np.uint8, sharp.write_to_memory()))
    length = width * 3
    grains = np.rint(rng.normal(0, look.noise, max(1 << 18, 4 * length))).astype(np.int16)
    # One long noise, read from a random place for each row.
    for line, start in zip(result, rng.integers(len(grains) - length, size=height), strict=True):
        noisy = line.reshape(-1) + grains[start : start + length]
        line[:] = np.clip(noisy, 0, 255).reshape(width, 3)
    return result
