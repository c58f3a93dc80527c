"""Slides: pixels, pixel sizes, broken files, and handles across processes."""

import gc
import html
import io
import multiprocessing
import pickle
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from conftest import MPP, draw_tissue, write_lossless, write_slide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sslpath import handles
from sslpath.errors import ConfigError, PixelSizeError, SlideError, TileReadError
from sslpath.slides import Slide

CMU_MPP = 0.499


def native(path: Path, x: int, y: int, level: int, size: int) -> NDArray[np.uint8]:
    """What OpenSlide itself returns, as RGB."""
    with openslide.OpenSlide(str(path)) as slide:
        return np.array(slide.read_region((x, y), level, (size, size)).convert("RGB"))


@pytest.fixture(scope="module")
def ramp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose red is x and whose green is y, level-0 px, with a level of a quarter."""
    y, x = np.mgrid[:240, :252]
    full = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)
    quarter = full.reshape(60, 4, 63, 4, 3).mean((1, 3)).round().astype(np.uint8)
    return write_lossless(tmp_path_factory.mktemp("ramp") / "ramp.tif", [full, quarter])


@pytest.fixture(scope="module")
def odd_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose second level is smaller by 3.9995 instead of 4."""
    full = draw_tissue(3999, 800)
    quarter = np.random.default_rng(1).integers(0, 256, (200, 1000, 3), np.uint8)
    return write_lossless(tmp_path_factory.mktemp("odd") / "odd.tif", [full, quarter])


# Pixels


def test_a_tile_at_the_slides_own_pixel_size_is_openslides_read_region(slide_path: Path) -> None:
    tile = Slide(slide_path).read(701, 333, 224, MPP)
    assert tile.shape == (224, 224, 3)
    assert tile.dtype == np.uint8
    assert np.array_equal(tile, native(slide_path, 701, 333, 0, 224))


def test_a_tile_at_the_pixel_size_of_a_level_is_openslides_read_region(slide_path: Path) -> None:
    for level in (1, 2):
        tile = Slide(slide_path).read(400, 240, 96, MPP * 2**level)
        assert np.array_equal(tile, native(slide_path, 400, 240, level, 96))


def test_downsamples_stay_floats_and_3_9995_still_means_the_level_of_4(odd_path: Path) -> None:
    slide = Slide(odd_path)
    assert slide.level_downsamples == pytest.approx((1.0, 3.9995))
    # The level's pixels are noise, so they cannot be had from level 0.
    assert np.array_equal(slide.read(400, 80, 64, 4 * MPP), native(odd_path, 400, 80, 1, 64))


def test_a_pixel_size_between_levels_is_resampled_from_the_finer_one(odd_path: Path) -> None:
    tile = Slide(odd_path).read(1600, 300, 64, 3 * MPP)
    finer = native(odd_path, 1600, 300, 0, 192).astype(float)
    means = finer.reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(tile - means).mean() < 6  # tissue with sharp nuclei; noise would differ by 80


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.integers(0, 60), y=st.integers(0, 60), size=st.integers(8, 20), scale=st.floats(0.9, 8))
def test_resampled_pixels_lie_where_their_pixel_size_puts_them(
    ramp_path: Path, x: int, y: int, size: int, scale: float
) -> None:
    tile = Slide(ramp_path).read(x, y, size, MPP * scale).astype(float)
    # Pixel i covers [i, i + 1) * scale from the tile's corner; a ramp's mean is that of its middle.
    places = (np.arange(size) + 0.5) * scale - 0.5
    inner = slice(1, -1)  # at its rim a resampled tile has no neighbours to lean on
    assert np.abs(tile[:, inner, 0] - (x + places)[inner]).max() < 0.51 * max(1, scale) + 0.6
    assert np.abs(tile[inner, :, 1] - (y + places)[inner, None]).max() < 0.51 * max(1, scale) + 0.6


