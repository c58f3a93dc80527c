"""The network, the loss against another library, collapse, and checkpoints that are not trusted."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslpath.errors import ConfigError, WeightsError
from sslpath.model import (
    ModelConfig,
    SiameseNetwork,
    collapse,
    contrastive_loss,
    load_model,
    pair_loss,
    save_model,
)

SMALL = ModelConfig(arch="any", feature_dim=16, hidden=12, descriptor_dim=8)
PIXELS = ModelConfig(arch="resnet18", trunk="scratch", input_px=32)


def unit(b: int, d: int, seed: int = 0) -> Tensor:
    random = torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(random, dim=1)


def random_masks(b: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Symmetric, disjoint, diagonal False; both kinds occur."""
    kind = np.random.default_rng(seed).integers(3, size=(b, b))
    kind = np.triu(kind, 1) + np.triu(kind, 1).T + 2 * np.eye(b, dtype=int)
    kind[0, 1] = kind[1, 0] = 0
    kind[0, 2] = kind[2, 0] = 1
    return torch.from_numpy(kind == 0), torch.from_numpy(kind == 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 12), st.floats(0.1, 2), st.integers(0, 99))
def test_the_loss_is_the_squared_hinges_of_pytorch_metric_learning(
    b: int, margin: float, seed: int
) -> None:
    """There a pair costs d (near) or max(0, m - d) (far); here it costs the square of that."""
    z, (near, far) = unit(b, 6, seed), random_masks(b, seed)
    theirs = ContrastiveLoss(
        pos_margin=0, neg_margin=margin,
        distance=LpDistance(normalize_embeddings=False, p=2, power=1),
        reducer=DoNothingReducer(),
    )  # fmt: skip
    pairs = (*torch.where(near), *torch.where(far))
    hinges = theirs(z, indices_tuple=pairs)
    near_cost, far_cost = (hinges[k]["losses"].square() for k in ("pos_loss", "neg_loss"))
    loss = contrastive_loss(z, near, far, margin)
    torch.testing.assert_close(loss.near, near_cost.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.far, far_cost.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.total, near_cost.mean() + far_cost.mean(), atol=1e-5, rtol=0)


def test_the_form_on_explicit_pairs_agrees_with_the_form_on_a_batch() -> None:
    z, (near, far) = unit(9, 5), random_masks(9)
    i, j = torch.where(near | far)
    explicit = pair_loss(z[i], z[j], near[i, j], 1.1)
    for one, other in zip(explicit, contrastive_loss(z, near, far, 1.1), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_the_loss_by_hand_on_three_points() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    near = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    far = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    loss = contrastive_loss(z, near, far, margin=1.5)
    assert loss.near.item() == pytest.approx(25)  # d = 5
    assert loss.far.item() == pytest.approx(0.25, abs=1e-6)  # d = 1: (1.5 - 1)^2
    assert contrastive_loss(z, near, far, margin=0.9).far.item() == 0


def test_gradients_are_right() -> None:
    z, (near, far) = unit(6, 4).requires_grad_(), random_masks(6)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, near, far, 1.2).total, (z,))
    other, is_near = unit(6, 4, seed=1), torch.tensor([True, False] * 3)
    assert torch.autograd.gradcheck(lambda x: pair_loss(x, other, is_near, 1.2).total, (z,))


def test_the_force_on_a_pair_is_that_of_the_formula() -> None:
    """Near: 2 (a - b), together. Far, within the margin: -2 (m - d) (a - b) / d, apart."""
    a, b = unit(1, 5, seed=1), unit(1, 5, seed=2)
    d, margin = (a - b).norm(), 2.0
    for is_near, force in ((True, 2 * (a - b)), (False, -2 * (margin - d) * (a - b) / d)):
        moving = a.clone().requires_grad_()
        pair_loss(moving, b, torch.tensor([is_near]), margin).total.backward()
        torch.testing.assert_close(moving.grad, force)


def test_far_pairs_beyond_the_margin_pull_on_nothing() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    far = ~torch.eye(2, dtype=torch.bool)
    contrastive_loss(z, torch.zeros(2, 2, dtype=torch.bool), far, 1.2).total.backward()
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_identical_descriptors_give_a_finite_loss_and_gradient() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    near, far = random_masks(4)
    loss = contrastive_loss(z, near, far, 1.2)
    loss.total.backward()
    assert loss.far.item() == pytest.approx(1.44, abs=1e-4)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_batch_without_pairs_costs_nothing_and_still_has_a_gradient() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    none = torch.zeros(4, 4, dtype=torch.bool)
    loss = contrastive_loss(z, none, none, 1.2)
    loss.total.backward()
    assert loss.total.item() == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_collapse_is_seen_as_a_point_as_a_line_and_not_at_all_on_the_sphere() -> None:
    n, d = 4000, 16
    point = F.normalize(torch.ones(n, d) + 1e-4 * torch.randn(n, d), dim=1)
    angle = torch.rand(n) * 0.5
    line = torch.zeros(n, d)
    line[:, 0], line[:, 1] = angle.cos(), angle.sin()
    sphere = unit(n, d).float()
    seen = {"point": collapse(point), "line": collapse(line), "sphere": collapse(sphere)}
    assert seen["point"]["spread"] < 1e-3
    assert seen["line"]["effective_rank"] < 1.2
    assert seen["sphere"]["spread"] == pytest.approx(1, abs=0.01)
    assert seen["sphere"]["effective_rank"] > 0.99 * d
    assert collapse(torch.ones(5, 4) / 2) == {"spread": 0.0, "effective_rank": 0.0}


