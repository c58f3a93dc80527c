"""The command line on small phantom slides, as a user types it: files in, files out, exit codes."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import draw_tissue, write_slide
from PIL import Image

from sslpath.cli import main
from sslpath.datasets.phantom import make_phantoms
from sslpath.results import read_results
from sslpath.slide_files import find_slides
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import load_tiles, save_tiles


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


def found_tiles(text: str) -> list[tuple[float, str]]:
    """Distance and name of each neighbour that a search has printed."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    return [(float(line[0]), line[1]) for line in lines]


def test_a_search_among_the_querys_own_patient_does_not_find_the_query_itself(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = load_tiles(work / "tiles.parquet").iloc[7]
    query = f"{one['slide_id']}:{one['x']},{one['y']}"
    run("search", query, work / "tiles.parquet", "--descriptors", work / "d" / "spatial",
        "--keep-own", "--k", 6, "--out", tmp_path / "g.png")  # fmt: skip
    found = found_tiles(capsys.readouterr().out)
    assert len(found) == 6
    assert query not in {name for _, name in found}
    assert any(name.startswith(f"{one['slide_id']}:") for _, name in found)


def test_a_search_in_an_index_finds_what_the_exact_search_finds(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, spatial = work / "tiles.parquet", work / "d" / "spatial"
    run("index", tiles, "--descriptors", spatial, "--out", tmp_path / "index", "--code", "flat")
    assert "descriptors on" in capsys.readouterr().out
    one = load_tiles(tiles).iloc[7]
    query = f"{one['slide_id']}:{one['x']},{one['y']}"
    words = ("search", query, tiles, "--descriptors", spatial, "--out", tmp_path / "g.png")
    found = []
    for more in ((), ("--index", tmp_path / "index", "--probes", 10_000)):
        run(*words, *more)
        found.append([name for _, name in found_tiles(capsys.readouterr().out)])
    assert found[0] == found[1]


def test_a_search_whose_lists_hold_only_the_own_patient_names_probes(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    tiles["patient_id"] = "one"
    save_tiles(tiles, tmp_path / "tiles.parquet")
    table, spatial, index = tmp_path / "tiles.parquet", work / "d" / "spatial", tmp_path / "index"
    run("index", table, "--descriptors", spatial, "--out", index)
    one = tiles.iloc[7]
    words = ("search", f"{one['slide_id']}:{one['x']},{one['y']}", table, "--index", index)
    run(*words, "--descriptors", spatial, "--out", tmp_path / "g.png", code=1)
    assert "--probes searches more" in capsys.readouterr().err
    run(*words, "--descriptors", work / "d" / "random", "--out", tmp_path / "g.png", code=1)
    assert "is not from the descriptors in" in capsys.readouterr().err


def test_a_search_where_all_tiles_are_of_one_patient_names_keep_own(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    tiles["patient_id"] = "one"
    save_tiles(tiles, tmp_path / "tiles.parquet")
    one = tiles.iloc[0]
    words = ("search", f"{one['slide_id']}:{one['x']},{one['y']}", tmp_path / "tiles.parquet",
             "--descriptors", work / "d" / "spatial", "--out", tmp_path / "g.png")  # fmt: skip
    run(*words, code=1)
    assert "--keep-own" in capsys.readouterr().err
    run(*words, "--keep-own")


def test_an_image_finds_the_tile_that_it_shows_first(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = load_tiles(work / "tiles.parquet")
    table, net, out = work / "tiles.parquet", tmp_path / "net", tmp_path / "d"
    run("train", table, "--trunk", "scratch", "--arch", "resnet18", "--input-px", 32,
        "--steps", 2, "--slides-per-batch", 2, "--tiles-per-slide", 8, "--near-tiles", 2,
        "--far-tiles", 8, "--device", "cpu", "--out", net)  # fmt: skip
    run("embed", table, "--run", net, "--device", "cpu", "--out", out)
    one = tiles.iloc[[11]]
    Image.fromarray(open_source(tiles).read(one)[0]).save(tmp_path / "query.png")
    capsys.readouterr()
    run("search", tmp_path / "query.png", table, "--descriptors", out, "--run", net,
        "--out", tmp_path / "g.png")  # fmt: skip
    distance, name = found_tiles(capsys.readouterr().out)[0]
    assert name == f"{one['slide_id'].iloc[0]}:{one['x'].iloc[0]},{one['y'].iloc[0]}"
    assert distance < 0.01


def test_an_image_is_not_searched_among_descriptors_of_another_network(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "query.png")
    run("search", tmp_path / "query.png", work / "tiles.parquet", "--run", work / "run",
        "--descriptors", work / "d" / "random", code=1)  # fmt: skip
    message = capsys.readouterr().err
    assert str(work / "run") in message
    assert str(work / "d" / "random") in message


def test_an_image_that_is_no_square_is_no_query(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48), "pink").save(tmp_path / "query.png")
    run("search", tmp_path / "query.png", work / "tiles.parquet", "--run", work / "run",
        "--descriptors", work / "d" / "spatial", code=1)  # fmt: skip
    assert "64 x 48 px" in capsys.readouterr().err


def test_near_and_far_may_be_the_same_distance(work: Path, tmp_path: Path) -> None:
    run("train", work / "tiles.parquet", "--features", work / "d" / "random", "--steps", 2,
        "--near-tiles", 3, "--far-tiles", 3, "--out", tmp_path / "run")  # fmt: skip


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
    told = capsys.readouterr().err
    assert "tiles.failed.csv" in told
    assert "assign them with --patients" in told  # a single slide is on one side only


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


@pytest.mark.parametrize("out", [("--out", "a.tif"), ("--out", "b.tif"), ()])
def test_convert_overwrites_neither_its_image_nor_another_file(
    tmp_path: Path, out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.tif", "b.tif", "a-slide.tif"):
        Image.new("RGB", (300, 300), "pink").save(name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run("data", "convert", "a.tif", "--mpp", 0.5, *out, code=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("image", "slide"),
    [("a.ome.tif", "a-slide.tif"), ("a.tiff", "a-slide.tif"), ("a.png", "a.tif")],
)
def test_convert_without_out_names_the_slide_after_the_image(
    tmp_path: Path, image: str, slide: str
) -> None:
    Image.new("RGB", (300, 300), "pink").save(tmp_path / image)
    run("data", "convert", tmp_path / image, "--mpp", 0.5)
    assert {path.name for path in tmp_path.iterdir()} == {image, slide}
    assert Slide(tmp_path / slide).mpp == pytest.approx(0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of which one does not say its pixel size."""
    folder = tmp_path_factory.mktemp("plain")
    write_slide(folder / "says.tif", draw_tissue(600, 600), mpp=0.5)
    write_slide(folder / "silent.tif", draw_tissue(600, 600), mpp=None)
    return folder


def sizes_with(override: object, plain: Path, out: Path) -> dict[str, float]:
    run("tile", plain, "--tile-px", 64, "--mpp", 1, "--mpp-override", override, "--workers", 1,
        "--out", out)  # fmt: skip
    return load_tiles(out).groupby("slide_id")["slide_mpp"].first().to_dict()


def test_a_number_as_override_holds_only_where_slides_do_not_say_their_pixel_size(
    plain: Path, tmp_path: Path
) -> None:
    sizes = sizes_with(0.8, plain, tmp_path / "t.parquet")
    assert sizes == {"says": pytest.approx(0.5), "silent": 0.8}


def test_a_csv_as_override_holds_whatever_slides_say(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("wsi,mpp\nsays.tif,0.6\nsilent,0.8\n")
    sizes = sizes_with(tmp_path / "mpp.csv", plain, tmp_path / "t.parquet")
    assert sizes == {"says": 0.6, "silent": 0.8}


def test_a_folder_of_images_is_told_how_they_become_slides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "section.jpg")
    run("tile", tmp_path, "--out", tmp_path / "t.parquet", code=1)
    message = capsys.readouterr().err
    assert "section.jpg" in message
    assert "sslpath data convert" in message


def test_images_beside_slides_are_skipped_with_a_warning(plain: Path, tmp_path: Path) -> None:
    shutil.copy(plain / "says.tif", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [slide.slide_id for slide in find_slides([tmp_path])] == ["says"]
    Image.new("RGB", (64, 64)).save(tmp_path / "overview.PNG")
    with pytest.warns(UserWarning, match=r"images are skipped \(1, such as overview.PNG\)"):
        assert [slide.slide_id for slide in find_slides([tmp_path])] == ["says"]


def test_the_files_of_a_dicom_series_are_one_slide_called_like_its_folder(
    shared: Path, tmp_path: Path
) -> None:
    folder = shared / "real/slides/cmu-1-small-region-dicom"
    files = sorted(folder.glob("*.dcm"))
    assert len(files) > 1
    for places in ([folder], files):
        (slide,) = find_slides(places)
        assert slide.slide_id == "cmu-1-small-region-dicom"
    out = tmp_path / "t.parquet"
    run("tile", folder, "--out", out, "--preview", tmp_path / "preview")
    tiles = load_tiles(out)
    assert set(tiles["slide_id"]) == {"cmu-1-small-region-dicom"}
    assert open_source(tiles).read(tiles.head(1)).mean() < 230
    assert [path.stem for path in (tmp_path / "preview").iterdir()] == ["cmu-1-small-region-dicom"]


def test_a_dicom_file_that_cannot_be_opened_renames_no_slide_beside_it(
    shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "case7"
    folder.mkdir()
    for path in (shared / "real/slides/cmu-1-small-region-dicom").glob("level-[01]-*.dcm"):
        shutil.copy(path, folder)
    (folder / "other.dcm").write_bytes(b"no DICOM")
    assert [slide.slide_id for slide in find_slides([folder])] == ["case7", "other"]


@pytest.fixture
def idc(tmp_path: Path) -> Path:
    """Tiles of two patients in the layout of the IDC archive."""
    path = tmp_path / "idc.zip"
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50), "pink").save(buffer, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for patient in ("10253", "9383"):
            for i in range(4):
                name = f"{patient}/{i % 2}/{patient}_idx5_x{50 * i + 1}_y51_class{i % 2}.png"
                archive.writestr(name, buffer.getvalue())
    return path


def test_patients_of_a_csv_apply_to_a_zip_too(idc: Path, tmp_path: Path) -> None:
    out, patients = tmp_path / "t.parquet", tmp_path / "patients.csv"
    patients.write_text("slide_id,patient_id,split\n10253,one,train\n9383,two,test\n")
    run("tile", idc, "--out", out, "--patients", patients)
    tiles = load_tiles(out)
    assert dict(zip(tiles["slide_id"], tiles["patient_id"], strict=True)) == {
        "10253": "one", "9383": "two"
    }  # fmt: skip
    assert dict(zip(tiles["patient_id"], tiles["split"], strict=True)) == {
        "one": "train", "two": "test"
    }  # fmt: skip
    patients.write_text("slide_id,patient_id\n10253,same\n9383,same\n")
    run("tile", idc, "--out", out, "--patients", patients)
    assert load_tiles(out)["split"].nunique() == 1  # by the new patient


@pytest.mark.parametrize(
    "given",
    [
        *(["--mpp", 0.5], ["--tile-px", 224], ["--stride-px", 25], ["--min-tissue", 0]),
        *(["--max-tiles", 9], ["--annotations", "x"], ["--not-exhaustive", "10253"]),
        *(["--no-tumour", "9383"], ["--mpp-override", 4], ["--preview", "x"]),
    ],
    ids=lambda given: given[0],
)
def test_an_option_that_cannot_apply_to_a_zip_is_refused(
    idc: Path, tmp_path: Path, given: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    run("tile", idc, "--out", tmp_path / "t.parquet", *given, code=1)
    assert f"leave out {given[0]}" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("10253,one\n9383, \n", "does not name the patient of 9383"),
        ("10253,one\n", "does not name the patient of 9383"),
        ("10253,one\n9383,two\n9383,three\n", "lists 9383 twice"),
    ],
)
def test_slides_without_a_patient_or_with_two_are_refused(
    idc: Path, tmp_path: Path, rows: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patients.csv").write_text(f"slide_id,patient_id\n{rows}")
    run("tile", idc, "--out", tmp_path / "t.parquet", "--patients", tmp_path / "patients.csv",
        code=1)  # fmt: skip
    assert message in capsys.readouterr().err


def test_a_row_of_the_patients_that_is_there_twice_does_no_harm(idc: Path, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("slide_id,patient_id\n10253,a\n9383,b\n9383,b\n")
    run("tile", idc, "--out", tmp_path / "t.parquet", "--patients", tmp_path / "patients.csv")
    assert set(load_tiles(tmp_path / "t.parquet")["patient_id"]) == {"a", "b"}


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(
    idc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    run("tile", idc, "--out", tmp_path / "file" / "t.parquet", code=1)
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("sslpath: error: ")
    assert f"{tmp_path}{os.sep}file" in message.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tile"],
        ["tile", "a.svs", "--out", "b", "--mpp", "-1"],
        ["tile", "a.svs", "--out", "b", "--workers", "-1"],
        ["embed", "t", "--out", "d"],
        ["embed", "t", "--out", "d", "--encoder", "random", "--seed", "-1"],
        ["train", "t", "--out", "r", "--seed", "-1"],
        ["train", "t", "--out", "r", "--workers", "-1"],
        ["evaluate", "t", "--descriptors", "a=b", "--out", "r", "--seed", "-1"],
        ["demo", "--seed", "-1"],
        ["data", "phantom", "--seed", "-1"],
    ],
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


def test_help_imports_none_of_the_heavy_packages() -> None:
    probe = (
        "import sys, sslpath.cli\n"
        "try: sslpath.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "sslpath.cli" in imported
    assert not imported & {
        *("numpy", "scipy", "pandas", "sklearn", "matplotlib", "torch", "torchvision"),
        *("openslide", "pyvips", "shapely", "h5py", "umap"),
    }


def test_a_log_file_gets_messages_and_no_progress_bars(slides: Path, tmp_path: Path) -> None:
    words = ["tile", slides, "--mpp", "1", "--tile-px", "64", "--out", tmp_path / "t.parquet"]
    with (tmp_path / "log").open("w") as log:
        line = [sys.executable, "-m", "sslpath", *words, "--annotations", tmp_path]
        done = subprocess.run(line, stdout=log, stderr=log, check=False)
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0, text
    assert "No annotations in" in text
    assert "\r" not in text
    assert "it/s" not in text
    assert "slide/s" not in text


def test_results_are_plain_json(work: Path) -> None:
    rows = json.loads((work / "results.json").read_text())
    assert isinstance(rows, list)
    assert all(isinstance(row["value"], float) for row in rows)


def test_a_network_from_scratch_trains_embeds_and_answers_an_image(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, ours = work / "tiles.parquet", tmp_path / "d"
    run("train", tiles, "--trunk", "scratch", "--arch", "resnet18", "--input-px", 32,
        "--steps", 4, "--slides-per-batch", 2, "--tiles-per-slide", 8,
        "--near-tiles", 2, "--far-tiles", 8, "--out", tmp_path / "run")  # fmt: skip
    run("embed", tiles, "--run", tmp_path / "run", "--out", ours)
    table = load_tiles(tiles)
    Image.fromarray(open_source(table).read(table.iloc[[7]])[0]).save(tmp_path / "query.png")
    capsys.readouterr()
    run("search", tmp_path / "query.png", tiles, "--descriptors", ours, "--run", tmp_path / "run",
        "--out", tmp_path / "gallery.png", "--k", 3)  # fmt: skip
    first = capsys.readouterr().out.splitlines()[1]
    # The query is a picture of row 7, so that row is the nearest, at no distance.
    assert f"{table.loc[7, 'slide_id']}:{table.loc[7, 'x']},{table.loc[7, 'y']}" in first


def test_the_papers_preset_can_be_started_from_and_options_win(work: Path) -> None:
    from sslpath.cli import build_parser
    from sslpath.commands.train import _settings

    words = ["train", "t", "--out", "r", "--preset", "paper", "--margin", "0.7"]
    config, model = _settings(build_parser().parse_args(words))
    assert (config.pairs, config.near_tiles, config.far_tiles) == ("explicit", 8, 30)
    assert (model.arch, model.trunk, model.descriptor_dim) == ("resnet50", "finetune", 128)
    assert config.margin == 0.7


@pytest.mark.parametrize("preset", [(), ("--preset", "paper")], ids=["", "preset"])
@pytest.mark.parametrize("trunk", ["frozen", "finetune", "scratch"])
def test_a_trunk_has_its_own_rate_steps_and_batch_also_with_the_papers_preset(
    trunk: str, preset: tuple[str, ...]
) -> None:
    from sslpath.cli import build_parser
    from sslpath.commands.train import _settings
    from sslpath.settings import default_config

    words = ["train", "t", "--out", "r", "--trunk", trunk, *preset]
    config, model = _settings(build_parser().parse_args(words))
    own = default_config(trunk)  # type: ignore[arg-type]
    assert model.trunk == trunk
    for name in ("lr", "steps", "slides_per_batch", "tiles_per_slide", "checkpoint_every"):
        assert getattr(config, name) == getattr(own, name), name


@pytest.mark.parametrize("config", ["paper", "head"])
@pytest.mark.parametrize(
    "given", [(), ("--arch", "resnet18", "--input-px", "96", "--lr", "0.5", "--far-tiles", "12")]
)
def test_reproduce_plans_with_the_settings_that_it_trains_with(
    config: str, given: tuple[str, ...], tmp_path: Path
) -> None:
    from sslpath.cli import build_parser
    from sslpath.commands import reproduce, train

    words = ["reproduce", "camelyon16", "--data", "d", "--out", str(tmp_path), "--config", config]
    options = build_parser().parse_args([*words, *given])
    planned = reproduce._settings(options)
    lines = reproduce._to_results(options, planned[0], tmp_path / "t.parquet")
    (line,) = (line for line in lines if line[0] == "train")
    trained, model = train._settings(build_parser().parse_args([str(word) for word in line]))
    assert trained == planned[0]
    if config == "paper":  # a head's encoder is that of its features
        assert model == planned[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from sslpath.backbones import make_trunk

    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(make_trunk("resnet18").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def learned(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trunk has learned."""
    out = tmp_path_factory.mktemp("learned") / "run"
    run("train", work / "tiles.parquet", "--trunk", "scratch", "--arch", "resnet18",
        "--input-px", 32, "--steps", 1, "--slides-per-batch", 2, "--tiles-per-slide", 8,
        "--near-tiles", 2, "--far-tiles", 8, "--out", out)  # fmt: skip
    return out


HAS_VALUE = {
    "arch": "resnet50", "imagenet-weights": "w.pth", "input-px": 224, "features": "d", "views": 0,
    "seed": 0, "batch": 128, "workers": 0, "scheduler": "tcp://here:1", "root": "r",
    "device": "cpu",
}  # fmt: skip
ENCODER = ("arch", "imagenet-weights", "input-px", "depths")
READING = ("root", "batch", "workers", "scheduler")


def option(name: str) -> list[object]:
    return [f"--{name}", *([HAS_VALUE[name]] if name in HAS_VALUE else [])]


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        (("train", "--trunk", "scratch"), ("features", "depths", "imagenet-weights")),
        (("train", "--trunk", "finetune"), ("features", "depths")),
        (("train", "--preset", "paper"), ("features", "depths")),
        (("train", "--trunk", "frozen"), ("compile",)),
        (("train",), ("compile",)),
        (("train", "--features", "FEATURES"), (*ENCODER, "root", "workers", "compile")),
        (("embed", "--encoder", "rgb"), (*ENCODER, "features", "views", "seed", "device")),
        (
            ("embed", "--encoder", "random"),
            ("imagenet-weights", "depths", "features", "views"),
        ),
        (("embed", "--encoder", "imagenet"), ("features", "seed")),
        (("embed", "--run", "LEARNED"), (*ENCODER, "features", "views", "seed")),
        (("embed", "--run", "HEAD"), ("arch", "input-px", "depths", "views", "seed")),
        (
            ("embed", "--run", "HEAD", "--features", "FEATURES"),
            (*ENCODER, "views", "seed", *READING),
        ),
        (("embed", "--encoder", "rgb", "--scheduler", "tcp://here:1"), ("workers",)),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) and "-" in str(each[1:2]) else "",
)
def test_an_option_that_would_be_ignored_is_refused_by_name_even_with_its_default(
    words: tuple[str, ...],
    ignored: tuple[str, ...],
    work: Path,
    learned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"FEATURES": work / "d" / "random", "LEARNED": learned, "HEAD": work / "run"}
    command, *others = [places.get(word, word) for word in words]
    given = [*others, "--out", tmp_path / "out"]
    for name in ignored:
        run(command, work / "tiles.parquet", *given, *option(name), code=1)
        assert f"--{name} has no effect with" in capsys.readouterr().err, name
    if len(ignored) > 1:
        run(command, work / "tiles.parquet", *given, *option(ignored[0]), *option(ignored[1]),
            code=1)  # fmt: skip
        assert f"--{ignored[0]} and --{ignored[1]} have no effect" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_index_needs_no_slides_and_so_takes_no_root(work: Path, tmp_path: Path) -> None:
    words = ("index", work / "tiles.parquet", "--descriptors", work / "d" / "spatial",
             "--out", tmp_path / "i")  # fmt: skip
    with pytest.raises(SystemExit):
        run(*words, "--root", tmp_path)
    run(*words)


def test_processes_read_for_the_features_of_a_head(
    work: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = ("train", work / "tiles.parquet", "--arch", "resnet18", "--input-px", 32,
           "--imagenet-weights", weights, "--near-tiles", 2, "--far-tiles", 8, "--steps", 2,
           "--device", "cpu")  # fmt: skip
    for workers in (0, 1):
        run(*one, "--workers", workers, "--out", tmp_path / str(workers))
    (here,), (there,) = (list((tmp_path / n).glob("features-*")) for n in ("0", "1"))
    for path in here.glob("*.h5"):
        with h5py.File(path) as a, h5py.File(there / path.name) as b:
            np.testing.assert_array_equal(a["features"][:], b["features"][:])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--far-tiles", 1000], "No tile has both a near partner"),
        (["--near-tiles", 9, "--far-tiles", 8], "contradict each other"),
        (["--twins", 0.2], "Twins are views of a tile"),
        (["--twins", 0.7], "twins must be in 0..0.5"),
        (["--tiles-per-slide", 1], "leave 1 different tiles per slide"),
        (["--dropout", 1], "dropout must lie in 0..1"),
        (["--device", "cuda:77"], "No device 'cuda:77' here"),
        (["--margin", 2, "--out", "OTHER"], "was started with other settings"),
        (["--out", "FILE"], "cannot be a folder"),
        (["--out", "FILE/run"], "cannot be a folder"),
    ],
)
def test_what_can_be_known_before_is_said_before_features_are_computed(
    given: list[object], says: str, work: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    one = ("train", work / "tiles.parquet", "--arch", "resnet18", "--input-px", 32,
           "--imagenet-weights", weights, "--near-tiles", 2, "--far-tiles", 8, "--steps", 2,
           "--out", other)  # fmt: skip
    if "OTHER" in given:
        run(*one)
        for features in other.glob("features-*"):
            shutil.rmtree(features)
    places = {"OTHER": other, "FILE": tmp_path / "file", "FILE/run": tmp_path / "file" / "run"}
    run(*one, *(places.get(str(word), word) for word in given), code=1)
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("features-*"))


def test_a_head_in_many_processes_is_refused_before_features_are_computed(
    work: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    run("train", work / "tiles.parquet", "--arch", "resnet18", "--imagenet-weights", weights,
        "--out", tmp_path / "run", code=1)  # fmt: skip
    assert "leave out torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["embed", "views", "index"])
def test_a_file_in_place_of_a_folder_is_found_before_anything_is_computed(
    command: str, work: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, out, file = work / "tiles.parquet", tmp_path / "out", tmp_path / "file"
    file.touch()
    if command == "embed":
        run("embed", tiles, "--encoder", "rgb", "--out", file / "d", code=1)
    elif command == "index":
        run("index", tiles, "--descriptors", work / "d" / "spatial", "--out", file, code=1)
    else:
        (out / "views").mkdir(parents=True)
        (out / "views" / "1").touch()
        run("embed", tiles, "--encoder", "imagenet", "--arch", "resnet18", "--views", 2,
            "--imagenet-weights", weights, "--out", out, code=1)  # fmt: skip
        assert not list(out.rglob("*.h5"))
    assert "cannot be a folder" in capsys.readouterr().err


def test_views_are_embedded_learned_from_and_must_be_of_the_same_encoder(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from sslpath.backbones import make_trunk

    tiles, deep, weights = work / "tiles.parquet", tmp_path / "deep", tmp_path / "resnet18.pth"
    torch.save(make_trunk("resnet18").state_dict(), weights)
    encoder = ("--arch", "resnet18", "--input-px", 32, "--imagenet-weights", weights)
    run("embed", tiles, "--encoder", "imagenet", *encoder, "--depths", "--views", 2, "--out", deep)
    assert sorted(path.name for path in (deep / "views").iterdir()) == ["0", "1"]
    near = ("--near-tiles", 2, "--far-tiles", 8, "--steps", 4)
    run("train", tiles, "--features", deep, *near, "--out", tmp_path / "with")
    assert "2 augmented views of each tile" in capsys.readouterr().out
    settings = json.loads((tmp_path / "with" / "config.json").read_text())
    assert (settings["training"]["twins"], settings["model"]["dropout"]) == (0.2, 0.0)
    run("train", tiles, "--features", deep, *near, "--twins", 0, "--out", tmp_path / "single")
    settings = json.loads((tmp_path / "single" / "config.json").read_text())
    assert settings["training"]["twins"] == 0
    ours = tmp_path / "ours"
    run("embed", tiles, "--run", tmp_path / "with", "--features", deep, "--out", ours)
    with h5py.File(ours / "phantom_000.h5") as file:
        assert file["features"].shape[-1] == 128
    (deep / "views").rename(tmp_path / "views")
    run("train", tiles, "--features", deep, *near, "--out", tmp_path / "without")
    assert "with --views 4" in capsys.readouterr().out
    settings = json.loads((tmp_path / "without" / "config.json").read_text())
    assert (settings["training"]["twins"], settings["model"]["dropout"]) == (0.0, 0.3)
    run("train", tiles, "--features", deep, *near, "--dropout", 0, "--out", tmp_path / "all")
    settings = json.loads((tmp_path / "all" / "config.json").read_text())
    assert settings["model"]["dropout"] == 0
    run("train", tiles, "--features", deep, "--dropout", 1, "--out", tmp_path / "none", code=1)
    assert "dropout must lie in 0..1" in capsys.readouterr().err
    (tmp_path / "views").rename(deep / "views")
    (deep / "views" / "1" / "phantom_001.h5").unlink()
    run("train", tiles, "--features", deep, *near, "--out", tmp_path / "torn", code=1)
    assert "phantom_001.h5" in capsys.readouterr().err
    shutil.rmtree(deep / "views" / "1")
    run("embed", tiles, "--encoder", "imagenet", *encoder, "--out", deep / "views" / "1")
    run("train", tiles, "--features", deep, *near, "--out", tmp_path / "other", code=1)
    assert "views/1 was trained on" in capsys.readouterr().err
    run("embed", tiles, "--encoder", "rgb", "--views", 1, "--out", tmp_path / "rgb", code=1)
