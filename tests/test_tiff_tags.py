"""TIFF files that mean something else than OpenSlide shows are refused, the others read right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from conftest import draw_tissue
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sslpath.convert import convert
from sslpath.errors import SlideError
from sslpath.slides import Slide
from sslpath.tiff_tags import directories_of, oddity

IMAGE = draw_tissue(600, 500)
IMAGE[:90, :90], IMAGE[-60:, -60:], IMAGE[:60, -60:] = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def write(path: Path, image: NDArray[Any] = IMAGE, **how: Any) -> Path:
    plain = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    size = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, **(plain | size | how))
    return path


def tag(number: int, kind: int, *values: int) -> dict[str, Any]:
    """A tag of TIFF type ``kind``: 3 for whole numbers, 5 for fractions of two numbers each."""
    count = len(values) // 2 if kind == 5 else len(values)
    return {"extratags": [(number, kind, count, values if len(values) > 1 else values[0], True)]}


GREY = IMAGE[..., 0]
PLAIN: dict[str, dict[str, Any]] = {
    "rgb": {},
    "grey": {"image": GREY, "photometric": "minisblack"},
    "white is 0": {"image": 255 - GREY, "photometric": "miniswhite"},
    "planar": {"image": np.moveaxis(IMAGE, 2, 0), "planarconfig": "separate"},
    "predictor": {"predictor": True},
    "upright": tag(274, 3, 1),
    "full range": tag(532, 5, *(0, 1, 255, 1) * 3),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_openslide_shows_right_is_read(tmp_path: Path, name: str) -> None:
    slide = Slide(write(tmp_path / "a.tif", **PLAIN[name]))
    shown = IMAGE if "grey" not in name and "white" not in name else np.dstack([GREY] * 3)
    assert np.array_equal(slide.read(0, 0, 500, 0.5), shown[:, :500])


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    half = np.full(IMAGE.shape[:2], 128, np.uint8)
    straight = write(tmp_path / "a.tif", np.dstack([IMAGE, half]), extrasamples=["unassalpha"])
    dimmed = (IMAGE * (128 / 255)).round().astype(np.uint8)
    premade = write(tmp_path / "b.tif", np.dstack([dimmed, half]), extrasamples=["assocalpha"])
    expected = IMAGE * (128 / 255) + 255 * (127 / 255)
    for path in (straight, premade):
        shown = Slide(path).read(0, 0, 500, 0.5).astype(float)
        assert np.abs(shown - expected[:, :500]).max() <= 3


WORDS = "must be rotated or mirrored"
ODD: dict[str, tuple[dict[str, Any], str]] = {
    **{f"turned, {n}": (tag(274, 3, n), WORDS) for n in range(2, 9)},
    "16 bits": ({"image": IMAGE.astype(np.uint16) * 257}, "samples of 16 bits"),
    "12 of 16 bits": ({"image": IMAGE.astype(np.uint16) * 16}, "samples of 16 bits"),
    "16 bits grey": (
        {"image": GREY.astype(np.uint16), "photometric": "minisblack"},
        "samples of 16 bits",
    ),
    "1 bit": ({"image": GREY > 128, "photometric": "minisblack"}, "samples of 1 bits"),
    "floating point": ({"image": IMAGE.astype(np.float32)}, "signed or floating-point"),
    "signed": ({"image": (IMAGE // 2).astype(np.int8)}, "signed or floating-point"),
    "four channels": (
        {"image": np.dstack([IMAGE, GREY]), "extrasamples": ["unspecified"]},
        "4 channels, which are not colour",
    ),
    "five channels": (
        {"image": np.dstack([IMAGE, GREY, GREY]), "extrasamples": ["unspecified"] * 2},
        "5 channels, which are not colour",
    ),
    "CMYK": ({"image": np.dstack([IMAGE, GREY]), "photometric": "separated"}, "has CMYK"),
    "Lab": ({"photometric": "cielab"}, r"CIE L\*a\*b\*"),
    "palette": (
        {"image": GREY, "photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        "has a palette",
    ),
    "YCbCr without JPEG": ({"photometric": "ycbcr"}, "luma and chroma"),
    "planes": (
        {"image": np.stack([GREY] * 3), "photometric": "minisblack"},
        "a stack of 3 images of full size",
    ),
    "planes in colour": ({"image": np.stack([IMAGE] * 2)}, "a stack of 2 images of full size"),
    "video range": (tag(532, 5, *(16, 1, 235, 1) * 3), "reduced range of values"),
    "scaled values": (tag(433, 5, *(0, 1, 255, 1) * 3), "values that are to be scaled"),
    "LZMA": ({"compression": "lzma"}, "compressed as LZMA"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_openslide_shows_wrong_is_refused_by_what_it_is(tmp_path: Path, name: str) -> None:
    how, what = ODD[name]
    path = write(tmp_path / "odd.tif", **how)
    with pytest.raises(SlideError, match=rf"odd\.tif .*{what}.* not show it as it is meant"):
        Slide(path).read(0, 0, 100, 0.5)


def test_a_transparency_mask_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "masked.tif") as file:
        how = {"tile": (256, 256), "metadata": None}
        file.write(IMAGE, photometric="rgb", **how)
        file.write(GREY, photometric="minisblack", subfiletype=0, **how)
    data = (tmp_path / "masked.tif").read_bytes()
    second = directories_of(tmp_path / "masked.tif")[1]
    assert second[254] == 0
    entry = b"\xfe\x00\x04\x00\x01\x00\x00\x00"  # the tag that says what an image is for
    at = data.rindex(entry) + len(entry)
    (tmp_path / "masked.tif").write_bytes(data[:at] + b"\x04\x00\x00\x00" + data[at + 4 :])
    with pytest.raises(SlideError, match="has a transparency mask"):
        Slide(tmp_path / "masked.tif", 0.5).read(0, 0, 100, 0.5)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_image_becomes_a_slide_as_pillow_turns_it(
    tmp_path: Path, orientation: int
) -> None:
    path = write(tmp_path / "turned.tif", **tag(274, 3, orientation))
    slide = convert(path, tmp_path / "upright.tif", 0.5, quality=100)
    image = Image.fromarray(IMAGE)
    image.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    assert slide.dimensions == upright.shape[1::-1]
    shown = slide.read(0, 0, 500, 0.5).astype(int)
    assert np.abs(shown[:500, :500] - upright[:500, :500]).mean() < 2


def test_16_bits_of_the_whole_range_become_8_and_those_of_12_are_refused(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.tif", IMAGE.astype(np.uint16) * 257)
    slide = convert(deep, tmp_path / "slide.tif", 0.5, quality=100)
    shown = slide.read(0, 0, 500, 0.5).astype(int)
    assert np.abs(shown - IMAGE[:, :500]).mean() < 2
    dark = write(tmp_path / "dark.tif", IMAGE.astype(np.uint16) * 16)
    with pytest.raises(SlideError, match=r"values up to 4,080 of 65,535"):
        convert(dark, tmp_path / "no.tif", 0.5)


def test_webp_is_refused_as_a_slide_and_converted(tmp_path: Path) -> None:
    pyvips.Image.new_from_array(IMAGE).tiffsave(
        str(tmp_path / "webp.tif"), tile=True, compression="webp", lossless=True
    )
    with pytest.raises(SlideError, match=r"compressed as WebP.*sslpath data convert"):
        Slide(tmp_path / "webp.tif", 0.5).read(0, 0, 100, 0.5)
    slide = convert(tmp_path / "webp.tif", tmp_path / "slide.tif", 0.5, quality=100)
    shown = slide.read(0, 0, 500, 0.5).astype(int)
    assert np.abs(shown - IMAGE[:, :500]).mean() < 2


INCURABLE = [name for name, (_, what) in ODD.items() if what != WORDS and name not in (
    "16 bits", "CMYK", "palette",
)]  # fmt: skip


@pytest.mark.parametrize("name", INCURABLE)
def test_what_cannot_become_a_right_slide_is_not_converted(tmp_path: Path, name: str) -> None:
    how, _ = ODD[name]
    path = write(tmp_path / "odd.tif", **how)
    with pytest.raises(SlideError, match=r"odd\.tif"):
        convert(path, tmp_path / "slide.tif", 0.5)
    assert not (tmp_path / "slide.tif").exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pathml_smalltif.tif", "16 bits"),
        ("qupath_cells-gray16.tif", "16 bits"),
        ("qupath_cells-2z.ome.tif", "stack of 2"),
        ("small_vectra.qptiff", "stack"),
        ("yb10kx5k.zstd.tiff", "ZSTD"),
        ("unreadable.svs", "Bogus marker"),
        ("small_dicom.dcm", "not a known file format"),
    ],
)
def test_real_images_that_cannot_become_right_slides_are_not_converted(
    shared: Path, tmp_path: Path, name: str, what: str
) -> None:
    with pytest.raises(SlideError, match=what):
        convert(shared / "real" / "formats" / name, tmp_path / "slide.tif", 0.5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["qupath_cells.ome.tif", "qupath_cells.tif", "boxes.tiff"])
def test_real_images_become_slides_of_their_pixels(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "real" / "formats" / name
    slide = convert(path, tmp_path / "slide.tif", 0.5, quality=100)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    side = min(expected.shape[:2])
    assert np.abs(slide.read(0, 0, side, 0.5) - expected[:side, :side]).mean() < 3


def test_real_slides_are_plain(shared: Path) -> None:
    for name in ("cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"):
        path = shared / "real" / "slides" / name
        assert oddity(directories_of(path), Slide(path).level_dimensions) is None
    zipped = shared / "real/formats/yb10kx5k.zstd.tiff"
    expected = np.array([0, 0, 255])  # as OpenSlide, with Zstandard, and tifffile's tags have it
    assert np.array_equal(Slide(zipped, 0.5).read(0, 0, 4, 0.5)[0, 0], expected)


# OpenSlide opens no classic TIFF of tifffile's in the order of Motorola.
@pytest.mark.parametrize(("big", "order"), [(False, "<"), (True, "<"), (True, ">")])
def test_tags_are_read_in_either_byte_order_and_size(tmp_path: Path, big: bool, order: str) -> None:
    path = tmp_path / "odd.tif"
    write(path, bigtiff=big, byteorder=order, **tag(274, 3, 6))
    with pytest.raises(SlideError, match="must be rotated"):
        Slide(path).read(0, 0, 100, 0.5)
    write(path, bigtiff=big, byteorder=order)
    assert np.array_equal(Slide(path).read(0, 0, 100, 0.5), IMAGE[:100, :100])


def test_a_tag_of_another_type_of_number_is_read_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / "odd.tif", extratags=[(274, 1, 1, b"\x06", True)])
    with pytest.raises(SlideError, match="must be rotated"):
        Slide(tmp_path / "odd.tif").read(0, 0, 100, 0.5)


def test_a_tag_that_cannot_be_read_switches_no_other_check_off(tmp_path: Path) -> None:
    four = np.dstack([IMAGE, IMAGE[..., :1]])
    odd = [(274, 2, 5, "none", True)]
    write(tmp_path / "odd.tif", four, extrasamples=["unspecified"], extratags=odd)
    with pytest.raises(SlideError, match="4 channels"):
        Slide(tmp_path / "odd.tif").read(0, 0, 100, 0.5)


def test_grey_with_transparency_is_refused_and_converted(tmp_path: Path) -> None:
    half = np.full(GREY.shape, 128, np.uint8)
    write(tmp_path / "a.tif", np.dstack([GREY, half]), photometric="minisblack",
          extrasamples=["unassalpha"])  # fmt: skip
    with pytest.raises(SlideError, match="is grey with transparency"):
        Slide(tmp_path / "a.tif").read(0, 0, 100, 0.5)
    read = convert(tmp_path / "a.tif", tmp_path / "b.tif", 0.5).read(200, 200, 100, 0.5)
    expected = GREY[200:300, 200:300] * (128 / 255) + 127
    assert abs(read.mean() - expected.mean()) < 2


def paged(path: Path, *pages: tuple[NDArray[Any], int, float]) -> Path:
    """A tiled TIFF of images, each with its subfile type and um per pixel."""
    with tifffile.TiffWriter(path) as tiff:
        for image, kind, mpp in pages:
            tiff.write(
                image, tile=(64, 64), compression="zlib", subfiletype=kind, metadata=None,
                photometric="rgb" if image.ndim == 3 else "minisblack",
                resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


MACRO, SMALL = np.full((80, 160, 3), 90, np.uint8), np.ascontiguousarray(IMAGE[::2, ::2])
PAGES: dict[str, tuple[Any, str]] = {
    "a macro picture": ([(IMAGE, 0, 0.5), (MACRO, 1, 0.5)], "160 x 80 px as a level"),
    "a padded level": ([(IMAGE, 0, 0.5), (np.pad(SMALL, ((0, 40), (0, 4), (0, 0))), 1, 1.0)],
                       "as a level"),
    "a second picture of full size": ([(IMAGE, 0, 0.5), (255 - IMAGE, 1, 0.5)], "as a level"),
    "a level in grey": ([(IMAGE, 0, 0.5), (SMALL[..., 0], 1, 1.0)], "colour and levels in grey"),
    "the thumbnail first": ([(SMALL, 0, 1.0), (IMAGE, 1, 0.5)], "not in the first place"),
    "the thumbnail first, alone": ([(SMALL, 0, 1.0), (IMAGE, 0, 0.5)], "not in the first place"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_a_level_that_is_no_smaller_version_of_the_slide_is_refused(
    tmp_path: Path, name: str
) -> None:
    pages, says = PAGES[name]
    with pytest.raises(SlideError, match=says):
        Slide(paged(tmp_path / "a.tif", *pages)).read(0, 0, 64, 0.5)


@pytest.mark.parametrize("sides", [(601, 502), (600, 500), (2001, 33), (64, 64)])
@pytest.mark.parametrize("up", [0, 1])
def test_levels_of_rounded_sides_are_levels(
    tmp_path: Path, sides: tuple[int, int], up: int
) -> None:
    image = draw_tissue(*sides)
    steps = [np.ascontiguousarray(image[:: 2**i, :: 2**i]) for i in range(5)]  # rounded up
    if not up:
        sizes = [tuple(max(1, side >> i) for side in image.shape[:2]) for i in range(5)]
        steps = [
            np.ascontiguousarray(one[:h, :w]) for one, (h, w) in zip(steps, sizes, strict=True)
        ]
    path = paged(
        tmp_path / "a.tif", *((one, int(i > 0), 0.5 * 2**i) for i, one in enumerate(steps))
    )
    assert Slide(path).read(0, 0, 32, 0.5).shape == (32, 32, 3)


def test_the_thumbnail_is_not_converted_in_place_of_the_slide(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for image in (SMALL, IMAGE):
            tiff.write(image, photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match="is smaller than another one, of 600 x 500 px"):
        convert(tmp_path / "a.tif", tmp_path / "b.tif", 0.5)


def test_an_animation_is_not_converted(tmp_path: Path) -> None:
    pictures = [Image.fromarray(one) for one in (IMAGE, 255 - IMAGE)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(SlideError, match="2 images"):
        convert(tmp_path / "a.webp", tmp_path / "b.tif", 0.5)