def test_the_effective_rank_of_a_known_spectrum_is_its_entropys_exponential() -> None:
    # Two directions with variances 4 : 1 around the mean.
    x = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]])
    shares = np.array([0.8, 0.2])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert collapse(x)["effective_rank"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "x"),
    [
        (SMALL, torch.randn(6, 16)),
        (ModelConfig(arch="resnet18", trunk="scratch", input_px=32), torch.rand(6, 3, 40, 40)),
        (ModelConfig(arch="mobilenet_v2", trunk="finetune", input_px=32), torch.rand(6, 3, 32, 32)),
        (ModelConfig(arch="inception_v3", trunk="scratch", input_px=75), torch.rand(6, 3, 75, 75)),
    ],
    ids=["frozen", "scratch", "finetune", "outputs of earlier layers"],
)
def test_descriptors_have_unit_length_and_learn_through_every_weight(
    config: ModelConfig, x: Tensor
) -> None:
    network = SiameseNetwork(config)
    descriptors = network(x)
    assert descriptors.shape == (6, config.descriptor_dim)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(6))
    near, far = random_masks(6)
    contrastive_loss(descriptors, near, far, 1.2).total.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []


def test_frozen_features_are_centred_and_scaled_as_a_whole() -> None:
    features = (torch.randn(500, 16) * torch.linspace(0.1, 9, 16) + 5) * 1e-9
    network = SiameseNetwork(SMALL)
    network.fit_scale(features)
    scaled = (features - network.centre) / network.scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert scaled.square().mean().item() == pytest.approx(1, abs=1e-3)
    # Loud features stay louder than quiet ones.
    assert scaled.std(0)[-1] / scaled.std(0)[0] == pytest.approx(90, rel=0.2)
    network.fit_scale(torch.ones(5, 16))  # without any spread nothing is divided by 0
    assert network.encode(np.ones((2, 16), np.float32)).shape == (2, 8)


def test_training_does_not_depend_on_the_unit_of_the_features() -> None:
    features = torch.randn(50, 16)
    descriptors = []
    for unit_of_feature in (1.0, 1e-9, 1e6):
        torch.manual_seed(0)
        network = SiameseNetwork(replace(SMALL, dropout=0))
        network.fit_scale(features * unit_of_feature)
        descriptors.append(network(features * unit_of_feature))
    torch.testing.assert_close(descriptors[0], descriptors[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(descriptors[0], descriptors[2], atol=1e-4, rtol=0)


def test_encode_depends_on_the_tile_alone_not_on_its_batch_or_on_training_mode() -> None:
    network = SiameseNetwork(SMALL).train()
    features = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    whole = network.encode(features)
    assert network.training
    np.testing.assert_allclose(network.encode(features[3:5]), whole[3:5], atol=1e-6)
    assert whole.dtype == np.float32


def test_encode_takes_tiles_where_the_trunk_is_part_of_the_network() -> None:
    network = SiameseNetwork(ModelConfig(arch="resnet18", trunk="scratch", input_px=32))
    tiles = np.random.default_rng(0).integers(256, size=(3, 50, 50, 3), dtype=np.uint8)
    assert network.encode(tiles).shape == (3, 128)


@pytest.mark.parametrize(
    ("config", "inputs", "first"),
    [
        (
            PIXELS,
            np.random.default_rng(0).integers(256, size=(70, 32, 32, 3), dtype=np.uint8),
            "trunk.conv1",
        ),
        (SMALL, np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32), "head.0"),
    ],
    ids=["tiles", "features"],
)
def test_encode_looks_at_a_batch_at_a_time_and_says_the_same_as_at_all_at_once(
    config: ModelConfig, inputs: NDArray[Any], first: str
) -> None:
    network, seen = SiameseNetwork(config), []
    whole = network.encode(inputs, batch=70)
    layer = network.get_submodule(first)
    layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    np.testing.assert_allclose(network.encode(inputs, batch=16), whole, atol=1e-5)
    assert seen == [16, 16, 16, 16, 6]
    assert network.encode(inputs[:0]).shape == (0, config.descriptor_dim)


def test_encode_and_start_take_batches_that_fit_into_memory_by_themselves() -> None:
    tiles = np.zeros((300, 32, 32, 3), np.uint8)
    network, seen = SiameseNetwork(PIXELS), []
    assert network.trunk is not None
    network.trunk.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert len(network.encode(tiles)) == len(network.start(tiles)()) == 300
    assert max(seen) <= 256
    head, seen_by_head = SiameseNetwork(SMALL), []
    head.head.register_forward_pre_hook(lambda _, given: seen_by_head.append(len(given[0])))
    assert len(head.encode(np.zeros((40_000, 16), np.float32))) == 40_000
    assert max(seen_by_head) <= 16_384


def test_tiles_that_are_no_tiles_are_refused() -> None:
    network = SiameseNetwork(PIXELS)
    for wrong in (np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8)):
        with pytest.raises(ConfigError, match="Tiles must be uint8"):
            network.encode(wrong)


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"\(n, 16\), not \(4, 17\)"):
        SiameseNetwork(SMALL).encode(np.zeros((4, 17), np.float32))


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, encoder={"arch": "resnet18", "sha256": "ab", "input_px": 224}),
        ModelConfig(arch="resnet18", trunk="scratch", input_px=32, descriptor_dim=5),
    ],
    ids=["frozen", "scratch"],
)
def test_a_checkpoint_gives_back_the_same_network_bit_for_bit(
    config: ModelConfig, tmp_path: Path
) -> None:
    network = SiameseNetwork(config)
    save_model(network, tmp_path / "c.safetensors")
    again = load_model(tmp_path / "c.safetensors")
    assert again.config == config
    assert not again.training
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "wanted", [{"arch": "resnet18"}, {"trunk": "scratch"}, {"descriptor_dim": 128}]
)
def test_a_checkpoint_of_another_network_than_asked_for_is_refused(
    wanted: dict[str, object], tmp_path: Path
) -> None:
    save_model(SiameseNetwork(SMALL), tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=f"c.safetensors has {next(iter(wanted))}"):
        load_model(tmp_path / "c.safetensors", **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"hidden": 13}, {"trunk": "scratch"}, {"descriptor_dim": "x"}])
