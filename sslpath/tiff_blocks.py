"""JPEG blocks of TIFF slides, decoded without OpenSlide: the same pixels, in less time.

OpenSlide composes every region anew, with transparency and at fractions of a pixel. A region of
whole pixels of one level is but a few blocks of JPEG side by side, so these are decoded (by
libjpeg-turbo, as in OpenSlide) and put together here. That is done only where it was seen to give
OpenSlide's pixels: in TIFF and SVS with JPEG, nothing missing. Everywhere else, and wherever a
block cannot be decoded, OpenSlide reads.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from sslpath.tiff_tags import (
    BITS,
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    COMPRESSION,
    COUNTS,
    HEIGHT,
    JPEG,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    RGB,
    SAMPLES,
    TABLES,
    UNREADABLE,
    WIDTH,
    YCBCR,
    Tags,
)

CACHE_BYTES = 64 << 20
MAX_BLOCK_BYTES = 64 << 20  # of one JPEG; more is a lie
VENDORS = ("aperio", "generic-tiff")  # whose levels are directories of the file as they are
# Marker APP14, whose last byte tells a decoder whether colours are luma and chroma.
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """A directory of a TIFF file that holds a level in blocks of JPEG.

    Attributes:
        size: Width and height, px.
        block: Width and height of a block, px.
        offsets: Where each block starts, row by row.
        counts: How many bytes it has.
        head: What goes before each block's own data to make it a JPEG file.
    """

    size: tuple[int, int]
    block: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    head: bytes


class TiffBlocks:
    """The levels of an open slide that can be read by blocks.

    Args:
        path: The slide.
        key: What tells this file from any other, also from a later one of the same name.
        found: The directories of its file.
        dimensions: Width and height of each level, as OpenSlide says.
        downsamples: Of each level, likewise.
        cache: Where decoded blocks are kept.
        check: Reads a region with OpenSlide: level, corner in level-0 px, size.

    Raises:
        OSError: If the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        key: Hashable,
        found: Sequence[Tags],
        dimensions: tuple[tuple[int, int], ...],
        downsamples: tuple[float, ...],
        cache: "BlockCache",
        check: Callable[[int, tuple[int, int], tuple[int, int]], Image.Image],
    ) -> None:
        self.key, self.downsamples, self.cache, self.check = key, downsamples, cache, check
        self.file, self.lock = path.open("rb"), threading.Lock()
        weakref.finalize(self, self.file.close)
        try:
            levels = [one for one in map(_level, found) if one is not None]
        except UNREADABLE:  # damaged: OpenSlide will say so better
            levels = []
        self.levels: list[Level | None] = []
        for size in dimensions:
            same = [one for one in levels if one.size == size]
            self.levels.append(same[0] if len(same) == 1 else None)

    def read(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> Pixels | None:
        """A region, ``(h, w, 3)``; None where OpenSlide has to read it.

        Args:
            level: Which level.
            corner: Left and top, level-0 px.
            size: Width and height, px of the level.
        """
        one = self.levels[level]
        left, top = (at / self.downsamples[level] for at in corner)
        inside = one is not None and left >= 0 <= top and (
            left + size[0] <= one.size[0] and top + size[1] <= one.size[1]
        )  # fmt: skip
        if one is None or not inside or left % 1 or top % 1:
            return None
        agreed = self.cache.agreed
        if (self.key, level) not in agreed:
            agreed[self.key, level] = self._agrees(level, one)
        if not agreed[self.key, level]:
            return None
        try:
            return self._compose(level, int(left), int(top), size)
        except UNREADABLE:
            return None

    def _agrees(self, level: int, one: Level) -> bool:
        """Whether the first block and one in the middle are what OpenSlide reads there."""
        (width, height), (w, h) = one.size, one.block
        for x, y in ((0, 0), (width // 2 // w * w, height // 2 // h * h)):
            size = min(w, width - x), min(h, height - y)
            corner = x * self.downsamples[level], y * self.downsamples[level]
            if any(at % 1 for at in corner):
                continue
            try:
                theirs = self.check(level, (int(corner[0]), int(corner[1])), size)
                ours = self._compose(level, x, y, size)
            except UNREADABLE:  # damaged there: the level is left to OpenSlide, for good
                return False
            opaque = np.full(size[::-1], 255, np.uint8)
            if not np.array_equal(np.asarray(theirs), np.dstack([ours, opaque])):
                return False
        return True

    def _compose(self, level: int, left: int, top: int, size: tuple[int, int]) -> Pixels:
        one = self.levels[level]
        assert one is not None
        w, h = one.block
        across = -(-one.size[0] // w)
        right, bottom = left + size[0], top + size[1]
        out = np.empty((size[1], size[0], 3), np.uint8)
        for row in range(top // h, (bottom - 1) // h + 1):
            for column in range(left // w, (right - 1) // w + 1):
                block = self._block(level, one, row * across + column)
                x, y = column * w, row * h
                x0, x1, y0, y1 = max(left, x), min(right, x + w), max(top, y), min(bottom, y + h)
                part = block[y0 - y : y1 - y, x0 - x : x1 - x]
                out[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return out

    def _block(self, level: int, one: Level, i: int) -> Pixels:
        key = (self.key, level, i)
        block = self.cache.get(key)
        if block is None:
            if one.counts[i] > MAX_BLOCK_BYTES:
                raise ValueError(f"a block of {one.counts[i]} bytes")
            with self.lock:
                self.file.seek(one.offsets[i])
                data = self.file.read(one.counts[i])
            jpeg = one.head + data[2:]
            # Before memory is made for it: a hostile block may claim to be huge.
            height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
            if (width, height) != one.block:
                raise ValueError(f"a block of {width} x {height}")
            block = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
            self.cache.put(key, block)
        return block


class BlockCache:
    """Decoded blocks of all slides of a process; the least recently used goes first.

    It outlives a slide's handle: one that is opened anew after an error need not be compared again.

    Attributes:
        agreed: Whether a level of a slide, by its key and number, has OpenSlide's pixels.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks: OrderedDict[tuple[Hashable, int, int], Pixels] = OrderedDict()
        self.bytes = 0
        self.agreed: dict[tuple[Hashable, int], bool] = {}

    def get(self, key: tuple[Hashable, int, int]) -> Pixels | None:
        """The block of a slide, level and place, if it is there."""
        with self.lock:
            if key in self.blocks:
                self.blocks.move_to_end(key)
            return self.blocks.get(key)

    def put(self, key: tuple[Hashable, int, int], block: Pixels) -> None:
        """Keep a block."""
        with self.lock:
            if key not in self.blocks:
                self.blocks[key] = block
                self.bytes += block.nbytes
            while self.bytes > CACHE_BYTES:
                self.bytes -= self.blocks.popitem(last=False)[1].nbytes


def _level(tags: Tags) -> Level | None:
    """A directory as a level; None if it is not in whole blocks of JPEG of three colours."""
    plain = {COMPRESSION: JPEG, SAMPLES: 3, PLANAR: 1, BITS: (8, 8, 8)}
    colours, needed = tags.get(PHOTOMETRIC), (WIDTH, HEIGHT, BLOCK_WIDTH, BLOCK_HEIGHT, OFFSETS)
    if any(tags.get(key, 1) != value for key, value in plain.items()):
        return None
    if colours not in (RGB, YCBCR) or any(key not in tags for key in (*needed, COUNTS)):
        return None
    size, block = (tags[WIDTH], tags[HEIGHT]), (tags[BLOCK_WIDTH], tags[BLOCK_HEIGHT])
    # A damaged file may say that a width is a text, or the tables a number.
    if not all(isinstance(side, int) and side > 0 for side in (*size, *block)):
        return None
    if not isinstance(tags.get(TABLES, b""), bytes):
        return None
    offsets, counts = (np.array(tags[key], np.int64) for key in (OFFSETS, COUNTS))
    places = -(-size[0] // block[0]) * -(-size[1] // block[1])
    # A block of no bytes was not scanned: it is for OpenSlide to say what is shown there.
    if not len(offsets) == len(counts) == places or not (counts > 2).all():
        return None
    tables = tags.get(TABLES, b"")[2:-2]  # without its start and end of image
    head = b"\xff\xd8" + ADOBE + (b"\x01" if colours == YCBCR else b"\x00") + tables
    return Level(size, block, offsets, counts, head)
