"""Open OpenSlide handles: few, with one tile cache for all, one set per process.

Every OpenSlide handle has a tile cache of its own unless told otherwise, neither pickles nor
survives a fork, and is of no more use after its first error. All of that is dealt with here, so
that :mod:`sslpath.slides` can treat a slide as a mere path.

One fault of files is mended too: colours that are declared RGB, but are luma and chroma; see
:mod:`sslpath.jpeg_colours`.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from sslpath.errors import SlideError, TileReadError
from sslpath.jpeg_colours import is_ycbcr_as_rgb
from sslpath.tiff_blocks import VENDORS, BlockCache, TiffBlocks
from sslpath.tiff_tags import Tags, directories_of, oddity

MAX_HANDLES = 8
CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class OpenSlideFile:
    """An open slide and what is asked of it again and again.

    ``level_downsamples`` are OpenSlide's, the mean of both axes. ``level_scales`` are how many
    level-0 px a pixel of a level is wide and high: of a long, narrow slide they differ, as widths
    and heights of levels are whole pixels.
    """

    handle: openslide.OpenSlide
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    level_scales: tuple[tuple[float, float], ...]
    stated_mpp: tuple[str | None, str | None]
    background: str
    is_ycbcr: bool
    bounds: tuple[int, int, int, int] | None
    blocks: TiffBlocks | None


class _Pool:
    """The open slides of one process; the least recently used goes first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cache = openslide.OpenSlideCache(CACHE_BYTES)
        self.blocks = BlockCache()
        self.slides: OrderedDict[tuple[object, ...], OpenSlideFile] = OrderedDict()

    def get(self, path: Path) -> OpenSlideFile:
        key = _identity(path)
        with self.lock:
            if key not in self.slides:
                self.slides[key] = _open_anew(path, key, self.cache, self.blocks)
            self.slides.move_to_end(key)
            # Dropped, not closed: another thread may be reading. The last reference closes it.
            while len(self.slides) > MAX_HANDLES:
                self.slides.popitem(last=False)
            return self.slides[key]

    def drop(self, slide: OpenSlideFile) -> None:
        with self.lock:
            for key in [key for key, value in self.slides.items() if value is slide]:
                del self.slides[key]


# By process id, so that a forked child opens its own handles: the parent's share their file
# positions. They stay referenced here because closing them in the child is not safe either.
_pools: dict[int, _Pool] = {}


def open_slide(path: Path) -> OpenSlideFile:
    """The open slide of ``path`` in this process.

    Raises:
        SlideError: If it cannot be opened; the message names the file and the remedy.
    """
    pid = os.getpid()
    pool = _pools.get(pid) or _pools.setdefault(pid, _Pool())
    return pool.get(path)


def _identity(path: Path) -> tuple[object, ...]:
    """What tells this file from any other, also from a later one of the same name."""
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise SlideError(
            f"No slide at {path}. Check the path; if it is from a table of tiles, `--root DIR` "
            "says where its slides are now (`root=` in Python)."
        ) from error
    except OSError as error:
        raise SlideError(f"Cannot reach the slide {path}: {error.strerror}.") from error
    return (str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _open_anew(
    path: Path, key: Hashable, cache: openslide.OpenSlideCache, block_cache: BlockCache
) -> OpenSlideFile:
    if path.is_dir():
        raise SlideError(
            f"{path} is a folder, not a slide. Give a file; for DICOM, one .dcm file of the slide."
        )
    if path.stat().st_size == 0:
        raise SlideError(f"The slide {path} is empty (0 bytes). Copy it again.")
    try:
        handle = openslide.OpenSlide(str(path))
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path} is not a slide that OpenSlide reads: another format, or damaged. An image "
            "(JPEG, PNG, TIFF, OME-TIFF) becomes a slide with "
            f"`sslpath data convert '{path}' --mpp UM_PER_PIXEL`."
        ) from error
    except openslide.OpenSlideError as error:
        _refuse_odd(path, directories_of(path), [])
        _damaged(path, error)
    except OSError as error:
        raise SlideError(f"Cannot open the slide {path}: {error}.") from error
    try:
        handle.set_cache(cache)
        properties = handle.properties
        sizes = handle.level_dimensions
        if not sizes or min(min(size) for size in sizes) < 1:
            _damaged(path, "a level has no pixels")
        downsamples = tuple(float(downsample) for downsample in handle.level_downsamples)
        vendor, blocks = properties.get(openslide.PROPERTY_NAME_VENDOR), None
        # Hamamatsu's files look like TIFF, but count their places otherwise.
        found = [] if vendor == "hamamatsu" else directories_of(path)
        _refuse_odd(path, found, sizes, pyramid=vendor in (None, "generic-tiff"))
        if vendor in VENDORS:
            read = _reader(handle)
            blocks = TiffBlocks(path, key, found, sizes, downsamples, block_cache, read)
        return OpenSlideFile(
            handle,
            sizes,
            downsamples,
            tuple((sizes[0][0] / width, sizes[0][1] / height) for width, height in sizes),
            (
                properties.get(openslide.PROPERTY_NAME_MPP_X),
                properties.get(openslide.PROPERTY_NAME_MPP_Y),
            ),
            "#" + properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"),
            is_ycbcr_as_rgb(path),
            _bounds(properties, sizes[0]),
            blocks,
        )
    except openslide.OpenSlideError as error:
        _damaged(path, error)


