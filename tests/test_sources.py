"""Sources: pixels by rows of the table, from slides and from a zip, in many processes."""

import io
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MPP, draw_tissue, write_lossless
from numpy.typing import NDArray
from PIL import Image

from sslpath.errors import DataError, SlideError, TableError, TileReadError
from sslpath.slides import Slide
from sslpath.sources import SlideTiles, TileSource, ZipTiles, open_source
from sslpath.table import make_table
from sslpath.tiling import tile_slides

SIZE = 64


@pytest.fixture(scope="module")
def two_slides(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Tiles of two slides in two folders."""
    folder = tmp_path_factory.mktemp("two")
    slides = []
    for seed, name in enumerate(("one/a.tif", "two/b.tif")):
        (folder / name).parent.mkdir()
        slides.append(Slide(write_lossless(folder / name, [draw_tissue(700, 500, seed)])))
    return tile_slides(slides, mpp=MPP, tile_px=SIZE, min_tissue=0.0, progress=False)[0]


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Tiles of noise in a zip; larger than the buffers in which zip files are read."""
    path = tmp_path_factory.mktemp("zip") / "tiles.zip"
    rng = np.random.default_rng(0)
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            row = {"slide_id": f"s{i % 4}", "x": SIZE * i, "y": 7, "label": i % 2}
            rows.append(row)
            archive.writestr("in/{slide_id}/{x}_{y}_{label}.png".format(**row), png(rng))
    return make_table(
        {name: [row[name] for row in rows] for name in rows[0]} | {"size": SIZE, "slide_mpp": MPP},
        mpp=MPP,
        tile_px=SIZE,
        source={"kind": "zip", "path": str(path), "member": "in/{slide_id}/{x}_{y}_{label}.png"},
    )


def png(rng: np.random.Generator, size: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["slides", "zip"])
def tiles(
    request: pytest.FixtureRequest, two_slides: pd.DataFrame, zipped: pd.DataFrame
) -> pd.DataFrame:
    return two_slides if request.param == "slides" else zipped


def test_pixels_come_in_the_order_of_the_rows(tiles: pd.DataFrame) -> None:
    source = open_source(tiles)
    shuffled = tiles.sample(frac=1, random_state=3)
    together = source.read(shuffled)
    assert together.shape == (len(tiles), SIZE, SIZE, 3)
    assert together.dtype == np.uint8
    for i in range(len(shuffled)):
        assert np.array_equal(source.read(shuffled.iloc[[i]])[0], together[i])
    assert len(np.unique(together.reshape(len(tiles), -1), axis=0)) == len(tiles)


def test_a_row_may_come_twice_and_none_give_none(tiles: pd.DataFrame) -> None:
    source = open_source(tiles)
    twice = source.read(tiles.iloc[[2, 2]])
    assert np.array_equal(twice[0], twice[1])
    assert source.read(tiles.iloc[[]]).shape == (0, SIZE, SIZE, 3)


def read(source: TileSource, rows: pd.DataFrame) -> NDArray[np.uint8]:
    return source.read(rows)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_source_used_here_reads_the_same_in_other_processes(
    tiles: pd.DataFrame, start: str
) -> None:
    source = open_source(tiles)
    here = source.read(tiles)
    parts = [tiles.iloc[i::5] for i in range(5)]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(read, source, part) for part in parts]
        # Read here at the same time: a shared file position would mix the two up.
        assert np.array_equal(source.read(tiles), here)
        for i, future in enumerate(futures):
            assert np.array_equal(future.result(), here[i::5])


inherited: TileSource


def read_inherited(rows: pd.DataFrame) -> NDArray[np.uint8]:
    return inherited.read(rows)


def test_a_source_inherited_open_by_a_fork_is_opened_anew(tiles: pd.DataFrame) -> None:
    global inherited
    inherited = open_source(tiles)
    here = inherited.read(tiles)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        there = pool.map(read_inherited, [tiles.iloc[i::9] for i in range(9)])
    for i, part in enumerate(there):
        assert np.array_equal(part, here[i::9])


def test_pickled_sources_hold_no_pixels_and_no_handles(tiles: pd.DataFrame) -> None:
    source = open_source(tiles)
    here = source.read(tiles.head(3))
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert np.array_equal(pickle.loads(data).read(tiles.head(3)), here)


def test_files_that_have_moved_are_found_under_the_new_root(
    two_slides: pd.DataFrame, zipped: pd.DataFrame, tmp_path: Path
) -> None:
    for name, table in (("slides", two_slides), ("zip", zipped)):
        here = open_source(table).read(table.iloc[[0, -1]])
        source = table.attrs["source"]
        where = [entry["path"] for entry in source.get("slides", {"": source}).values()]
        old = Path(where[0]).parent if name == "zip" else Path(where[0]).parents[1]
        (tmp_path / name).symlink_to(old)
        moved = table.copy()
        moved.attrs["source"] = relocated(source, old, Path("/gone/away"))
        with pytest.raises((SlideError, DataError), match="/gone/away"):
            open_source(moved).read(table.head(1))
        found = open_source(moved, root=tmp_path / name)
        assert np.array_equal(found.read(table.iloc[[0, -1]]), here)


