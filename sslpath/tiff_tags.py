"""What the tags of a TIFF file say about its pixels, where OpenSlide does not listen.

TIFF gives a meaning to many tags that OpenSlide passes over: an image that is to be turned, samples
of 16 bits, a fourth channel that is not transparency, a stack of planes. It opens such files all
the same, and shows something else than the file means. They are told here by their tags.
"""

import struct
from collections.abc import Callable, Sequence
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
    found: list[Tags] = []
    following = no_tags(start).next
    while following and len(found) < MAX_DIRECTORIES:
        file.seek(following)
        tags = no_tags(start)
        tags.load(file)
        found.append(tags)
        following = tags.next
    return found


def no_tags(start: bytes) -> Tags:
    """A directory without tags, of a file that starts with these 16 bytes.

    Pillow looks for the number of BigTIFF where files of Intel's byte order have it, so it is told
    of the other order apart.
    """
    if start[:4] == b"MM" + BIG_TIFF[1]:
        return Tags(b"II" + BIG_TIFF[0] + start[4:16], b"MM")
    return Tags(start[: 16 if start[2:4] in BIG_TIFF else 8])


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


def oddity(
    found: Sequence[Tags], levels: Sequence[tuple[int, int]] = (), *, pyramid: bool = False
) -> Oddity | None:
    """What OpenSlide does not show as the file means it; None if it shows all of it rightly.

    A check of a tag that cannot be read is left out: OpenSlide or reading will say what is wrong.

    Args:
        found: Its directories.
        levels: Width and height of the levels that OpenSlide shows; empty if it refuses the file.
        pyramid: Whether OpenSlide has found the levels by itself, in a file of no known vendor.
    """
    if not found:
        return None
    packed = _number(found[0], COMPRESSION, 1)
    if not levels and packed in COMPRESSIONS:
        return Oddity(f"is compressed as {COMPRESSIONS[packed]}", packed in CURABLE)
    shown = [t for t in found if BLOCK_WIDTH in t and size_of(t) in levels] or [found[0]]
    odd = [_unless_unreadable(_odd_stack, found, shown[0])]
    odd += [_unless_unreadable(check, tags) for tags in shown for check in PIXELS]
    if pyramid:
        odd += [_unless_unreadable(_odd_pyramid, found, shown, levels)]
    return min((one for one in odd if one), key=lambda one: one.curable, default=None)


def _unless_unreadable(check: Callable[..., Oddity | None], *given: Any) -> Oddity | None:
    try:
        return check(*given)
    except UNREADABLE:
        return None


def _odd_samples(tags: Tags) -> Oddity | None:
    colours, bits = _number(tags, PHOTOMETRIC, RGB), set(_numbers(tags, BITS, 1))
    if not set(_numbers(tags, FORMAT, 1)) <= {1, 4}:
        return Oddity("has signed or floating-point samples", False)
    if bits != {8}:
        curable = bits == {16} and colours == RGB
        return Oddity(f"has samples of {', '.join(map(str, sorted(bits)))} bits, not 8", curable)
    return None


def _odd_colours(tags: Tags) -> Oddity | None:
    colours, compression = _number(tags, PHOTOMETRIC, RGB), _number(tags, COMPRESSION, 1)
    if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, YCBCR):
        name = COLOURS.get(colours, f"colours of the kind {colours}")
        return Oddity(f"has {name} instead of RGB", colours in (PALETTE, CMYK))
    if colours == YCBCR and compression not in (OLD_JPEG, JPEG, *APERIO):
        return Oddity("has luma and chroma (YCbCr) that are not in JPEG", False)
    return None


def _odd_orientation(tags: Tags) -> Oddity | None:
    way = _number(tags, ORIENTATION, 1)
    if not 2 <= way <= 8:
        return None
    return Oddity(f"must be rotated or mirrored (its Orientation tag is {way})", True)


