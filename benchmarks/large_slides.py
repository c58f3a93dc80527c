"""Slides as large as real ones, for benchmarks of speed."""

import math
from pathlib import Path

import pyvips

from sslpath.files import atomic_path

MPP = 0.5


def without_jpeg(phantom: Path, target: Path) -> Path:
    """A phantom whose blocks are packed without loss (deflate)."""
    if not target.exists():
        with atomic_path(target) as temporary:
            pyvips.Image.new_from_file(str(phantom)).tiffsave(
                str(temporary), tile=True, pyramid=True, compression="deflate",
                tile_width=256, tile_height=256, xres=1000 / MPP, yres=1000 / MPP, resunit="cm",
            )  # fmt: skip
    return target


def gigapixel(phantom: Path, target: Path) -> Path:
    """A slide of more than a gigapixel, made of copies of a phantom."""
    if target.exists():
        return target
    image = pyvips.Image.new_from_file(str(phantom))
    times = math.ceil((1e9 / (image.width * image.height)) ** 0.5)
    image = image.replicate(times, times)
    if target.suffix == ".svs":
        words = (
            f"Aperio Image Library v12.0.0\r\n{image.width}x{image.height}|AppMag = 20|MPP = {MPP}"
        )
        image.set_type(pyvips.GValue.gstr_type, "image-description", words)
    with atomic_path(target) as temporary:
        image.tiffsave(
            str(temporary), tile=True, pyramid=True, compression="jpeg", Q=80, bigtiff=True,
            tile_width=256, tile_height=256, xres=1000 / MPP, yres=1000 / MPP, resunit="cm",
        )  # fmt: skip
    return target