@pytest.mark.parametrize(
    ("paths", "places"),
    [
        (["C:\\s\\a.svs", "C:\\s\\b.svs"], ["a.svs", "b.svs"]),
        (["C:\\s\\1\\a.svs", "c:/S/2/b.svs"], ["1/a.svs", "2/b.svs"]),
        (["C:\\s\\a.svs", "D:\\t\\b.svs"], ["s/a.svs", "t/b.svs"]),
        (["\\\\server\\share\\s\\a.svs", "\\\\server\\share\\b.svs"], ["s/a.svs", "b.svs"]),
        (["/data/s/a.svs", "/data/s/t/b.svs"], ["a.svs", "t/b.svs"]),
        (["/data/a.svs", "/data/A/b.svs"], ["a.svs", "A/b.svs"]),
    ],
)
def test_a_table_of_any_system_finds_its_slides_under_a_root(
    slide_path: Path, tmp_path: Path, paths: list[str], places: list[str]
) -> None:
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(slide_path)
    names = {name: {"path": path, "mpp": MPP} for name, path in zip("ab", paths, strict=True)}
    table = make_table(
        {"slide_id": ["a", "b"], "x": 600, "y": 500, "size": 50, "slide_mpp": MPP},
        mpp=MPP,
        tile_px=50,
        source={"kind": "slides", "slides": names},
    )
    pixels = open_source(table, tmp_path).read(table)
    assert np.array_equal(pixels, [Slide(slide_path).read(600, 500, 50, MPP)] * 2)
    with pytest.raises(SlideError, match=r"No slide at .*--root DIR"):
        open_source(table).read(table)


def relocated(source: dict, old: Path, new: Path) -> dict:
    def move(path: str) -> str:
        return str(new / Path(path).relative_to(old))

    if source["kind"] == "zip":
        return {**source, "path": move(source["path"])}
    slides = {k: {**v, "path": move(v["path"])} for k, v in source["slides"].items()}
    return {**source, "slides": slides}


def test_the_pixel_size_in_the_table_overrides_the_slides_own(two_slides: pd.DataFrame) -> None:
    table = two_slides.copy()
    table.attrs["source"] = {
        "kind": "slides",
        "slides": {
            k: {**v, "mpp": 2 * MPP} for k, v in two_slides.attrs["source"]["slides"].items()
        },
    }
    table.attrs["mpp"] = 2 * MPP
    rows = table.iloc[[5]]
    assert np.array_equal(open_source(table).read(rows), open_source(two_slides).read(rows))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "lacks 'kind'"),
        ({"kind": "slides"}, "lacks 'slides'"),
        ({"kind": "slides", "slides": {"a": {"path": "x"}}}, "lacks 'mpp'"),
        ({"kind": "zip", "path": "x.zip"}, "lacks 'member'"),
        ({"kind": "cloud"}, "kind 'cloud' cannot be read"),
    ],
)
def test_a_table_that_does_not_say_where_its_pixels_are_is_refused(
    two_slides: pd.DataFrame, source: dict[str, object], message: str
) -> None:
    table = two_slides.copy()
    table.attrs["source"] = source
    with pytest.raises(TableError, match=message):
        open_source(table)


def test_a_tile_of_a_slide_that_the_source_does_not_know_is_refused(
    two_slides: pd.DataFrame,
) -> None:
    source = open_source(two_slides)
    assert isinstance(source, SlideTiles)
    with pytest.raises(TableError, match="'c'"):
        source.read(two_slides.head(1).assign(slide_id="c"))


# What may be wrong with a zip


def zip_of(folder: Path, **members: bytes) -> ZipTiles:
    path = folder / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.png", data)
    return ZipTiles(path, "{slide_id}.png", tile_px=SIZE)


def test_a_tile_that_is_absent_cut_or_of_another_size_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = png(rng)
    source = zip_of(tmp_path, good=whole, cut=whole[:500], text=b"hello", small=png(rng, 50))
    for name, message in [
        ("gone", "no tile gone.png"),
        ("cut", r"Cannot decode cut\.png in .*odd\.zip"),
        ("text", r"Cannot decode text\.png"),
        ("small", r"small\.png in .* is 50 x 50 px; the table says 64 x 64"),
    ]:
        with pytest.raises(TileReadError, match=message):
            source.read(pd.DataFrame({"slide_id": ["good", name]}))
        assert source.read(pd.DataFrame({"slide_id": ["good"]})).shape == (1, SIZE, SIZE, 3)


def test_a_member_whose_bytes_have_changed_fails_its_checksum(tmp_path: Path) -> None:
    source = zip_of(tmp_path, a=png(np.random.default_rng(0)))
    data = bytearray(source.path.read_bytes())
    data[2000] ^= 0xFF
    source.path.write_bytes(data)
    with pytest.raises(TileReadError, match=r"a\.png in .*CRC"):
        source.read(pd.DataFrame({"slide_id": ["a"]}))


def test_a_missing_or_cut_archive_is_named(tmp_path: Path) -> None:
    source = zip_of(tmp_path, a=png(np.random.default_rng(0)))
    source.path.write_bytes(source.path.read_bytes()[:-50])
    row = pd.DataFrame({"slide_id": ["a"]})
    with pytest.raises(DataError, match=r"odd\.zip is not a whole zip"):
        source.read(row)
    source.path.unlink()
    with pytest.raises(DataError, match=r"No archive of tiles at .*odd\.zip"):
        source.read(row)


def test_grey_images_come_as_rgb(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 77).save(buffer, "PNG")
    source = zip_of(tmp_path, grey=buffer.getvalue())
    assert (source.read(pd.DataFrame({"slide_id": ["grey"]})) == 77).all()