def _refuse_odd(
    path: Path,
    found: Sequence[Tags],
    sizes: Sequence[tuple[int, int]],
    *,
    pyramid: bool = False,
) -> None:
    """Refuse a TIFF file that OpenSlide would show otherwise than it is meant."""
    odd = oddity(found, sizes, pyramid=pyramid)
    if odd is not None:
        remedy = (
            f"`sslpath data convert '{path}' --mpp UM_PER_PIXEL` makes a slide of it."
            if odd.curable
            else "Export it as an 8-bit RGB image."
        )
        raise SlideError(
            f"The slide {path} {odd.what}: OpenSlide does not show it as it is meant. {remedy}"
        )


def _bounds(
    properties: Mapping[str, str], size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the scanned area, level-0 px, if the slide says it."""
    try:
        left, top, width, height = (
            int(properties[name])
            for name in (
                openslide.PROPERTY_NAME_BOUNDS_X,
                openslide.PROPERTY_NAME_BOUNDS_Y,
                openslide.PROPERTY_NAME_BOUNDS_WIDTH,
                openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
            )
        )
    except (KeyError, ValueError):
        return None
    inside = 0 <= left < size[0] and 0 <= top < size[1] and width > 0 and height > 0
    return (left, top, width, height) if inside else None


def _reader(
    handle: openslide.OpenSlide,
) -> Callable[[int, tuple[int, int], tuple[int, int]], Image.Image]:
    """What :class:`TiffBlocks` compares with; an error of OpenSlide's means that it disagrees."""

    def read(level: int, corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
        try:
            return handle.read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from error

    return read


def _damaged(path: Path, error: object) -> NoReturn:
    raise SlideError(
        f"OpenSlide cannot read {path}: {error}. The file is probably damaged or cut short; "
        "copy it again."
    ) from (error if isinstance(error, Exception) else None)


def read_level(
    path: Path, level: int, corner: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """A region of a level as RGB on the slide's background, ``(h, w, 3)``.

    Args:
        path: The slide.
        level: Which level.
        corner: Left and top, level-0 px.
        size: Width and height, px of the level.

    Raises:
        SlideError: If the slide cannot be opened.
        TileReadError: If the pixels cannot be decoded.
    """
    slide = open_slide(path)
    # OpenSlide places both axes by the mean of their scales: far from the corner of a long, narrow
    # slide that is many pixels off.
    mean, (wide, high) = slide.level_downsamples[level], slide.level_scales[level]
    corner = round(corner[0] * mean / wide), round(corner[1] * mean / high)
    if slide.blocks is not None and not slide.is_ycbcr:
        pixels = slide.blocks.read(level, corner, size)
        if pixels is not None:
            return pixels
    try:
        region = slide.handle.read_region(corner, level, size)
    except openslide.OpenSlideError:
        # An error sticks to its handle and may stem from another read: ask a new handle.
        _forget(slide)
        slide = open_slide(path)
        try:
            region = slide.handle.read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            _forget(slide)
            raise TileReadError(
                f"Cannot decode the {size[0]} x {size[1]} px at ({corner[0]}, {corner[1]}), level "
                f"{level}, of {path}: {error}. The file is damaged there; copy it again or leave "
                "the tile out."
            ) from error
    colours, alpha = region.convert("RGB"), region.getchannel("A")
    if slide.is_ycbcr:
        colours = Image.frombytes("YCbCr", size, colours.tobytes()).convert("RGB")
    if alpha.getextrema() == (255, 255):
        return np.array(colours)
    canvas = Image.new("RGB", size, slide.background)
    canvas.paste(colours, mask=alpha)
    return np.array(canvas)


def _forget(slide: OpenSlideFile) -> None:
    pool = _pools.get(os.getpid())
    if pool is not None:
        pool.drop(slide)