@pytest.mark.parametrize(("size", "mpp"), [(0, 0.5), (-1, 0.5), (64, 0.0), (64, float("nan"))])
def test_a_tile_of_no_size_is_refused(slide_path: Path, size: int, mpp: float) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Slide(slide_path).read(0, 0, size, mpp)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A slide of 40001 x 601 px and its levels, each pixel the mean of four: 300 is not 601 / 2."""
    y, x = np.mgrid[:601, :40001]
    levels = [np.stack([x // 160, abs(x % 400 - 200), y // 3], axis=2).astype(np.uint8)]
    for _ in range(2):
        height, width = (side // 2 for side in levels[-1].shape[:2])
        fours = levels[-1][: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        levels.append(fours.mean((1, 3)).round().astype(np.uint8))
    path = tmp_path_factory.mktemp("narrow") / "narrow.tif"
    return write_lossless(path, levels), levels


@pytest.mark.parametrize("level", [1, 2])
def test_far_along_a_narrow_slide_a_level_is_read_where_it_lies(
    narrow: tuple[Path, list[np.ndarray]], level: int
) -> None:
    path, levels = narrow
    step = 2**level
    for x, y in ((0, 0), (20_000, 80), (39_600, 200)):
        tile = Slide(path).read(x, y, 100, MPP * step).astype(int)
        top, left = y // step, x // step
        expected = levels[level][top : top + 100, left : left + 100].astype(int)
        # Colours say where a pixel is: red roughly and green by each px along, blue by 3 px across.
        assert (np.abs(tile - expected).max(axis=(0, 1)) <= (1, step - 1, 1)).all()


def test_a_thumbnail_of_a_narrow_slide_shows_each_place_where_it_says(
    narrow: tuple[Path, list[np.ndarray]],
) -> None:
    path, levels = narrow
    small, mpp = Slide(path).thumbnail(mpp=4 * MPP)
    step = mpp / MPP
    middles = ((np.arange(small.shape[1]) + 0.5) * step).astype(int)
    assert np.abs(small[50].astype(int) - levels[0][200, middles]).max() <= 3


def test_what_lies_outside_the_slide_is_white_not_black(slide_path: Path) -> None:
    width, height = Slide(slide_path).dimensions
    for mpp in (MPP, 0.8):
        tile = Slide(slide_path).read(width - 20, height - 20, 64, mpp)
        assert (tile[-8:, -8:] == 255).all()


def recompressed(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A tile after one more round of JPEG, as the DICOM copy of the slide has had."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=80, subsampling="4:2:0")
    return np.array(Image.open(buffer))


def test_the_same_pixels_come_from_aperio_and_from_dicom_that_misstates_its_colours(
    shared: Path,
) -> None:
    folder = shared / "real/slides"
    aperio = Slide(folder / "cmu-1-small-region.svs")
    dicom = Slide(folder / "cmu-1-small-region-dicom/level-0-frames-0-30.dcm")
    assert aperio.dimensions == dicom.dimensions
    assert aperio.mpp == dicom.mpp == CMU_MPP
    for x, y in [(700, 900), (1003, 1507), (600, 2400), (0, 0)]:
        for mpp in (CMU_MPP, 0.6, 0.9):
            a, b = (slide.read(x, y, 224, mpp).astype(float) for slide in (aperio, dicom))
            once_more = recompressed(aperio.read(x, y, 224, CMU_MPP))
            tolerance = np.abs(once_more - aperio.read(x, y, 224, CMU_MPP).astype(float)).mean()
            assert np.abs(a - b).mean() < 1.25 * tolerance
            assert np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() < 2


def test_dicom_tiles_equal_their_jpeg_data_decoded_by_another_library(shared: Path) -> None:
    path = shared / "real/slides/cmu-1-small-region-dicom/level-0-frames-0-30.dcm"
    data = path.read_bytes()
    start = data.find(b"\xff\xd8\xff")
    frame = Image.open(io.BytesIO(data[start : data.find(b"\xff\xd9", start) + 2]))
    ours = Slide(path).read(0, 0, frame.width, CMU_MPP)
    assert np.abs(np.array(frame).astype(int) - ours).max() <= 1


def test_aperio_tiles_equal_openslides_read_region(shared: Path) -> None:
    path = shared / "real/slides/cmu-1-small-region.svs"
    tile = Slide(path).read(1003, 1507, 224, CMU_MPP)
    assert np.array_equal(tile, native(path, 1003, 1507, 0, 224))
    assert tile.std() > 20  # tissue


# Thumbnails


@pytest.mark.parametrize("mpp", [4.0, 5.3, 8.0, 41.7])
def test_a_thumbnail_shows_each_place_where_it_says(slide_path: Path, mpp: float) -> None:
    slide = Slide(slide_path)
    thumbnail, got = slide.thumbnail(mpp=mpp)
    assert got == pytest.approx(mpp)
    d = got / slide.mpp
    assert thumbnail.shape == (int(1500 / d), int(2000 / d), 3)
    dark = thumbnail.mean(-1) < 225  # the disc of tissue, centred at (1000, 750)
    y, x = (np.argwhere(dark).mean(0) + 0.5) * d
    assert (x, y) == pytest.approx((1000, 750), abs=6 + d / 2)
    assert dark.mean() == pytest.approx(np.pi * 0.3**2, rel=0.05 + 0.2 * (mpp > 20))


def test_a_thumbnail_without_small_levels_is_the_mean_of_the_full_one(tmp_path: Path) -> None:
    image = draw_tissue(3000, 400)  # wider than the blocks in which it is read
    slide = Slide(write_lossless(tmp_path / "flat.tif", [image]))
    thumbnail, _ = slide.thumbnail(300)
    means = image.reshape(40, 10, 300, 10, 3).mean((1, 3))
    assert thumbnail.shape == (40, 300, 3)
    assert np.abs(thumbnail - means).max() <= 1


def test_a_thumbnail_is_never_finer_than_the_slide(ramp_path: Path) -> None:
    thumbnail, mpp = Slide(ramp_path).thumbnail(5000)
    assert thumbnail.shape == (240, 252, 3)
    assert mpp == MPP
    assert Slide(ramp_path).thumbnail(mpp=0.1)[1] == MPP


def test_a_notebook_shows_the_slide_and_escapes_its_name(slide_path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a<b>&.tif"
    shutil.copy(slide_path, odd)
    shown = Slide(odd)._repr_html_()
    assert html.escape("a<b>&.tif") in shown
    assert "<b>&.tif" not in shown
    assert "data:image/png;base64," in shown
    assert "2000 x 1500 px, 0.5 um per px" in shown
    assert "No slide at" in Slide(tmp_path / "gone.tif")._repr_html_()


# Pixel sizes


def test_jpeg_2000_without_a_pixel_size_asks_for_one_and_then_works(shared: Path) -> None:
    path = shared / "real/slides/tcga-cr-7395-01a-01-ts1.svs"
    with pytest.raises(PixelSizeError, match=rf"{path.name}.*`--mpp-override`.*`mpp=`"):
        Slide(path).read(1000, 1000, 224, 0.5)
    slide = Slide(path, mpp=0.5)
    assert slide.mpp == 0.5
    tile = slide.read(1000, 1000, 224, 0.5)
    assert np.array_equal(tile, native(path, 1000, 1000, 0, 224))
    assert tile.std() > 10


def test_a_slide_without_a_pixel_size_is_still_shown_and_can_be_overridden(tmp_path: Path) -> None:
    path = write_lossless(tmp_path / "a.tif", [draw_tissue(600, 400)])
    with tifffile.TiffFile(path, mode="r+") as tiff:  # a denominator of zero
        for name in ("XResolution", "YResolution"):
            tiff.pages[0].tags[name].overwrite((1, 0))
    with pytest.raises(PixelSizeError, match=r"a\.tif does not say its pixel size"):
        _ = Slide(path).mpp
    assert "pixel size unknown" in Slide(path)._repr_html_()
    assert Slide(path, mpp=0.25).read(0, 0, 64, 0.25).shape == (64, 64, 3)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf"), 1000.0, 0.001])
def test_an_implausible_override_is_refused(mpp: float) -> None:
    with pytest.raises(PixelSizeError, match=r"a\.svs: a pixel size of .* is not plausible"):
        Slide("a.svs", mpp=mpp)


@pytest.mark.parametrize("mpp", [352.8, 0.001])
def test_an_implausible_pixel_size_in_the_file_is_refused(tmp_path: Path, mpp: float) -> None:
    path = write_slide(tmp_path / "dpi.tif", draw_tissue(300, 300), mpp=mpp)
    with pytest.raises(PixelSizeError, match=r"dpi\.tif: a pixel size of .*--mpp-override"):
        _ = Slide(path).mpp
    assert Slide(path, mpp=0.5).mpp == 0.5


def test_oblong_pixels_are_refused_but_slightly_oblong_ones_are_averaged(tmp_path: Path) -> None:
    image = draw_tissue(300, 300)
    oblong = write_lossless(tmp_path / "oblong.tif", [image], mpp=(0.25, 0.5))
    with pytest.raises(PixelSizeError, match=r"0\.25 um wide and 0\.5 um high"):
        _ = Slide(oblong).mpp
    nearly = write_lossless(tmp_path / "nearly.tif", [image], mpp=(0.2500, 0.2520))
    assert Slide(nearly).mpp == pytest.approx(0.251)


# Broken files


def test_a_broken_slide_says_so_however_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "text.svs"
    path.write_text("This is not a slide.")
    slide = Slide(path)
    for use in (
        lambda: slide.dimensions,
        lambda: slide.read(0, 0, 64, MPP),
        lambda: slide.thumbnail(),
    ):
        with pytest.raises(SlideError, match=path.name):
            use()


@pytest.mark.parametrize("name", ["slides/OS-1-detail.ome.tif", "her2st/C2.jpg", "her2st/C3.jpg"])
def test_a_format_that_openslide_refuses_is_told_how_to_be_converted(
    shared: Path, name: str
) -> None:
    path = shared / "real" / name
    with pytest.raises(SlideError, match=rf"{path.name}.*`sslpath data convert .*--mpp"):
        Slide(path).thumbnail()


def damage(path: Path, x: int, y: int) -> None:
    """Overwrite the level-0 tile that holds a pixel."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = y // page.tilelength * -(-page.imagewidth // page.tilewidth) + x // page.tilewidth
        start, length = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * length)


