"""The command line on small phantom slides, as a user types it: files in, files out, exit codes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from sslpath.cli import main
from sslpath.datasets.phantom import make_phantoms
from sslpath.results import read_results
from sslpath.table import load_tiles


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small phantom slides with their ground truth."""
    folder = tmp_path_factory.mktemp("slides")
    make_phantoms(folder, 5, seed=3, workers=2, progress=False, width=2048, height=1536)
    return folder


@pytest.fixture(scope="module")
def work(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the commands have run, one after the other."""
    out = tmp_path_factory.mktemp("work")
    patients = "\n".join(f"phantom_{i:03d},P{i},{'train' if i < 2 else 'test'}" for i in range(5))
    (out / "patients.csv").write_text(f"slide_id,patient_id,split\n{patients}\n")
    tiles, features, spatial = out / "tiles.parquet", out / "d" / "random", out / "d" / "spatial"
    run(
        "tile", slides, "--out", tiles, "--mpp", 1, "--tile-px", 64, "--annotations", slides,
        "--patients", out / "patients.csv", "--preview", out / "preview",
    )  # fmt: skip
    run("embed", tiles, "--encoder", "random", "--arch", "resnet18", "--input-px", 32,
        "--out", features)  # fmt: skip
    run("train", tiles, "--features", features, "--out", out / "run", "--steps", 30,
        "--near-tiles", 2, "--far-tiles", 8)  # fmt: skip
    run("embed", tiles, "--run", out / "run", "--features", features, "--out", spatial)
    run("evaluate", tiles, "--descriptors", f"spatial={spatial}", f"random={features}",
        "--near-tiles", 2, "--far-tiles", 8, "--out", out / "results.json",
        "--figures", out / "figures", "--data", "small phantoms")  # fmt: skip
    return out


def run(*words: object, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def test_the_table_has_labels_patients_and_the_split_of_the_csv(work: Path) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    assert set(tiles["patient_id"]) <= {f"P{i}" for i in range(5)}
    assert set(tiles.loc[tiles["split"] == "train", "slide_id"]) <= {"phantom_000", "phantom_001"}
    assert set(tiles["label"].dropna()) == {0, 1}
    assert tiles.attrs["tile_px"] == 64


def test_a_picture_of_each_slide_with_its_grid_is_saved(work: Path) -> None:
    slides = set(load_tiles(work / "tiles.parquet")["slide_id"])
    assert {path.stem for path in (work / "preview").iterdir()} == slides


def test_descriptors_are_one_file_a_slide_of_128_numbers_of_unit_length(work: Path) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    for slide_id, rows in tiles.groupby("slide_id"):
        with h5py.File(work / "d" / "spatial" / f"{slide_id}.h5") as file:
            features, coords = file["features"][:], file["coords"][:]
        assert features.shape == (len(rows), 128)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(coords, rows[["x", "y"]].to_numpy())


def test_results_have_every_method_and_metric_with_provenance(work: Path) -> None:
    rows = read_results(work / "results.json")
    plain = {(row["method"], row["metric"]) for row in rows}
    for method in ("spatial", "random", "rgb"):
        for metric in ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median"):
            assert (method, metric) in plain
    assert all(row["data"] == "small phantoms" and row["commit"] for row in rows)


def test_pictures_of_the_results_are_saved(work: Path) -> None:
    names = {path.stem for path in (work / "figures").iterdir()}
    assert {"results", "distances", "umap", "gallery", "agreement", "grid", "pairs"} <= names
    assert (work / "run" / "curves.png").stat().st_size > 5000


def test_evaluating_twice_gives_the_same_numbers(work: Path, tmp_path: Path) -> None:
    again = tmp_path / "results.json"
    run("evaluate", work / "tiles.parquet", "--descriptors", f"spatial={work / 'd' / 'spatial'}",
        f"random={work / 'd' / 'random'}", f"rgb={work / 'baselines' / 'rgb'}", "--no-baselines",
        "--near-tiles", 2, "--far-tiles", 8, "--out", again)  # fmt: skip
    rows = [r for path in (work / "results.json", again) for r in read_results(path)]
    values: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        values.setdefault((row["method"], row["metric"]), set()).add(row["value"])
    differ = [key for key, found in values.items() if len(found) > 1]
    assert {metric for _, metric in differ} <= {"query_us"}


def test_a_search_finds_tiles_of_other_patients_and_saves_a_gallery(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    one = tiles.iloc[len(tiles) // 2]
    query = f"{one['slide_id']}:{one['x'] + 3},{one['y'] + 3}"
    out = tmp_path / "gallery.png"
    run("search", query, work / "tiles.parquet", "--descriptors", work / "d" / "spatial",
        "--out", out, "--k", 5)  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == 5
    assert not any(f"{one['slide_id']}:" in line for line in lines)
    assert Image.open(out).width > 300


def test_a_search_outside_the_tissue_names_the_nearest_tile(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("search", "phantom_000:-50,-50", work / "tiles.parquet",
        "--descriptors", work / "d" / "spatial", code=1)  # fmt: skip
    assert "the nearest is phantom_000:" in capsys.readouterr().err


def test_a_broken_slide_is_reported_and_the_others_go_on(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"not a slide")
    out = tmp_path / "tiles.parquet"
    run(
        "tile",
        broken,
        slides / "phantom_001.tif",
        "--out",
        out,
        "--mpp",
        1,
        "--tile-px",
        64,
        code=3,
    )
    assert set(load_tiles(out)["slide_id"]) == {"phantom_001"}
    assert "broken.svs" in (tmp_path / "tiles.failed.csv").read_text()
    assert "tiles.failed.csv" in capsys.readouterr().err


def test_strict_stops_at_a_broken_slide(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    run("tile", tmp_path / "broken.svs", slides / "phantom_001.tif", "--strict",
        "--out", tmp_path / "t.parquet", code=1)  # fmt: skip
    assert not (tmp_path / "t.parquet").exists()


def test_a_missing_pixel_size_names_the_override_which_then_works(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = shared / "real/slides/tcga-cr-7395-01a-01-ts1.svs"
    run("tile", slide, "--out", tmp_path / "t.parquet", code=1)
    assert "--mpp-override" in capsys.readouterr().err
    overrides = tmp_path / "mpp.csv"
    overrides.write_text(f"wsi,mpp\n{slide.name},0.5\n")
    run("tile", slide, "--out", tmp_path / "t.parquet", "--mpp-override", overrides)
    assert (load_tiles(tmp_path / "t.parquet")["slide_mpp"] == 0.5).all()


def test_an_image_that_openslide_refuses_is_converted_and_then_tiles(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = shared / "real/slides/OS-1-detail.ome.tif"
    run("tile", image, "--out", tmp_path / "t.parquet", code=1)
    assert "sslpath data convert" in capsys.readouterr().err
    slide = tmp_path / "converted.tif"
    run("data", "convert", image, "--mpp", 0.5, "--out", slide)
    run("tile", slide, "--out", tmp_path / "t.parquet", "--tile-px", 112)
    assert len(load_tiles(tmp_path / "t.parquet")) > 5


def test_convert_never_overwrites_its_own_image(tmp_path: Path) -> None:
    image = tmp_path / "a.tif"
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(image)
    before = image.read_bytes()
    run("data", "convert", image, "--mpp", 0.5, code=1)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [["tile"], ["tile", "a.svs", "--out", "b", "--mpp", "-1"], ["embed", "t", "--out", "d"], []],
)
def test_wrong_arguments_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_help_shows_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tile", "train", "embed", "evaluate", "search", "demo"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out
        assert f"  sslpath {name}" in text
        assert "exit codes:" in text


def test_help_needs_neither_torch_nor_a_second() -> None:
    probe = (
        "import sys, sslpath.cli\n"
        "try: sslpath.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'openslide', 'matplotlib'} & set(sys.modules)\n"
        "print(file=sys.stderr); print(sorted(heavy), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["[]"]
    # Well under a second on an idle machine; a busy one gets some room.
    assert time.perf_counter() - start < 3


def test_results_are_plain_json(work: Path) -> None:
    rows = json.loads((work / "results.json").read_text())
    assert isinstance(rows, list)
    assert all(isinstance(row["value"], float) for row in rows)
