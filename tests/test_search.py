"""``sslpath search`` and ``evaluate`` as a user types them, on odd words, images and files."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import draw_tissue, write_lossless
from numpy.typing import NDArray
from PIL import Image

from sslpath.cli import main
from sslpath.descriptors import write_descriptors
from sslpath.embed import embed_run
from sslpath.results import read_results, row, write_results
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import load_tiles, save_tiles
from sslpath.tiling import tile_slides

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "models" / "idc"
TILE_PX, MPP = 64, 1.0  # of slides of 0.5 um a pixel
NEAR = ("--near-tiles", "2", "--far-tiles", "3")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides, their table, random descriptors, and those of the shipped network."""
    folder = tmp_path_factory.mktemp("work")
    names = ("a", "b", "症例1")
    slides = [
        Slide(write_lossless(folder / f"{name}.tif", [draw_tissue(1000, 900, seed=i)]))
        for i, name in enumerate(names)
    ]
    tiles, _ = tile_slides(slides, mpp=MPP, tile_px=TILE_PX, progress=False)
    tiles["label"] = pd.array(tiles["x"] < 450, "Int8")
    tiles["split"] = np.where(tiles["slide_id"] == "a", "train", "test")
    save_tiles(tiles, folder / "t.parquet")
    describe(tiles, folder / "d")
    embed_run(tiles, open_source(tiles), SHIPPED, folder / "shipped", progress=False)
    return folder


def describe(tiles: pd.DataFrame, folder: Path, seed: int = 0) -> NDArray[np.float32]:
    features = np.random.default_rng(seed).normal(size=(len(tiles), 8)).astype(np.float32)
    for slide_id, at in tiles.groupby("slide_id").indices.items():
        coords = tiles.iloc[at][["x", "y"]].to_numpy()
        write_descriptors(folder, str(slide_id), features[at], coords, {"arch": "noise"})
    return features


