"""The experiments on real tissue: rivals against oracles, and the whole run in miniature."""

import io
import zipfile

import experiments
import numpy as np
import pytest
import robustness
import torch
from PIL import Image
from pytorch_metric_learning.losses import NTXentLoss
from safetensors.torch import save_file

from sslpath.backbones import make_trunk
from sslpath.model import pair_loss
from sslpath.settings import TrainConfig
from sslpath.table import fold


@pytest.fixture
def batch():
    """Descriptors of two views of twelve tiles of four patients."""
    z = torch.nn.functional.normalize(torch.randn(24, 16), dim=1)
    return z, torch.arange(12).remainder(4).repeat(2)


def test_simclr_is_the_loss_of_pytorch_metric_learning(batch):
    z, patient = batch
    theirs = NTXentLoss(temperature=0.5)(z, torch.arange(12).repeat(2))
    assert experiments.simclr(z, patient, TrainConfig()).item() == pytest.approx(theirs.item())


def test_instance_discrimination_pairs_a_tile_with_its_own_view_alone(batch):
    z, patient = batch
    i, j = torch.triu_indices(24, 24, 1)
    own = (j - i) == 12
    kept = own | (patient[i] == patient[j])
    expected = pair_loss(z[i[kept]], z[j[kept]], own[kept], 1.2).total
    found = experiments.instance_discrimination(z, patient, TrainConfig(margin=1.2))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_tiles_without_colour_differ_in_texture_alone():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 200, (1, 50, 50, 3), dtype=np.uint8)
    darker = (tile * 0.5 + 20).astype(np.uint8)
    one, other = experiments.without_colour(np.concatenate([tile, darker])).astype(float)
    assert np.ptp(one, axis=2).max() == 0
    assert abs(one - other).max() <= 3
    assert one.mean() == pytest.approx(170, abs=1)


@pytest.mark.parametrize("change", robustness.CHANGES.values(), ids=robustness.CHANGES)
def test_a_change_of_the_picture_keeps_the_tissue_in_place(change):
    y, x = np.mgrid[:50, :50]
    bright = 120 + 80 * np.sin(x / 4) * np.cos(y / 5)
    tiles = np.repeat(bright[None, ..., None], 3, axis=3).clip(0, 255).astype(np.uint8)
    changed = change(tiles)
    assert changed.shape == tiles.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, tiles)
    middle = np.s_[0, 20:30, 20:30, 0]
    assert np.corrcoef(changed[middle].ravel(), tiles[middle].ravel())[0, 1] > 0.9


@pytest.fixture
def archive(tmp_path):
    """Thirty patients, two kinds of tile in two far corners of each slide."""
    rng, path = np.random.default_rng(0), tmp_path / "IDC.zip"
    with zipfile.ZipFile(path, "w") as out:
        for patient in range(100, 130):
            for i in range(8):
                label = i % 2
                x, y = 50 * (i // 2) + 2000 * label + 1, 51
                pixels = rng.normal((200, 140, 190), 10 + 30 * label, (50, 50, 3))
                buffer = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                name = f"{patient}/{label}/{patient}_idx5_x{x}_y{y}_class{label}.png"
                out.writestr(name, buffer.getvalue())
    assert {fold(str(patient)) for patient in range(100, 130)} == set(range(5))
    return path


def test_the_whole_run_in_miniature_goes_on_where_it_stopped(archive, tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(make_trunk("mobilenet_v2").state_dict(), weights)
    few = {"steps": 3}
    settings = {
        "imagenet": experiments.Setting("plain", "last"),
        "spatial": experiments.Setting("spatial", changes=few),
        "SimCLR": experiments.Setting("own", changes={"loss": "simclr", **few}),
        "imagenet, grey": experiments.Setting("plain", "grey last"),
    }
    monkeypatch.setattr(experiments, "SETTINGS", settings)
    monkeypatch.setattr(experiments, "VIEWS", 2)
    inputs = experiments.Inputs(archive, weights, tmp_path / "work", input_px=32)
    rows = experiments.rows_of(inputs, list(settings), seed=0)
    found = {(r["method"], r["metric"], r["data"]) for r in rows}
    for data in ("IDC, five folds", "IDC, folds 0 and 1"):
        assert ("spatial", "tumour_p_at_10", data) in found
        assert ("spatial - SimCLR", "addr_global", data) in found
    assert all(r["patients"] == 30 for r in rows if r["data"] == "IDC, five folds")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npy")}
    again = experiments.rows_of(inputs, list(settings), seed=0)
    assert [r["value"] for r in again] == [r["value"] for r in rows]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npy")} == kept


def test_a_fold_never_learns_from_its_own_patients(archive, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        experiments.KINDS,
        "plain",
        lambda inputs, one, train, test, seed: (
            seen.append((train, test)) or np.ones((test.sum(), 2))
        ),
    )
    monkeypatch.setitem(experiments.SETTINGS, "watched", experiments.Setting("plain"))
    inputs = experiments.Inputs(archive, tmp_path, tmp_path / "work")
    for test_fold in experiments.FOLDS:
        experiments.descriptors(inputs, "watched", test_fold, 0)
    patients = inputs.tiles["patient_id"].to_numpy()
    assert np.sum([test for _, test in seen], axis=0).tolist() == [1] * len(patients)
    for train, test in seen:
        assert not set(patients[train]) & set(patients[test])
