"""JPEG blocks of TIFF slides: OpenSlide's pixels, and OpenSlide itself where they would not be."""

import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from conftest import MPP, draw_tissue, write_lossless
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sslpath.errors import TileReadError
from sslpath.handles import open_slide, read_level
from sslpath.slides import Slide
from sslpath.tiff_blocks import CACHE_BYTES, BlockCache, TiffBlocks
from sslpath.tiff_tags import directories_of


def native(path: Path, corner: tuple[int, int], level: int, size: int) -> NDArray[np.uint8]:
    with openslide.OpenSlide(str(path)) as slide:
        region = slide.read_region(corner, level, (size, size))
    canvas = Image.new("RGB", region.size, "white")
    canvas.paste(region, mask=region.getchannel("A"))
    return np.asarray(canvas)


@pytest.fixture(scope="module", params=["rgb", "ycbcr"])
def pyramid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TIFF of JPEG blocks whose sides are no multiples of them, in either kind of colours."""

    path = tmp_path_factory.mktemp("pyramid") / f"{request.param}.tif"
    quality = {"rgb": 95, "ycbcr": 80}[request.param]  # libvips keeps RGB from 90 on
    pyvips.Image.new_from_array(draw_tissue(1500, 1100)).tiffsave(
        str(path), tile=True, pyramid=True, compression="jpeg", Q=quality, tile_width=240,
        tile_height=208, xres=1000 / MPP, yres=1000 / MPP, resunit="cm",
    )  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric.name.lower() == request.param
    return path


@given(x=st.integers(-50, 1550), y=st.integers(-50, 1150), size=st.integers(1, 500),
       level=st.integers(0, 2))  # fmt: skip
def test_pixels_are_openslides(pyramid: Path, x: int, y: int, size: int, level: int) -> None:
    got = np.asarray(read_level(pyramid, level, (x, y), (size, size)))
    assert np.array_equal(got, native(pyramid, (x, y), level, size))


def test_whole_pixels_inside_a_level_are_read_by_blocks(pyramid: Path) -> None:
    blocks = open_slide(pyramid).blocks
    assert blocks is not None
    assert blocks.read(0, (3, 5), (700, 700)) is not None
    assert blocks.read(1, (4, 8), (300, 300)) is not None
    assert blocks.read(1, (3, 8), (300, 300)) is None  # half a pixel
    assert blocks.read(0, (900, 700), (700, 400)) is None  # over the edge
    assert blocks.read(0, (-1, 0), (10, 10)) is None


def test_a_lossless_slide_is_left_to_openslide(tmp_path: Path) -> None:
    blocks = open_slide(write_lossless(tmp_path / "a.tif", [draw_tissue(600, 600)])).blocks
    assert blocks is not None
    assert blocks.read(0, (0, 0), (64, 64)) is None


def test_a_level_whose_pixels_differ_from_openslides_is_left_to_it(
    pyramid: Path, tmp_path: Path
) -> None:
    """Its JPEG blocks say that their colours are of the other kind than the TIFF says."""
    path, data = tmp_path / "a.tif", pyramid.read_bytes()
    with tifffile.TiffFile(pyramid) as tiff:
        page = tiff.pages[0]
        other = b"\0" if page.photometric.name == "YCBCR" else b"\1"
        adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + other
        places = zip(page.dataoffsets, page.databytecounts, strict=True)
        start = b"\xff\xda"  # of the compressed pixels
        blocks = [data[at : at + n].replace(start, adobe + start, 1) for at, n in places]
    path.write_bytes(data + b"".join(blocks))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        sizes = [len(block) for block in blocks]
        tiff.pages[0].tags["TileOffsets"].overwrite(len(data) + np.cumsum([0, *sizes[:-1]]))
        tiff.pages[0].tags["TileByteCounts"].overwrite(sizes)
    of_slide = open_slide(path).blocks
    assert of_slide is not None
    assert of_slide.levels[0] is not None
    assert of_slide.read(0, (300, 300), (200, 200)) is None
    got = np.asarray(read_level(path, 0, (300, 300), (200, 200)))
    assert np.array_equal(got, native(path, (300, 300), 0, 200))


def test_a_slide_with_a_block_that_was_not_scanned_shows_its_background(
    pyramid: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sparse.tif"
    path.write_bytes(pyramid.read_bytes())
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite((0, *tag.value[1:]))
    assert (Slide(path).read(0, 0, 128, MPP) == 255).all()
    assert np.array_equal(Slide(path).read(480, 416, 128, MPP), native(path, (480, 416), 0, 128))


def test_a_slide_with_a_damaged_first_block_is_compared_once_and_not_at_each_read(
    pyramid: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.tif"
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    data[start : start + 200] = bytes(200)
    damaged.write_bytes(data)
    opened, counting = [], [True]

    def count(event: str, details: tuple[object, ...]) -> None:
        if event == "open" and counting and str(details[0]) == str(damaged):
            opened.append(details)

    sys.addaudithook(count)  # which stays until the process ends
    for i in range(20):
        tile = read_level(damaged, 0, (500 + i, 500), (224, 224))
        assert np.array_equal(tile, read_level(pyramid, 0, (500 + i, 500), (224, 224)))
    with pytest.raises(TileReadError, match="Cannot decode"):
        read_level(damaged, 0, (0, 0), (224, 224))
    once = len(opened)
    for i in range(20):
        read_level(damaged, 0, (600 + i, 500), (224, 224))
    assert len(opened) - once <= 3  # the failed read gave its handle up
    assert once <= 12
    counting.clear()


@pytest.mark.parametrize(
    ("tag", "value", "kind"),
    [("TileWidth", 0, "LONG"), ("TileWidth", "64", "ASCII"), ("ImageWidth", b"9", "BYTE"),
     ("ImageLength", (5, 6), "LONG"), ("JPEGTables", 3_690_000_000, "LONG"),
     ("JPEGTables", 1.5, "DOUBLE"), ("TileByteCounts", 1 << 32, "LONG8")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_a_header_that_lies_is_left_to_openslide(
    pyramid: Path, tag: str, value: object, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(pyramid.read_bytes())
    with tifffile.TiffFile(path, mode="r+") as tiff:
        one = tiff.pages[0].tags[tag]
        lie = (value,) * one.count if tag == "TileByteCounts" else value
        one.overwrite(lie, dtype=tifffile.DATATYPE[kind])
    with openslide.OpenSlide(str(pyramid)) as slide:

        def check(level: int, corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
            return slide.read_region(corner, level, size)

        levels = slide.level_dimensions, slide.level_downsamples
        honest, lying = (
            TiffBlocks(each, each, directories_of(each), *levels, BlockCache(), check)
            for each in (pyramid, path)
        )
        assert honest.read(0, (0, 0), (64, 64)) is not None
        assert lying.read(0, (0, 0), (64, 64)) is None


def test_the_cache_is_bounded() -> None:
    cache = BlockCache()
    for i in range(20):
        block = np.zeros(CACHE_BYTES // 13, np.uint8)
        block[0] = i
        cache.put((0, 0, i), block)
        assert cache.bytes == sum(block.nbytes for block in cache.blocks.values()) <= CACHE_BYTES
    assert cache.get((0, 0, 0)) is None
    last = cache.get((0, 0, 19))
    assert last is not None
    assert last[0] == 19


def test_a_replaced_slide_never_shows_blocks_of_the_old_one(pyramid: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for seed in range(3):
        other = tmp_path / "new.tif"

        pyvips.Image.new_from_array(draw_tissue(600, 600, seed)).tiffsave(
            str(other), tile=True, compression="jpeg", Q=80
        )
        other.replace(path)
        got = np.asarray(read_level(path, 0, (200, 200), (200, 200)))
        assert np.array_equal(got, native(path, (200, 200), 0, 200))
