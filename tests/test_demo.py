"""The whole demo, as `make demo` runs it."""

from pathlib import Path

import pytest

from sslpath.cli import main
from sslpath.results import read_results
from sslpath.table import load_tiles

METRICS = ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median")
PICTURES = ("agreement", "curves", "distances", "gallery", "grid", "pairs", "results", "umap")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_demo_leaves_a_row_for_every_method_and_metric_with_an_interval(out: Path) -> None:
    rows = {(row["method"], row["metric"]): row for row in read_results(out / "results.json")}
    for method in ("spatial", "imagenet", "random", "rgb"):
        for metric in METRICS:
            row = rows[method, metric]
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] > 0
            assert row["commit"]
            assert row["hardware"]


@pytest.mark.slow
def test_the_spatial_descriptor_beats_imagenet_features_on_unseen_slides(out: Path) -> None:
    rows = {(row["method"], row["metric"]): row for row in read_results(out / "results.json")}
    for metric in ("tumour_p_at_10", "addr_global"):
        assert rows["spatial", metric]["value"] > rows["imagenet", metric]["value"]
        assert rows["imagenet", metric]["value"] > rows["random", metric]["value"]


@pytest.mark.slow
def test_no_slide_is_on_both_sides_of_the_split(out: Path) -> None:
    tiles = load_tiles(out / "tiles.parquet")
    assert (tiles.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(tiles["split"]) == {"train", "test"}


@pytest.mark.slow
def test_the_demo_leaves_every_picture(out: Path) -> None:
    pictures = {path.stem for path in out.glob("*.png")}
    assert set(PICTURES) <= pictures
    assert {"heatmap-spatial", "heatmap-imagenet"} <= pictures