def test_tensors_that_do_not_fit_the_header_are_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    save_model(SiameseNetwork(SMALL), path)
    header = {"arch": "any", "feature_dim": 16, "hidden": 12, "descriptor_dim": 8} | change
    save_file(load_file(path), path, {"sslpath_model": json.dumps(header)})
    with pytest.raises(WeightsError, match="do not fit its own header"):
        load_model(path)


def test_a_missing_a_cut_and_a_foreign_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="sslpath train"):
        load_model(tmp_path / "none.safetensors")
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_model(SiameseNetwork(SMALL), whole)
    for size in (0, 7, 100, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(WeightsError, match=r"cut\.safetensors"):
            load_model(cut)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="no checkpoint of sslpath"):
        load_model(tmp_path / "foreign.safetensors")


def test_the_folder_of_a_finished_run_is_as_good_as_its_checkpoint(tmp_path: Path) -> None:
    save_model(SiameseNetwork(SMALL), tmp_path / "checkpoint.safetensors")
    assert load_model(tmp_path).config == load_model(str(tmp_path)).config == SMALL


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.safetensors", None, "No checkpoint at PATH; make one with `sslpath train`"),
        ("empty.safetensors", b"", "PATH as safetensors: the file is empty"),
        ("notes.txt", b"some text\n" * 50, "PATH as safetensors: it is cut short, damaged, or"),
        ("weights.pth", "torch", "PATH as safetensors: it is a pickle, which is never read"),
        ("old.pth", "legacy torch", "PATH as safetensors: it is a pickle, which is never read"),
        ("cut.safetensors", "cut", "PATH as safetensors: it is cut short, damaged, or"),
        ("state.safetensors", "state", "PATH is no checkpoint of sslpath"),
        ("folder", "folder", "No checkpoint at PATH/checkpoint.safetensors"),
        ("run", "run", "The run in PATH is not finished: `sslpath train`"),
        ("run/checkpoint.safetensors", "run", r"The run in .*run is not finished"),
        ("file/checkpoint.safetensors", "file", "PATH"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_its_name_and_a_remedy(
    name: str, content: object, says: str, tmp_path: Path
) -> None:
    path, network = tmp_path / name, SiameseNetwork(SMALL)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content in ("torch", "legacy torch"):
        new = content == "torch"
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=new)
    elif content == "cut":
        save_model(network, path)
        path.write_bytes(path.read_bytes()[:-9])
    elif content == "state":
        save_file(network.state_dict(), path, {"step": "3"})
    elif content == "folder":
        path.mkdir()
    elif content == "run":
        (tmp_path / "run").mkdir()
        save_file(network.state_dict(), tmp_path / "run" / "state.safetensors", {"step": "3"})
    elif content == "file":
        (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=says.replace("PATH", re.escape(str(path)))) as caught:
        load_model(path)
    assert "sslpath train" in str(caught.value) or "finished run" in str(caught.value)


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(self.target),))  # type: ignore[return-value]


def test_a_pickle_under_a_checkpoints_name_is_refused_and_never_run(tmp_path: Path) -> None:
    sign = tmp_path / "it ran"
    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps(Evil(sign)))
    with pytest.raises(WeightsError):
        load_model(path)
    assert not sign.exists()
    pickle.loads(path.read_bytes())  # the trap itself works
    assert sign.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trunk": "warm"}, "Unknown trunk"),
        ({"trunk": "scratch", "feature_dim": 0}, "no classifier 'any'"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_network_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sslpath, sslpath.pairs, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
