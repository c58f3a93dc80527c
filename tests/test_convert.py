"""Images that OpenSlide refuses, made into slides and tiled."""

import io
import multiprocessing
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from conftest import draw_tissue
from numpy.typing import NDArray
from PIL import Image

from sslpath.convert import convert
from sslpath.errors import ConfigError, PixelSizeError, SlideError
from sslpath.jpeg_colours import is_ycbcr_as_rgb
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.tiling import tile_slide


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "section.png"
    Image.fromarray(draw_tissue(1300, 900)).save(path)
    return path


def test_the_slide_has_the_pixel_size_the_size_and_the_pixels_of_the_image(
    image: Path, tmp_path: Path
) -> None:
    slide = convert(image, tmp_path / "section.tif", 0.3)
    with openslide.OpenSlide(str(slide.path)) as opened:
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.3)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.3)
    assert slide.mpp == pytest.approx(0.3)
    assert slide.dimensions == (1300, 900)
    assert slide.level_downsamples == pytest.approx((1, 2, 4, 8), rel=0.01)
    pixels = np.array(Image.open(image)).astype(int)
    error = np.abs(slide.read(300, 200, 512, 0.3) - pixels[200:712, 300:812])
    assert error.mean() < 3
    assert [path.name for path in tmp_path.iterdir()] == ["section.tif"]  # nothing left over


def test_a_higher_quality_is_closer_to_the_image(image: Path, tmp_path: Path) -> None:
    pixels = np.array(Image.open(image))[200:712, 300:812].astype(int)
    errors = [
        np.abs(
            convert(image, tmp_path / f"{q}.tif", 0.3, quality=q).read(300, 200, 512, 0.3) - pixels
        ).mean()
        for q in (50, 95)
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_images_of_other_kinds_come_out_as_rgb_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (300, 300), (200, 120, 160))
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.new("L", (300, 300), 0))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.convert(mode).save(path)
    tile = convert(path, tmp_path / "a.tif", 0.5).read(50, 50, 64, 0.5)
    if mode in ("LA", "RGBA"):
        assert (tile > 250).all()
    elif mode == "L":
        assert np.ptp(tile.reshape(-1, 3), axis=1).max() <= 2
    else:
        # libvips reads CMYK with the profile of a printing press: a little duller.
        assert np.abs(tile.mean((0, 1)) - (200, 120, 160)).max() < (40 if mode == "CMYK" else 6)