def test_a_damaged_tile_is_reported_and_the_others_are_still_read(tmp_path: Path) -> None:
    path = write_lossless(tmp_path / "damaged.tif", [draw_tissue(1024, 512)])
    whole = Slide(path).read(512, 0, 256, MPP)
    damage(path, 300, 100)
    slide = Slide(path)
    for _ in range(2):
        with pytest.raises(TileReadError, match=r"at \(256, 0\), level 0, of .*damaged\.tif"):
            slide.read(256, 0, 256, MPP)
        assert np.array_equal(slide.read(512, 0, 256, MPP), whole)


def test_a_slide_that_vanishes_is_reported_and_one_that_changes_is_opened_anew(
    tmp_path: Path,
) -> None:
    path = write_lossless(tmp_path / "a.tif", [np.full((300, 300, 3), 10, np.uint8)])
    slide = Slide(path)
    assert slide.read(0, 0, 32, MPP).max() == 10
    write_lossless(tmp_path / "b.tif", [np.full((300, 400, 3), 90, np.uint8)]).replace(path)
    assert slide.read(0, 0, 32, MPP).min() == 90
    assert slide.dimensions == (400, 300)
    path.unlink()
    with pytest.raises(SlideError, match=r"No slide at .*a\.tif"):
        slide.read(0, 0, 32, MPP)


