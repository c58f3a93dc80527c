"""The experiments on real tissue: rivals against oracles, and the whole run in miniature."""

import io
import json
import zipfile

import experiments
import methods
import numpy as np
import pandas as pd
import pytest
import robustness
import tile_sets
import torch
from PIL import Image
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from safetensors.torch import save_file

from sslpath.augment import Augmentation
from sslpath.backbones import make_trunk
from sslpath.model import contrastive_loss, pair_loss
from sslpath.table import fold


@pytest.fixture
def step():
    """Two views of each of twelve tiles of four slides, three in a row on each."""
    torch.manual_seed(0)
    tile, x = torch.arange(12).repeat(2), torch.randn(24, 30)
    slide, place = tile % 4, (tile // 4).double()[:, None]
    distance = torch.cdist(place, place)
    same = (slide[:, None] == slide) & (tile[:, None] != tile)
    return methods.Step(
        torch.nn.functional.normalize(torch.randn(24, 16), dim=1), x, tile, slide,
        same & (distance <= 1), same & (distance > 1), distance, 1.2, torch.Generator(),
    )  # fmt: skip


def test_simclr_is_the_loss_of_pytorch_metric_learning(step):
    theirs = NTXentLoss(temperature=0.5)(step.z, step.tile)
    assert methods.simclr(step).item() == pytest.approx(theirs.item())


def test_instance_discrimination_pairs_a_tile_with_its_own_view_alone(step):
    i, j = torch.triu_indices(24, 24, 1)
    own = (j - i) == 12
    kept = own | (step.slide[i] == step.slide[j])
    expected = pair_loss(step.z[i[kept]], step.z[j[kept]], own[kept], 1.2).total
    assert methods.instance_discrimination(step).item() == pytest.approx(expected.item(), abs=1e-5)


def test_info_nce_of_near_pairs_is_the_loss_of_pytorch_metric_learning(step):
    a, p = torch.nonzero(step.near, as_tuple=True)
    b, n = torch.nonzero(step.far, as_tuple=True)
    keep = torch.isin(a, b)  # both ours and theirs leave out what has no far partner
    theirs = NTXentLoss(temperature=0.2)(step.z, indices_tuple=(a[keep], p[keep], b, n))
    # Theirs is a mean over pairs, ours over anchors; here every anchor has as many.
    counts = step.near.sum(dim=1)[step.far.any(dim=1)]
    assert len(set(counts.tolist())) == 1
    assert methods.info_nce(step).item() == pytest.approx(theirs.item(), rel=1e-4)


def test_triplets_are_those_of_pytorch_metric_learning(step):
    # One near and one far partner each: nothing is left to chance.
    first = step._replace(near=torch.zeros(24, 24, dtype=torch.bool), far=step.far.clone())
    first.far[:] = False
    a = torch.arange(8)
    first.near[a, a + 8] = first.far[a, a + 16] = True
    theirs = TripletMarginLoss(margin=1.2)
    theirs.distance.normalize_embeddings, theirs.distance.power = False, 2
    expected = theirs(first.z, indices_tuple=(a, a + 8, a + 16))
    assert methods.triplet(first).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", methods.LOSSES)
def test_every_loss_falls_when_it_is_followed(step, name):
    torch.manual_seed(1)
    raw = torch.randn(24, 16, requires_grad=True)
    optimiser = torch.optim.SGD([raw], lr=0.5)
    found = []
    for _ in range(30):
        z = torch.nn.functional.normalize(raw, dim=1)
        loss = methods.LOSSES[name](step._replace(z=z, generator=torch.Generator().manual_seed(0)))
        found.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found[-1] < found[0] - 0.01


def test_variants_differ_from_ours_in_what_they_say_alone(step):
    ours = contrastive_loss(step.z, step.near, step.far, 1.2).total.item()
    level = step._replace(distance=torch.zeros(24, 24))
    assert methods.soft_near(level).item() == pytest.approx(ours, rel=1e-5)
    one = step._replace(slide=torch.zeros(24, dtype=torch.long))
    assert methods.far_of_any_slide(one).item() == pytest.approx(ours, rel=1e-6)
    far = step.far | (step.slide[:, None] != step.slide)
    expected = contrastive_loss(step.z, step.near, far, 1.2).total.item()
    assert methods.far_of_any_slide(step).item() == pytest.approx(expected, rel=1e-6)
    # Far pairs with the most alike features gone: the rest of the far part is what is left.
    norms = torch.cdist(step.x, step.x).square()
    kept = step.far & (norms > norms[step.far].quantile(0.2) + 1e-4)
    assert 0.7 < kept.sum() / step.far.sum() < 0.9
    expected = contrastive_loss(step.z, step.near, kept, 1.2).total.item()
    assert methods.far_alike_dropped(step).item() == pytest.approx(expected, rel=1e-4)


def test_a_tile_comes_as_two_different_views():
    drawn = methods.drawn_views(2000, 5, True, np.random.default_rng(0)).numpy()
    assert (drawn[:1000] != drawn[1000:]).all()
    assert np.bincount(drawn).min() > 300


def test_tiles_without_colour_differ_in_texture_alone():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 200, (1, 50, 50, 3), dtype=np.uint8)
    darker = (tile * 0.5 + 20).astype(np.uint8)
    one, other = tile_sets.without_colour(np.concatenate([tile, darker])).astype(float)
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