def test_a_turned_photograph_is_put_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 300), (255, 255, 255))
    picture.paste((180, 20, 60), (0, 0, 100, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    slide = convert(tmp_path / "a.jpg", tmp_path / "a.tif", 0.5)
    assert slide.dimensions == (300, 400)
    assert slide.read(230, 20, 40, 0.5)[..., 1].mean() < 60  # now at the top right
    assert slide.read(20, 20, 40, 0.5).mean() > 250


def test_a_cut_image_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(draw_tissue(600, 600)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SlideError, match=r"Cannot convert .*cut\.jpg"):
        convert(cut, tmp_path / "cut.tif", 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jpg", "whole.jpg"]


def test_what_is_no_colour_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(SlideError, match=r"Cannot convert .*a\.txt"):
        convert(tmp_path / "a.txt", tmp_path / "a.tif", 0.5)
    deep = np.zeros((100, 100, 3), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    with pytest.raises(SlideError, match=r"deep\.tif has 16 bits a sample and values up to 0 of"):
        convert(tmp_path / "deep.tif", tmp_path / "b.tif", 0.5)
    stack = np.zeros((5, 100, 100), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    with pytest.raises(SlideError, match=r"stack\.tif is a stack of 5"):
        convert(tmp_path / "stack.tif", tmp_path / "c.tif", 0.5)


def test_wrong_settings_are_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"No image at .*gone\.png"):
        convert(tmp_path / "gone.png", tmp_path / "a.tif", 0.5)
    with pytest.raises(PixelSizeError, match=r"section\.png: a pixel size of 250 um"):
        convert(image, tmp_path / "a.tif", 250)
    for target, settings in [
        (tmp_path / "a.png", {}),
        (tmp_path / "a.tif", {"quality": 0}),
        (tmp_path / "a.tif", {"tile": 100}),
    ]:
        with pytest.raises(ConfigError):
            convert(image, target, 0.5, **settings)  # type: ignore[arg-type]
    same = tmp_path / "same.tif"
    pyvips.Image.new_from_file(str(image)).tiffsave(str(same))
    before = same.read_bytes()
    with pytest.raises(ConfigError, match="already exists"):
        convert(same, same, 0.5)
    assert same.read_bytes() == before


def convert_one(image: Path, target: Path) -> tuple[int, int]:
    return convert(image, target, 0.5).dimensions


def test_images_are_converted_in_other_processes_too(image: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(convert_one, (image, tmp_path / "a.tif")) == (1300, 900)


@pytest.mark.parametrize("name", ["C2", "C3"])
def test_real_sections_in_jpeg_become_slides_that_tile(
    shared: Path, tmp_path: Path, name: str
) -> None:
    slide = convert(shared / f"real/her2st/{name}.jpg", tmp_path / f"{name}.tif", 0.8)
    assert slide.mpp == pytest.approx(0.8)
    tiles = tile_slide(slide, mpp=0.8, tile_px=112)
    assert len(tiles) == pytest.approx(1280, abs=120)
    some = tiles.sample(20, random_state=0)
    pixels = open_source(tiles).read(some)
    assert (pixels.std((1, 2, 3)) > 20).all()  # tissue everywhere


def test_a_real_ome_tiff_becomes_a_slide_in_its_true_colours(shared: Path, tmp_path: Path) -> None:
    path = shared / "real/slides/OS-1-detail.ome.tif"
    assert is_ycbcr_as_rgb(path)
    slide = convert(path, tmp_path / "OS-1.tif", 0.2271)
    assert slide.dimensions == (1101, 1101)
    assert slide.mpp == pytest.approx(0.2271)
    red, green, blue = slide.thumbnail(1101)[0].mean((0, 1))
    assert red > green + 20  # stained pink and purple; unconverted it would be green
    assert blue > green + 20
    tiles = tile_slide(slide, mpp=0.25, tile_px=224)
    assert len(tiles) == 16
    # Its JPEG tile, decoded by another library.
    data = path.read_bytes()
    start = data.find(b"\xff\xd8\xff\xe0")
    (tmp_path / "tile.jpg").write_bytes(data[start : data.find(b"\xff\xd9", start) + 2])
    true = np.array(Image.open(tmp_path / "tile.jpg").convert("RGB")).astype(int)
    side = min(true.shape[0], 512)
    error = np.abs(slide.read(0, 0, side, slide.mpp) - true[:side, :side])
    assert error.mean() < 4


# YCbCr that is declared RGB


def write_jfif_tiles(path: Path, pixels: NDArray[np.uint8], photometric: int) -> Path:
    """A TIFF of 512 x 512 px whose tiles are whole JFIF files with subsampled chroma."""
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    # The tiles are then replaced in place: the file keeps the room of raw pixels.
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages[0]
        lengths = []
        corners = [(y, x) for y in (0, 256) for x in (0, 256)]
        for (y, x), offset in zip(corners, page.dataoffsets, strict=True):
            buffer = io.BytesIO()
            tile = Image.fromarray(pixels[y : y + 256, x : x + 256])
            tile.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
            tiff.filehandle.seek(offset)
            tiff.filehandle.write(buffer.getvalue())
            lengths.append(len(buffer.getvalue()))
        page.tags["TileByteCounts"].overwrite(lengths)
        page.tags["Compression"].overwrite(7)
        page.tags["PhotometricInterpretation"].overwrite(photometric)
    return path


def test_a_tiff_of_ycbcr_that_declares_rgb_is_read_in_its_true_colours(tmp_path: Path) -> None:
    # Tiles as Bio-Formats writes them: whole JFIF files with subsampled chroma.
    pixels = draw_tissue(512, 512)
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    for path, photometric in ((good, 6), (bad, 2)):
        write_jfif_tiles(path, pixels, photometric)
    assert not is_ycbcr_as_rgb(good)
    assert is_ycbcr_as_rgb(bad)
    tiles = [Slide(path).read(100, 100, 300, 0.5).astype(int) for path in (good, bad)]
    assert np.abs(tiles[0] - tiles[1]).max() <= 3
    assert np.abs(tiles[1] - pixels[100:400, 100:400]).mean() < 8


def test_true_rgb_and_broken_files_are_left_alone(slide_path: Path, tmp_path: Path) -> None:
    assert not is_ycbcr_as_rgb(slide_path)
    data = slide_path.read_bytes()
    for size in (0, 3, 8, 20, 2000):
        path = tmp_path / f"{size}.tif"
        path.write_bytes(data[:size])
        assert not is_ycbcr_as_rgb(path)
    rgb = tmp_path / "rgb.tif"
    pyvips.Image.new_from_array(draw_tissue(300, 300)).tiffsave(
        str(rgb), tile=True, compression="jpeg", Q=95, rgbjpeg=True
    )
    assert not is_ycbcr_as_rgb(rgb)