# Handles and processes


def test_open_handles_are_bounded(slide_path: Path, tmp_path: Path) -> None:
    copies = []
    for i in range(2 * handles.MAX_HANDLES):
        copy = tmp_path / f"{i}.tif"
        copy.symlink_to(slide_path)
        copies.append(Slide(copy))
    tiles = [slide.read(700, 700, 32, MPP) for slide in copies]
    assert all(np.array_equal(tile, tiles[0]) for tile in tiles)
    gc.collect()
    alive = sum(isinstance(thing, openslide.OpenSlide) for thing in gc.get_objects())
    assert 0 < alive <= handles.MAX_HANDLES


def read_all(slide: Slide, corners: list[tuple[int, int]]) -> NDArray[np.uint8]:
    return np.stack([slide.read(x, y, 64, MPP) for x, y in corners])


CORNERS = [(x, y) for y in range(0, 1400, 200) for x in range(0, 1900, 100)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_slide_opened_here_is_read_the_same_in_other_processes(
    slide_path: Path, start: str
) -> None:
    slide = Slide(slide_path)
    here = read_all(slide, CORNERS)
    parts = [CORNERS[i::4] for i in range(4)]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(read_all, slide, part) for part in parts]
        # The parent reads on meanwhile: were file positions shared, someone would get garbage.
        again = read_all(slide, CORNERS)
        there = [future.result() for future in futures]
    assert np.array_equal(again, here)
    for i, part in enumerate(there):
        assert np.array_equal(part, here[i::4])


def test_many_threads_read_the_same_pixels(slide_path: Path) -> None:
    slide = Slide(slide_path)
    here = read_all(slide, CORNERS)
    results: list[NDArray[np.uint8]] = []
    threads = [
        threading.Thread(target=lambda: results.append(read_all(slide, CORNERS))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result, here) for result in results)


def test_a_pickled_slide_keeps_path_and_override_and_no_handle(slide_path: Path) -> None:
    slide = Slide(slide_path, mpp=0.3)
    _ = slide.dimensions
    data = pickle.dumps(slide)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert (copy.path, copy.mpp, copy.dimensions) == (slide_path, 0.3, (2000, 1500))


def test_resolution_tags_survive_as_fractions(tmp_path: Path) -> None:
    path = write_lossless(tmp_path / "a.tif", [draw_tissue(300, 300)], mpp=(0.2431, 0.2431))
    with tifffile.TiffFile(path) as tiff:
        per_cm = Fraction(*tiff.pages[0].tags["XResolution"].value)
    assert Slide(path).mpp == pytest.approx(float(10_000 / per_cm))
