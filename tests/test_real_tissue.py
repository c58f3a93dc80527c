"""The whole method by the command line on real breast tissue, when it is at hand."""

from pathlib import Path

import pytest

from sslpath.cli import main
from sslpath.results import read_results
from sslpath.table import load_tiles


@pytest.mark.slow
def test_on_patients_it_has_not_seen_the_descriptor_finds_tumour_better_than_imagenet_features(
    shared: Path, tmp_path: Path
) -> None:
    weights = shared / "weights/mobilenet_v2_imagenet.safetensors"
    tiles, features, ours = tmp_path / "idc.parquet", tmp_path / "imagenet", tmp_path / "spatial"
    for words in (
        ["tile", shared / "real/idc/IDC_regular_ps50_idx5_sample.zip", "--out", tiles],
        ["embed", tiles, "--encoder", "imagenet", "--arch", "mobilenet_v2",
         "--imagenet-weights", weights, "--out", features],
        ["train", tiles, "--features", features, "--out", tmp_path / "run"],
        ["embed", tiles, "--run", tmp_path / "run", "--features", features, "--out", ours],
        ["evaluate", tiles, "--descriptors", f"spatial={ours}", f"imagenet={features}",
         "--no-baselines", "--out", tmp_path / "results.json"],
    ):  # fmt: skip
        assert main([str(word) for word in words]) == 0
    split = load_tiles(tiles).groupby("patient_id")["split"].nunique()
    assert (split == 1).all()
    rows = {(r["method"], r["metric"]): r for r in read_results(tmp_path / "results.json")}
    gain = rows["spatial - imagenet", "tumour_p_at_10"]
    assert gain["low"] > 0
    assert rows["spatial - imagenet", "knn_auc"]["value"] > -0.005
    assert rows["spatial - imagenet", "addr_global"]["low"] > 0
