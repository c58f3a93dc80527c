"""Files that hold JPEG of luma and chroma (YCbCr), but declare RGB.

Some writers of DICOM and OME-TIFF make this mistake. Readers that believe the declaration, among
them OpenSlide and libvips, show glass salmon red and tissue green. Here such files are told from
true RGB, so that their colours can be converted.
"""

import mmap
from pathlib import Path

from sslpath.tiff_tags import (
    COMPRESSION,
    JPEG,
    OFFSETS,
    PHOTOMETRIC,
    RGB,
    STRIP_OFFSETS,
    UNREADABLE,
    no_tags,
)

DICOM_JPEG = b"1.2.840.10008.1.2.4.50"
# Element (7FE0,0010) PixelData, of undefined length, as all compressed DICOM has it.
DICOM_PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
DICOM_RGB = b"\x28\x00\x04\x00CS\x04\x00RGB "
FRAME_HEADERS = (0xC0, 0xC1, 0xC2)


def is_ycbcr_as_rgb(path: Path) -> bool:
    """Whether a DICOM or TIFF file declares RGB, but its first JPEG tile holds YCbCr.

    Told by that tile's own header: JFIF knows no RGB, and second and third channels of lower
    resolution make sense for chroma only. Both are asked for, lest true RGB be converted.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[128:132] == b"DICM":
                start = _dicom_tile(data)
            elif data[:2] in (b"II", b"MM"):
                start = _tiff_tile(data)
            else:
                return False
            return start is not None and _is_subsampled_jfif(data, start)
    except UNREADABLE:  # damaged: reading it will say so better
        return False


def _dicom_tile(data: mmap.mmap) -> int | None:
    """Where the first JPEG tile of a DICOM file that declares RGB starts."""
    pixels = data.find(DICOM_PIXELS)
    if pixels < 0 or data.find(DICOM_JPEG, 0, pixels) < 0 or data.find(DICOM_RGB, 0, pixels) < 0:
        return None
    # Items follow, each a tag and a length of 4 bytes: a table of offsets, then the first tile.
    table = pixels + len(DICOM_PIXELS)
    return table + 8 + int.from_bytes(data[table + 4 : table + 8], "little") + 8


def _tiff_tile(data: mmap.mmap) -> int | None:
    """Where the first JPEG tile of a TIFF file that declares RGB starts."""
    # The tags only: opening the image would have Pillow complain about its size.
    tags = no_tags(data[:16])
    data.seek(tags.next)
    tags.load(data)  # type: ignore[arg-type]
    if (tags.get(PHOTOMETRIC), tags.get(COMPRESSION)) != (RGB, JPEG):
        return None
    offsets = tags.get(OFFSETS) or tags.get(STRIP_OFFSETS)
    return int(offsets[0]) if offsets else None


def _is_subsampled_jfif(data: mmap.mmap, start: int) -> bool:
    if data[start : start + 4] != b"\xff\xd8\xff\xe0" or data[start + 6 : start + 10] != b"JFIF":
        return False
    at = start + 2
    while data[at] == 0xFF:  # from segment to segment, up to the frame header
        if data[at + 1] in FRAME_HEADERS:
            luma, blue, red = (data[at + 11 + 3 * channel] for channel in range(3))
            return luma > blue == red
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