def _odd_channels(tags: Tags) -> Oddity | None:
    colours, samples = _number(tags, PHOTOMETRIC, RGB), _number(tags, SAMPLES, 1)
    if colours not in (WHITE_IS_0, BLACK_IS_0, RGB, YCBCR):
        return None
    extra = _numbers(tags, EXTRA, ())
    plain = 1 if colours in (WHITE_IS_0, BLACK_IS_0) else 3
    if (plain, samples, extra) == (1, 2, (2,)):
        return Oddity("is grey with transparency", True)
    if samples != plain and not (samples == plain + 1 and extra in ((1,), (2,))):
        return Oddity(f"has {samples} channels, which are not colour and transparency", False)
    return None


def _odd_range(tags: Tags) -> Oddity | None:
    full = _full(_number(tags, PHOTOMETRIC, RGB))
    if any(abs(r - f) > 1 for r, f in zip(_numbers(tags, REFERENCE, ()), full, strict=False)):
        return Oddity("has a reduced range of values (its tag ReferenceBlackWhite)", False)
    if DECODE in tags:
        return Oddity("has values that are to be scaled (its tag Decode)", False)
    return None


def _odd_standard(tags: Tags) -> Oddity | None:
    weights, usual = _numbers(tags, COEFFICIENTS, ()), (0.299, 0.587, 0.114)
    if any(abs(w - r) > 0.002 for w, r in zip(weights, usual, strict=False)):
        return Oddity("has colours of another standard (its tag YCbCrCoefficients)", False)
    return None


PIXELS = (
    _odd_samples,
    _odd_colours,
    _odd_orientation,
    _odd_channels,
    _odd_range,
    _odd_standard,
)


def _odd_stack(found: Sequence[Tags], first: Tags) -> Oddity | None:
    """Several images of full size: planes in depth, channels of fluorescence, or a mask."""
    alike = [tags for tags in found if size_of(tags) == size_of(first)]
    # The thumbnail of a tiny slide may be as large as the slide, but it is not in tiles.
    alike = [tags for tags in alike if (BLOCK_WIDTH in tags) == (BLOCK_WIDTH in first)]
    kinds = [_number(tags, SUBFILE, 0) for tags in alike]
    if any(kind & MASK for kind in kinds):
        return Oddity("has a transparency mask", False)
    if (count := sum(not kind & REDUCED for kind in kinds)) > 1:
        return Oddity(f"is a stack of {count} images of full size, planes or channels", False)
    return None


def _odd_pyramid(
    found: Sequence[Tags], shown: Sequence[Tags], levels: Sequence[tuple[int, int]]
) -> Oddity | None:
    """Levels that are no smaller versions of the first one, and first images that are smaller."""
    width, height = levels[0]
    for w, h in levels[1:]:
        # Sides are rounded, up or down; a length of some pixels more was padded or cut.
        low, high = (max(width / (w + 1.5), height / (h + 1.5)),
                     min(width / max(w - 1.5, 0.5), height / max(h - 1.5, 0.5)))  # fmt: skip
        if low > high or (w, h) == (width, height):
            what = f"has an image of {w} x {h} px as a level of one of {width} x {height} px"
            return Oddity(f"{what}, which is another picture or was padded", False)
    if len({(_number(t, PHOTOMETRIC, RGB) in (RGB, YCBCR)) for t in shown}) > 1:
        return Oddity("has levels in colour and levels in grey", False)
    largest = max(found, key=lambda tags: _area(tags))
    if _area(largest) > width * height or size_of(found[0]) != levels[0]:
        w, h = size_of(largest)
        return Oddity(
            f"has its largest image, of {w} x {h} px, not in the first place, where its size and "
            "um per pixel are looked for",
            False,
        )
    return None


def _area(tags: Tags) -> int:
    return int(tags.get(WIDTH, 0)) * int(tags.get(HEIGHT, 0))


def _numbers(tags: Tags, key: int, default: Any) -> tuple[Any, ...]:
    """The values of a tag, whatever type of number it was written as."""
    value = tags.get(key, default)
    return tuple(value) if isinstance(value, tuple | bytes | list) else (value,)


def _number(tags: Tags, key: int, default: int) -> int:
    return int(_numbers(tags, key, default)[0])


def _full(colours: int) -> tuple[int, ...]:
    return (0, 255, 128, 255, 128, 255) if colours == YCBCR else (0, 255, 0, 255, 0, 255)
