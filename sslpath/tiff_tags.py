"""What the tags of a TIFF file say about its pixels, where OpenSlide does not listen.

TIFF gives a meaning to many tags that OpenSlide passes over: an image that is to be turned, samples
of 16 bits, a fourth channel that is not transparency, a stack of planes. It opens such files all
the same, and shows something else than the file means. They are told here by their tags.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL.TiffImagePlugin import ImageFileDirectory_v2

MAX_DIRECTORIES = 100
BIG_TIFF = (b"+\x00", b"\x00+")
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, PLANAR, BLOCK_WIDTH, BLOCK_HEIGHT = 274, 277, 284, 322, 323
STRIP_OFFSETS, OFFSETS, COUNTS, EXTRA, FORMAT, TABLES = 273, 324, 325, 338, 339, 347
COEFFICIENTS, REFERENCE, DECODE = 529, 532, 433
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
OLD_JPEG, JPEG, APERIO = 6, 7, (33003, 33004, 33005)
REDUCED, MASK = 1, 4  # bits of SUBFILE: a smaller version of another image; where it is transparent
COMPRESSIONS = {
    **{6: "old-style JPEG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34933: "PNG"},
    **{34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"},
}
CURABLE = (6, 50001)  # of these compressions, what libvips decodes
COLOURS = {PALETTE: "a palette", 4: "a mask", CMYK: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*"}
# What a damaged file makes Pillow raise, in reading its directories.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError),
    *(OverflowError, ZeroDivisionError, struct.error),
)

Tags = ImageFileDirectory_v2


class Oddity(NamedTuple):
    """Something that OpenSlide shows otherwise than it is meant.

    Attributes:
        what: What the file has, to go on after "The slide ...".
        curable: Whether ``sslpath data convert`` makes a right slide of it.
    """

    what: str
    curable: bool


def directories(file: BinaryIO) -> list[Tags]:
    """The directories of an open TIFF file, in their order; none of another file.

    Raises:
        OSError: If the file is damaged; likewise the others of ``UNREADABLE``.
    """
    file.seek(0)
    start = file.read(16)
    if start[:2] not in (b"II", b"MM"):
        return []
    head = start[: 16 if start[2:4] in BIG_TIFF else 8]
    following = Tags(head).next
    found: list[Tags] = []
    while following and len(found) < MAX_DIRECTORIES:
        file.seek(following)
        tags = Tags(head)
        tags.load(file)
        found.append(tags)
        following = tags.next
    return found


def directories_of(path: Path) -> list[Tags]:
    """The directories of a file; none if it is damaged or no TIFF."""
    try:
        with path.open("rb") as file:
            return directories(file)
    except UNREADABLE:
        return []


def size_of(tags: Tags) -> tuple[Any, Any]:
    """Width and height of a directory's image, px."""
    return tags.get(WIDTH), tags.get(HEIGHT)


def oddity(found: Sequence[Tags], levels: Sequence[tuple[int, int]] = ()) -> Oddity | None:
    """What OpenSlide does not show as the file means it; None if it shows all of it rightly.

    Args:
        found: Its directories.
        levels: Width and height of the levels that OpenSlide shows; empty if it refuses the file.
    """
    try:
        if not found:
            return None
        packed = int(found[0].get(COMPRESSION, 1))
        if not levels and packed in COMPRESSIONS:
            return Oddity(f"is compressed as {COMPRESSIONS[packed]}", packed in CURABLE)
        shown = [t for t in found if BLOCK_WIDTH in t and size_of(t) in levels] or [found[0]]
        odd = [_odd_stack(found, shown[0]), *(_odd_pixels(tags) for tags in shown)]
        return min((one for one in odd if one), key=lambda one: one.curable, default=None)
    except UNREADABLE:  # a tag of another type than it must have: OpenSlide or reading will say so
        return None


def _odd_pixels(tags: Tags) -> Oddity | None:
    colours, compression = int(tags.get(PHOTOMETRIC, RGB)), int(tags.get(COMPRESSION, 1))
    bits, samples = set(_tuple(tags.get(BITS, 1))), int(tags.get(SAMPLES, 1))
    if not set(_tuple(tags.get(FORMAT, 1))) <= {1, 4}:
        return Oddity("has signed or floating-point samples", False)
    if bits != {8}:
        curable = bits == {16} and colours == RGB
        return Oddity(f"has samples of {', '.join(map(str, sorted(bits)))} bits, not 8", curable)
    if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, YCBCR):
        name = COLOURS.get(colours, f"colours of the kind {colours}")
        return Oddity(f"has {name} instead of RGB", colours in (PALETTE, CMYK))
    if colours == YCBCR and compression not in (OLD_JPEG, JPEG, *APERIO):
        return Oddity("has luma and chroma (YCbCr) that are not in JPEG", False)
    if 2 <= int(tags.get(ORIENTATION, 1)) <= 8:
        return Oddity(
            f"must be rotated or mirrored (its Orientation tag is {tags[ORIENTATION]})", True
        )
    extra = _tuple(tags.get(EXTRA, ()))
    plain = 1 if colours in (WHITE_IS_0, BLACK_IS_0) else 3
    if samples != plain and not (samples == plain + 1 and extra in ((1,), (2,))):
        return Oddity(f"has {samples} channels, which are not colour and transparency", False)
    ranges = _tuple(tags.get(REFERENCE, ()))
    if any(abs(float(r) - full) > 1 for r, full in zip(ranges, _full(colours), strict=False)):
        return Oddity("has a reduced range of values (its tag ReferenceBlackWhite)", False)
    if DECODE in tags:
        return Oddity("has values that are to be scaled (its tag Decode)", False)
    weights = _tuple(tags.get(COEFFICIENTS, ()))
    if any(abs(float(w) - r) > 0.002 for w, r in zip(weights, (0.299, 0.587, 0.114), strict=False)):
        return Oddity("has colours of another standard (its tag YCbCrCoefficients)", False)
    return None


def _odd_stack(found: Sequence[Tags], first: Tags) -> Oddity | None:
    """Several images of full size: planes in depth, channels of fluorescence, or a mask."""
    alike = [tags for tags in found if size_of(tags) == size_of(first)]
    # The thumbnail of a tiny slide may be as large as the slide, but it is not in tiles.
    alike = [tags for tags in alike if (BLOCK_WIDTH in tags) == (BLOCK_WIDTH in first)]
    kinds = [int(tags.get(SUBFILE, 0)) for tags in alike]
    if any(kind & MASK for kind in kinds):
        return Oddity("has a transparency mask", False)
    if (count := sum(not kind & REDUCED for kind in kinds)) > 1:
        return Oddity(f"is a stack of {count} images of full size, planes or channels", False)
    return None


def _full(colours: int) -> tuple[int, ...]:
    return (0, 255, 128, 255, 128, 255) if colours == YCBCR else (0, 255, 0, 255, 0, 255)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