def run(*words: object, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def found(text: str) -> list[tuple[float, str]]:
    """Distance and name of each neighbour that a search has printed."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    return [(float(line[0]), line[1]) for line in lines]


def name_of(tiles: pd.DataFrame, at: int) -> str:
    one = tiles.iloc[at]
    return f"{one['slide_id']}:{one['x']},{one['y']}"


# --- images as queries ---------------------------------------------------------------------------


def plain(pixels: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(pixels).save(path)


def opaque(pixels: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(pixels).convert("RGBA").save(path)


def sixteen_bits_a_colour(pixels: NDArray[np.uint8], path: Path) -> None:
    import pyvips

    wide = pixels.astype(np.uint16) * 257
    pyvips.Image.new_from_array(wide, interpretation="rgb16").pngsave(str(path))


def lying_on_its_side(pixels: NDArray[np.uint8], path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)


def transparent_where_white(pixels: NDArray[np.uint8], path: Path) -> None:
    shown = np.full((*pixels.shape[:2], 4), 255, np.uint8)
    shown[..., :3] = pixels
    shown[(pixels == 255).all(axis=2)] = 0  # black, where nobody sees it
    Image.fromarray(shown).save(path)


def with_a_palette(pixels: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(pixels).quantize(256).save(path)


SHOWN = [plain, opaque, sixteen_bits_a_colour, lying_on_its_side]


def search_image(work: Path, path: Path, out: Path, *more: object, code: int = 0) -> None:
    run("search", path, work / "t.parquet", "--descriptors", work / "shipped", "--run", SHIPPED,
        "--out", out, "--k", 3, *more, code=code)  # fmt: skip


@pytest.mark.parametrize("save", SHOWN, ids=lambda save: save.__name__)
def test_an_image_of_a_tile_finds_this_tile_however_it_was_saved(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    save: Callable[[NDArray[np.uint8], Path], None],
) -> None:
    tiles = load_tiles(work / "t.parquet")
    save(open_source(tiles).read(tiles.iloc[[7]])[0], tmp_path / "q.png")
    search_image(work, tmp_path / "q.png", tmp_path / "g.png")
    distance, name = found(capsys.readouterr().out)[0]
    assert name == name_of(tiles, 7)
    assert distance < 0.002


@pytest.mark.parametrize(
    "save", [transparent_where_white, with_a_palette], ids=lambda f: f.__name__
)
def test_what_is_transparent_is_white_and_a_palette_is_looked_up(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    save: Callable[[NDArray[np.uint8], Path], None],
) -> None:
    pixels = open_source(tiles := load_tiles(work / "t.parquet")).read(tiles.iloc[[7]])[0]
    pixels = pixels // 64 * 64  # few colours, which a palette holds
    pixels[:20] = 255
    plain(pixels, tmp_path / "plain.png")
    save(pixels, tmp_path / "other.png")
    said = []
    for name in ("plain", "other"):
        search_image(work, tmp_path / f"{name}.png", tmp_path / "g.png")
        said.append(found(capsys.readouterr().out))
    assert said[0] == said[1]


def cmyk(path: Path) -> None:
    Image.new("CMYK", (TILE_PX, TILE_PX)).save(path, "TIFF")


def sixteen_bits_of_grey(path: Path) -> None:
    Image.fromarray(np.zeros((TILE_PX, TILE_PX), np.uint16)).save(path, "PNG")


def floats(path: Path) -> None:
    Image.new("F", (TILE_PX, TILE_PX)).save(path, "TIFF")


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (TILE_PX, TILE_PX), colour) for colour in ("pink", "red", "blue")]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def pages(path: Path) -> None:
    frames = [Image.new("RGB", (TILE_PX, TILE_PX), colour) for colour in ("pink", "red")]
    frames[0].save(path, "TIFF", save_all=True, append_images=frames[1:])


def wider(path: Path) -> None:
    Image.new("RGB", (TILE_PX + 1, TILE_PX)).save(path, "PNG")


def twice_as_large(path: Path) -> None:
    Image.new("RGB", (2 * TILE_PX, 2 * TILE_PX)).save(path, "PNG")


def cut_short(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:2000])


def no_image(path: Path) -> None:
    path.write_text("slide_id,x,y")


def billion_pixels(path: Path) -> None:
    Image.new("1", (40_000, 40_000)).save(path, "PNG")


def damaged_chunk(path: Path) -> None:
    made = io.BytesIO()
    Image.new("RGB", (TILE_PX, TILE_PX), "pink").save(made, "PNG")
    data = bytearray(made.getvalue())
    data[12:16] = b"\x00\xff\x00\xff"
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (cmyk, "mode 'CMYK'"),
        (sixteen_bits_of_grey, "mode 'I;16'"),
        (floats, "mode 'F'"),
        (animated, "3 frames"),
        (pages, "2 frames or pages"),
        (wider, "65 x 64 px"),
        (twice_as_large, "--query-mpp"),
        (cut_short, "Cannot read"),
        (no_image, "Cannot read"),
        (billion_pixels, "Cannot read"),
        (damaged_chunk, "Cannot read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_image_that_shows_no_tile_is_refused_by_name(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    says: str,
) -> None:
    make(tmp_path / "q.img")
    search_image(work, tmp_path / "q.img", tmp_path / "g.png", code=1)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "q.img" in error
    assert says in error
    assert not (tmp_path / "g.png").exists()


@pytest.mark.parametrize(("mpp", "side"), [(0.5, 200), (0.5, 128), (1.0, 64), (1.0, 90)])
def test_an_image_of_another_scale_shows_the_tile_in_its_middle(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mpp: float, side: int
) -> None:
    tiles = load_tiles(work / "t.parquet")
    one = tiles.iloc[len(tiles) // 2]
    margin = round((side * mpp - TILE_PX * MPP) / 2 / 0.5)  # level-0 px
    slide = Slide(work / f"{one['slide_id']}.tif")
    plain(slide.read(one["x"] - margin, one["y"] - margin, side, mpp), tmp_path / "q.png")
    search_image(work, tmp_path / "q.png", tmp_path / "g.png", "--query-mpp", mpp)
    distance, name = found(capsys.readouterr().out)[0]
    assert name == name_of(tiles, len(tiles) // 2)
    assert distance < 0.05  # edges are resampled with their surroundings


@pytest.mark.parametrize(
    ("mpp", "says"),
    [(0.2, "Take a larger section"), (2.5, "coarser"), (0.001, "--query-mpp"), (99, "--query-mpp")],
)
def test_an_image_that_spans_no_tile_or_has_no_detail_is_refused(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mpp: float, says: str
) -> None:
    Image.new("RGB", (100, 100), "pink").save(tmp_path / "q.png")
    search_image(work, tmp_path / "q.png", tmp_path / "g.png", "--query-mpp", mpp, code=1)
    assert says in capsys.readouterr().err


def test_the_scale_of_an_image_is_not_for_a_tile_of_the_table(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    run("search", name_of(tiles, 0), work / "t.parquet", "--descriptors", work / "d",
        "--query-mpp", 0.5, "--out", tmp_path / "g.png", code=1)  # fmt: skip
    assert "--query-mpp is for an image" in capsys.readouterr().err


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "language"),
    [("cp1252", "C.UTF-8"), ("ascii", "C.UTF-8"), ("utf-8", "C"), ("", "C"), ("latin-1", "C")],
)
def test_a_name_that_the_terminal_cannot_show_is_printed_as_escapes_and_work_goes_on(
    work: Path, tmp_path: Path, encoding: str, language: str
) -> None:
    tiles = load_tiles(work / "t.parquet")
    at = int(np.flatnonzero(tiles["slide_id"] == "症例1")[0])
    words = ["search", name_of(tiles, at), work / "t.parquet", "--descriptors", work / "d",
             "--out", tmp_path / "症例.png", "--keep-own"]  # fmt: skip
    environment = {**os.environ, "LANG": language, "LC_ALL": language}
    environment |= {"PYTHONIOENCODING": encoding} if encoding else {}
    done = subprocess.run(
        [sys.executable, "-m", "sslpath.cli", *map(str, words)],
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert len(found(done.stdout.decode(errors="replace"))) == 8
    assert Image.open(tmp_path / "症例.png").width > 300


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_output_does_not_end_the_work(work: Path, tmp_path: Path, closed: str) -> None:
    tiles = load_tiles(work / "t.parquet")
    words = ["search", name_of(tiles, 0), work / "t.parquet", "--descriptors", work / "d",
             "--out", tmp_path / "g.png"]  # fmt: skip
    line = [sys.executable, "-m", "sslpath.cli", *map(str, words)]
    shell = f'"$@" {1 if closed == "stdout" else 2}>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *line], capture_output=True, check=False)
    assert done.returncode == 0
    assert (tmp_path / "g.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_folders_whose_names_are_no_text_are_written_to_and_named(
    work: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    line = [sys.executable, "-m", "sslpath.cli"]
    table = work / "t.parquet"
    done = subprocess.run(
        [*line, "embed", table, "--encoder", "rgb", "--out", folder / "rgb"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9" in done.stdout
    done = subprocess.run(
        [*line, "evaluate", table, "--split", "all", *NEAR, "--no-baselines", "--k", "2",
         "--descriptors", f"rgb={folder / 'rgb'}", "--out", folder / "results.json"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_results(folder / "results.json")


def test_failures_of_slides_at_places_that_are_no_text_are_listed(
    work: Path, tmp_path: Path
) -> None:
    tiles = load_tiles(work / "t.parquet")
    for place in tiles.attrs["source"]["slides"].values():
        place["path"] = "gone.tif"
    save_tiles(tiles, tmp_path / "t.parquet")
    line = [sys.executable, "-m", "sslpath.cli", "embed", tmp_path / "t.parquet"]
    root = tmp_path / os.fsdecode(b"caf\xe9")
    done = subprocess.run(
        [*line, "--encoder", "rgb", "--root", root, "--out", tmp_path / "d"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "caf\\udce9" in (tmp_path / "d" / "failed.csv").read_text(encoding="utf-8")


def renamed(work: Path, folder: Path, name: str) -> tuple[Path, str]:
    """The table with another name for a slide, descriptors of it, and a tile of this slide."""
    tiles = load_tiles(work / "t.parquet")
    tiles["slide_id"] = tiles["slide_id"].replace({"a": name})
    places = tiles.attrs["source"]["slides"]
    places[name] = places.pop("a")
    save_tiles(tiles, folder / "t.parquet")
    describe(tiles, folder / "d")
    at = int(np.flatnonzero(tiles["slide_id"] == name)[0])
    return folder / "t.parquet", name_of(tiles, at)


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "$\\bad{$", "a|b", "x" * 240, "\x1b[31m"])
def test_a_name_of_a_slide_with_odd_signs_keeps_to_its_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    table, query = renamed(work, tmp_path, name)
    run("search", query, table, "--descriptors", tmp_path / "d", "--keep-own",
        "--k", 5, "--out", tmp_path / "g.png")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7  # the query, five tiles, the gallery
    assert all(line.isprintable() for line in lines)


# --- descriptors and tables that do not fit ------------------------------------------------------


def shift(file: h5py.File) -> None:
    file["coords"][:] += 1


def swap(file: h5py.File) -> None:
    file["coords"][:] = file["coords"][:][:, ::-1]


def smaller_level(file: h5py.File) -> None:
    file["coords"][:] //= 4


@pytest.mark.parametrize(
    ("change", "says"),
    [(shift, "another grid?"), (swap, "x and y are swapped"), (smaller_level, "a level 4 times")],
    ids=["shifted", "swapped", "of another level"],
)
@pytest.mark.parametrize("command", ["search", "evaluate"])
def test_descriptors_on_another_grid_are_told_with_a_place_of_each(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[h5py.File], None],
    says: str,
    command: str,
) -> None:
    tiles = load_tiles(work / "t.parquet")
    describe(tiles, tmp_path / "d")
    for path in (tmp_path / "d").iterdir():
        with h5py.File(path, "r+") as file:
            change(file)
    if command == "search":
        words = ["search", name_of(tiles, 0), work / "t.parquet", "--descriptors", tmp_path / "d"]
    else:
        words = ["evaluate", work / "t.parquet", "--split", "all", "--no-baselines", *NEAR]
        words += ["--descriptors", f"d={tmp_path / 'd'}"]
    run(*words, "--out", tmp_path / "out.png", code=1)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"None of the {len(tiles)} tiles has a descriptor at its place" in error
    assert f"({tiles['x'].iloc[0]}, {tiles['y'].iloc[0]})" in error
    assert says in error


def test_one_slide_on_another_grid_is_named_and_the_others_are_searched(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    describe(tiles, tmp_path / "d")
    with h5py.File(tmp_path / "d" / "b.h5", "r+") as file:
        shift(file)
    words = ("search", name_of(tiles, 0), work / "t.parquet", "--descriptors", tmp_path / "d")
    run(*words, "--out", tmp_path / "g.png")
    said = capsys.readouterr()
    assert re.search(r"Left out 1 slide with descriptors at other .*b\.h5", said.err)
    count = int((tiles["slide_id"] == "b").sum())
    assert f"left out {count} of {len(tiles)} tiles, without" in said.err
    assert not any(name.startswith("b:") for _, name in found(said.out))
    at = int(np.flatnonzero(tiles["slide_id"] == "b")[0])
    run("search", name_of(tiles, at), *words[2:], "--out", tmp_path / "h.png", code=1)
    assert "another grid?" in capsys.readouterr().err
    assert not (tmp_path / "h.png").exists()


def test_a_slide_without_a_file_is_told_what_was_looked_for_and_what_is_there(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    describe(tiles, tmp_path / "d")
    (tmp_path / "d" / "b.h5").rename(tmp_path / "d" / "b.pt")
    words = ("search", name_of(tiles, 0), work / "t.parquet", "--descriptors")
    run(*words, tmp_path / "d", "--out", tmp_path / "g.png", code=1)
    error = capsys.readouterr().err
    assert "b.h5. Beside it is b.pt" in error
    (tmp_path / "features").mkdir()
    (tmp_path / "d" / "b.pt").unlink()
    (tmp_path / "d").rename(tmp_path / "features" / "h5_files")  # as CLAM lays them out
    run(*words, tmp_path / "features", "--out", tmp_path / "g.png", code=1)
    assert "name that folder" in capsys.readouterr().err
    run(*words, tmp_path / "nowhere", "--out", tmp_path / "g.png", code=1)
    assert "there is no folder" in capsys.readouterr().err


def test_a_tile_that_the_table_lists_twice_is_searched_once(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    twice = pd.concat([tiles, tiles.iloc[[2]]], ignore_index=True)
    twice.attrs = tiles.attrs
    save_tiles(twice, tmp_path / "t.parquet")
    answers = []
    for table in (work / "t.parquet", tmp_path / "t.parquet"):
        run("search", name_of(tiles, 0), table, "--descriptors", work / "d", "--k", len(tiles),
            "--keep-own", "--out", tmp_path / "g.png")  # fmt: skip
        said = capsys.readouterr()
        answers.append(found(said.out))
    assert answers[0] == answers[1]
    assert f"1 row twice, such as {tiles['slide_id'].iloc[2]}" in said.err


MIXED = '{"arch": ["uni"], "mpp": "0.5", "input_px": "big"}'
FOREIGN: dict[str, dict[str, Any]] = {
    "text": {"provenance": "CLAM v1"},
    "list in JSON": {"provenance": "[1, 2]", "slide_id": "a"},
    "number in JSON": {"provenance": "7", "slide_id": "a"},
    "NaN in JSON": {"provenance": '{"mpp": NaN}', "slide_id": "a"},
    "deep JSON": {"provenance": "[" * 100_000, "slide_id": "a"},
    "another tool's JSON": {"provenance": '{"arch": "uni", "mpp": "0.5 um"}'},
    "another tool's JSON with a slide": {"provenance": MIXED, "slide_id": "TCGA"},
    "number": {"provenance": 3.5, "slide_id": 7},
    "bytes": {"provenance": np.bytes_(b"\xff\xfe"), "slide_id": np.bytes_(b"a")},
    "array of text": {"provenance": ["a", "b"], "slide_id": ["a", "b"]},
    "nothing": {"provenance": h5py.Empty("f"), "slide_id": h5py.Empty("S1")},
    "raw data": {"provenance": np.void(b"\0\1"), "slide_id": np.arange(4)},
}  # fmt: skip


@pytest.mark.parametrize("attrs", FOREIGN.values(), ids=FOREIGN)
def test_foreign_attributes_mean_an_unknown_origin_and_nothing_more(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], attrs: dict[str, Any]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    features = describe(tiles, tmp_path / "plain")
    (tmp_path / "d").mkdir()
    for slide_id, at in tiles.groupby("slide_id").indices.items():
        with h5py.File(tmp_path / "d" / f"{slide_id}.h5", "w") as file:
            file["features"] = features[at]
            file["coords"] = tiles.iloc[at][["x", "y"]].to_numpy()
            if slide_id != "a" or attrs.get("provenance") is not MIXED:
                file.attrs.update(attrs)
    said = []
    for name in ("plain", "d"):
        run("search", name_of(tiles, 0), work / "t.parquet", "--descriptors", tmp_path / name,
            "--out", tmp_path / "g.png")  # fmt: skip
        said.append(found(capsys.readouterr().out))
    assert said[0] == said[1]
    run("evaluate", work / "t.parquet", "--split", "all", "--no-baselines", *NEAR, "--k", 3,
        "--descriptors", f"imagenet={tmp_path / 'd'}", "--out", tmp_path / "r.json")  # fmt: skip


@pytest.mark.parametrize("unit", [2, 4, 128], ids=["level", "coarser level", "tiles"])
def test_places_in_another_unit_are_not_matched_where_they_coincide(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: int
) -> None:
    tiles = load_tiles(work / "t.parquet")
    tiles["x"] -= tiles["x"].min()
    tiles["y"] -= tiles["y"].min()
    save_tiles(tiles, tmp_path / "t.parquet")
    describe(tiles, tmp_path / "d")
    for path in (tmp_path / "d").iterdir():
        with h5py.File(path, "r+") as file:
            file["coords"][:] //= unit
    run("search", name_of(tiles, 0), tmp_path / "t.parquet", "--descriptors", tmp_path / "d",
        "--out", tmp_path / "g.png", code=1)  # fmt: skip
    assert "has a descriptor at its place" in capsys.readouterr().err


def test_a_slide_that_is_another_than_was_tiled_is_not_read(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "症例1"):
        size = (500, 450) if name == "a" else (1000, 900)
        write_lossless(tmp_path / f"{name}.tif", [draw_tissue(*size)])
    run("embed", work / "t.parquet", "--encoder", "rgb", "--root", tmp_path,
        "--out", tmp_path / "d", code=3)  # fmt: skip
    failed = pd.read_csv(tmp_path / "d" / "failed.csv")
    assert set(failed["slide_id"]) == {"a"}
    assert failed["error"].str.contains("when it was tiled: another version").all()
    assert (tmp_path / "d" / "b.h5").exists()


# --- the words of evaluate -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--descriptors", "chance={d}"], "the name of the random answers"),
        (["--descriptors", "rgb={d}", "rgb={shipped}"], "names 'rgb' twice"),
        (["--descriptors", "x={d}", "y={d}"], "'x' and 'y' share one folder"),
        (["--descriptors", "x={d}", "y={d}/../d/"], "'x' and 'y' share one folder"),
        (["--descriptors", "a - b={d}"], "difference of two methods"),
        (["--descriptors", "a|b={d}"], "holds '|'"),
        (["--descriptors", " a={d}"], "begins or ends with a space"),
        (["--descriptors", "={d}"], "NAME=DIR"),
        (["--descriptors", "a"], "NAME=DIR"),
        (["--descriptors", "a={d}/typo"], "does not exist"),
        (["--descriptors", "a={d}", "--split", "tset"], "it has 'test', 'train'"),
        (["--descriptors", "a={d}", "--near-tiles", "9", "--far-tiles", "4"], "near <= far"),
        (["--descriptors", "mine={out}/baselines/rgb"], "this is where the baseline goes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words_that_make_no_sense_are_refused_before_anything_is_computed(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    out = tmp_path / "out"
    if "{out}" in words[1]:
        describe(load_tiles(work / "t.parquet"), out / "baselines" / "rgb")
    named = [word.format(d=work / "d", shipped=work / "shipped", out=out) for word in words]
    run("evaluate", work / "t.parquet", *named, "--out", out / "r.json", code=1)
    assert says in capsys.readouterr().err
    assert not (out / "r.json").exists()
    assert not (out / "baselines" / "random").exists()


def test_k_beyond_all_tiles_is_measured_on_all_of_them(work: Path, tmp_path: Path) -> None:
    run("evaluate", work / "t.parquet", "--split", "all", "--descriptors", f"a={work / 'd'}",
        "--no-baselines", *NEAR, "--k", 10**9, "--out", tmp_path / "r.json")  # fmt: skip
    for one in read_results(tmp_path / "r.json"):
        if one["metric"].startswith(("tumour", "map", "mmv", "knn")):
            assert 0 <= one["value"] <= 1
    run("search", name_of(load_tiles(work / "t.parquet"), 0), work / "t.parquet", "--k", 10**9,
        "--descriptors", work / "d", "--out", tmp_path / "g.pdf")  # fmt: skip


def test_features_of_a_network_that_torchvision_lacks_still_get_a_random_baseline(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "t.parquet")
    describe(tiles, tmp_path / "d")  # by "noise"
    run("evaluate", work / "t.parquet", "--split", "all", "--descriptors",
        f"imagenet={tmp_path / 'd'}", *NEAR, "--out", tmp_path / "r.json")  # fmt: skip
    assert "random network (resnet18, 64 px)" in capsys.readouterr().out


# --- files that are not overwritten --------------------------------------------------------------


def test_a_file_that_holds_no_results_is_not_overwritten(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", work / "t.parquet", "--split", "all", "--no-baselines", *NEAR,
             "--descriptors", f"a={work / 'd'}", "--k", 3, "--out")  # fmt: skip
    before = (work / "t.parquet").read_bytes()
    run(*words, work / "t.parquet", code=1)
    assert "holds no results of sslpath" in capsys.readouterr().err
    assert (work / "t.parquet").read_bytes() == before
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    run(*words, tmp_path / "mine.json", code=1)
    assert json.loads((tmp_path / "mine.json").read_text()) == {"mine": 1}
    run(*words, tmp_path, code=1)
    assert f"{tmp_path} is a folder" in capsys.readouterr().err
    write_results(tmp_path / "results.json", [row("old", "m", 1)])
    run(*words, tmp_path / "results.json")
    assert "old" not in {one["method"] for one in read_results(tmp_path / "results.json")}


def test_a_picture_of_another_program_is_not_overwritten(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9), "pink").save(tmp_path / "umap.png")
    before = (tmp_path / "umap.png").read_bytes()
    query = name_of(load_tiles(work / "t.parquet"), 0)
    search = ("search", query, work / "t.parquet", "--descriptors", work / "d", "--out")
    run(*search, tmp_path / "umap.png", code=1)
    assert "was not drawn by sslpath" in capsys.readouterr().err
    run("evaluate", work / "t.parquet", "--split", "all", "--no-baselines", *NEAR,
        "--descriptors", f"a={work / 'd'}", "--out", tmp_path / "r.json",
        "--figures", tmp_path, code=1)  # fmt: skip
    assert "umap.png is there" in capsys.readouterr().err
    assert (tmp_path / "umap.png").read_bytes() == before
    assert not (tmp_path / "r.json").exists()
    for ending in ("png", "pdf", "svg"):
        for _ in range(2):  # its own pictures are drawn anew
            run(*search, tmp_path / f"g.{ending}")


@pytest.mark.parametrize("name", ["gallery", "gallery.docx", "gallery.tmp", "folder.png"])
def test_a_picture_of_no_format_is_refused_before_the_search(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    query = name_of(load_tiles(work / "t.parquet"), 0)
    run("search", query, work / "t.parquet", "--descriptors", work / "d",
        "--out", tmp_path / name, code=1)  # fmt: skip
    said = capsys.readouterr()
    assert not said.out
    assert name in said.err


@pytest.mark.parametrize(
    "query",
    ["a:1,2,3", "a:x,y", "a", "a:1e3,4", "a:" + "9" * 30 + ",1", "nowhere:1,1", "x" * 300, ":1,1",
     "a:1,1\0", "a:" + "9" * 5000 + ",1"],
)  # fmt: skip
def test_a_query_that_is_no_tile_is_an_error_of_one_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], query: str
) -> None:
    run("search", query, work / "t.parquet", "--descriptors", work / "d",
        "--out", tmp_path / "g.png", code=1)  # fmt: skip
    assert capsys.readouterr().err.startswith("sslpath: error: ")