@pytest.fixture
def weights(tmp_path):
    """Random weights of MobileNetV2."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(make_trunk("mobilenet_v2").state_dict(), path)
    return path


def test_the_whole_run_in_miniature_goes_on_where_it_stopped(
    archive, weights, tmp_path, monkeypatch
):
    few = {"steps": 3}
    settings = {
        "imagenet": methods.Setting("plain", "last"),
        "spatial": methods.Setting("spatial", changes=few),
        "SimCLR": methods.Setting("variant", changes={"loss": "SimCLR", "views": "view", **few}),
        "imagenet, grey": methods.Setting("plain", "grey last"),
    }
    monkeypatch.setattr(experiments, "SETTINGS", settings)
    monkeypatch.setitem(tile_sets.VIEWS, "view", (Augmentation(), 2))
    inputs = tile_sets.Inputs(tile_sets.idc(archive), weights, tmp_path / "work", 32)
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


def test_the_command_can_keep_to_some_folds(archive, weights, tmp_path, monkeypatch, capsys):
    settings = {
        "imagenet": methods.Setting("plain", "rgb"),
        "spatial": methods.Setting("plain", "rgb"),
    }
    monkeypatch.setattr(experiments, "SETTINGS", settings)
    out = tmp_path / "rows.json"
    where = f"--work {tmp_path / 'work'} --out {out} --imagenet-weights {weights} --seeds 0"
    words = ["experiments.py", "idc", str(archive), *where.split(), "--folds", "0", "1"]
    monkeypatch.setattr("sys.argv", words)
    experiments.main()
    rows = json.loads(out.read_text())
    assert {r["data"] for r in rows} == {"IDC, folds 0 and 1"}
    assert "spatial" in capsys.readouterr().out
    kept = sorted(path.name for path in (tmp_path / "work").rglob("descriptors/*.npy"))
    assert len(kept) == 4
    monkeypatch.setattr("sys.argv", words[:-1])
    with pytest.raises(SystemExit):
        experiments.main()
    assert "are not those of a result" in capsys.readouterr().err


def test_robustness_agrees_with_the_comparison_where_nothing_is_changed(
    archive, weights, tmp_path, monkeypatch
):
    few = {"steps": 3}
    settings = {
        "imagenet": methods.Setting("plain", "last"),
        "spatial": methods.Setting("spatial", changes=few),
        "spatial, views": methods.Setting("spatial", changes={"views": "elsewhere", **few}),
    }
    monkeypatch.setattr(experiments, "SETTINGS", settings)
    monkeypatch.setattr(robustness, "SETTINGS", settings)
    monkeypatch.setitem(tile_sets.VIEWS, "elsewhere", (Augmentation(), 1))
    inputs = tile_sets.Inputs(tile_sets.idc(archive), weights, tmp_path / "work", 32)
    same = {"same": inputs["depths"], "stain": inputs.depths("twin stain", robustness.stain)}
    rows = robustness.rows_of(inputs, same, 0)
    found = {(r["method"], r["metric"]): r["value"] for r in rows}
    for name in settings:
        expected = experiments.scores(inputs, name, 0, range(5))["tumour_p_at_10"].value
        assert found[name, "p_at_10_none"] == pytest.approx(expected)
        assert found[name, "p_at_10_same"] == pytest.approx(expected)
        assert found[name, "twin_same"] == 1
        assert found[name, "twin_stain"] < 1
        assert 0 < found[name, "own_patient"] < 1
    assert found["chance", "own_patient"] == pytest.approx(
        np.mean([7 / (8 * n - 1) for n in inputs.tiles.groupby(inputs.folds)["patient_id"].nunique()
                 for _ in range(n)])
    )  # fmt: skip


@pytest.mark.parametrize("trunk", ["finetune", "scratch"])
def test_a_trunk_learns_from_the_training_patients_pixels(archive, weights, tmp_path, trunk):
    changes = {"trunk": trunk, "arch": "mobilenet_v2", "input_px": 32, "steps": 2}
    one = methods.Setting("learning trunk", changes={**changes, "tiles_per_slide": 8})
    inputs = tile_sets.Inputs(tile_sets.idc(archive), weights, tmp_path / "work")
    test = inputs.folds == 0
    found = methods.learning_trunk(inputs, one, ~test, test, 0)
    assert found.shape == (test.sum(), 128)
    [config] = (tmp_path / "work" / "runs").glob("*/config.json")
    run = json.loads(config.read_text())
    assert run["data"]["tiles"] == (~test).sum()
    assert run["model"]["trunk"] == trunk
    assert (run["training"]["steps"], run["training"]["tiles_per_slide"]) == (2, 8)
    started = run["model"]["encoder"].get("sha256")
    assert (started is not None) == (trunk == "finetune")


def test_features_can_be_of_smaller_tiles(archive, weights, tmp_path):
    inputs = tile_sets.Inputs(tile_sets.idc(archive), weights, tmp_path / "work", 64)
    of_64, of_32 = inputs["depths"], inputs["32 px depths"]
    direct = tile_sets.Inputs(inputs.set, weights, tmp_path / "other", 32)
    assert np.array_equal(of_32, direct["depths"])
    assert not np.allclose(of_32, of_64)
    assert np.array_equal(inputs["32 px last"], of_32[:, -1280:])
    assert methods.configs(inputs, methods.Setting("spatial", "32 px depths"), 0)[1].input_px == 32


def test_a_fold_never_learns_from_its_own_patients(archive, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(
        experiments.KINDS,
        "plain",
        lambda inputs, one, train, test, seed: (
            seen.append((train, test)) or np.ones((test.sum(), 2))
        ),
    )
    monkeypatch.setitem(experiments.SETTINGS, "watched", methods.Setting("plain"))
    inputs = tile_sets.Inputs(tile_sets.idc(archive), tmp_path, tmp_path / "work")
    for test_fold in range(5):
        experiments.descriptors(inputs, "watched", test_fold, 0)
    patients = inputs.tiles["patient_id"].to_numpy()
    assert np.sum([test for _, test in seen], axis=0).tolist() == [1] * len(patients)
    for train, test in seen:
        assert not set(patients[train]) & set(patients[test])


def test_folds_of_phantoms_share_no_stain_and_no_scanner():
    folds, specs = zip(*tile_sets.phantom_folds(12, seed=0), strict=True)
    looks = pd.DataFrame(specs)[["laboratory", "scanner"]].assign(fold=folds)
    for what in ("laboratory", "scanner"):
        assert looks[what].nunique() == {"laboratory": 6, "scanner": 3}[what]
        assert len(looks[[what, "fold"]].drop_duplicates()) == looks[what].nunique()
    assert set(folds) == {0, 1, 2}
