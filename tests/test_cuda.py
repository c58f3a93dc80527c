"""On a GPU: the same numbers as on the CPU to rounding, and runs that go on. Skips without one."""

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import HEAD, QUICK, Painted, distance_ratio, some_tiles, spatial_features

from sslpath import training
from sslpath.augment import ELSEWHERE, Augmentation, augment
from sslpath.descriptors import compute, read_descriptors
from sslpath.imagenet import random_encoder
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss, load_model
from sslpath.runs import read_log, save_state
from sslpath.training import train

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TRUNK = ModelConfig("resnet18", trunk="scratch", input_px=32, hidden=32, descriptor_dim=16)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("settings", [Augmentation(), ELSEWHERE])
def test_augmentation_is_that_of_the_cpu(settings: Augmentation, compiled: bool) -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (32, 3, 48, 48), dtype=np.uint8))
    settings = replace(settings, jpeg=0)  # which turns rounding into other blocks
    here, there = (
        augment(images.to(device), torch.Generator().manual_seed(3), settings, compiled=both)
        for device, both in (("cpu", False), (DEVICE, compiled))
    )
    assert there.device.type == DEVICE
    assert torch.allclose(there.cpu(), here, atol=2e-3)


def test_loss_and_gradients_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)
    near = torch.rand(64, 64, generator=generator) < 0.1
    near = near | near.T
    far = ~near & ~torch.eye(64, dtype=torch.bool)  # at no distance a far pair's slope is rounding
    near.fill_diagonal_(False)
    found = []
    for device in ("cpu", DEVICE):
        x = z.to(device, copy=True).requires_grad_()
        loss = contrastive_loss(x, near.to(device), far.to(device), 1.2)
        loss.total.backward()
        assert x.grad is not None
        found.append((loss.total.detach().cpu(), x.grad.cpu()))
    (a, slope), (b, slope_there) = found
    assert torch.allclose(a, b, rtol=1e-4)
    assert torch.allclose(slope, slope_there, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_those_of_the_cpu(precision: str) -> None:
    tiles = some_tiles(1, 6)
    pixels = Painted().read(tiles)
    here = random_encoder("resnet18", input_px=32, precision="float32").encode(pixels)
    there = random_encoder("resnet18", input_px=32, precision=precision, device=DEVICE).encode(
        pixels
    )
    alike = (
        (here * there).sum(axis=1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    )
    assert alike.min() > (0.9999 if precision == "float32" else 0.99)


@pytest.mark.parametrize("workers", [0, 2])
def test_descriptors_are_those_of_each_batch_alone(tmp_path: Path, workers: int) -> None:
    """Where the next tiles travel while these are looked at, none get in the way of others."""
    tiles = some_tiles(3)
    encoder = random_encoder("resnet18", input_px=64, device=DEVICE)
    network = SiameseNetwork(TRUNK).eval().to(DEVICE)
    for name, one in (("encoder", encoder), ("network", network)):
        compute(
            tiles, one.start, Painted(), tmp_path / name, attrs={}, batch=16, workers=workers,
            as_listed=True, progress=False,
        )  # fmt: skip
        found = read_descriptors(tmp_path / name, tiles)
        for _, rows in tiles.groupby("slide_id"):
            for first in range(0, len(rows), 16):
                part = rows.iloc[first : first + 16]
                alone = one.encode(Painted().read(part))
                largest = np.abs(alone).max()
                np.testing.assert_allclose(found[part.index], alone, atol=2e-3 * largest)


def test_a_head_learns_as_on_the_cpu(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    head = replace(HEAD, dropout=0.0)  # drawn on the device, and so not alike
    logs = []
    for device in ("cpu", DEVICE):
        run = tmp_path / device
        network = train(tiles, QUICK, head, run, features=features, device=device, progress=False)
        logs.append([line["loss"] for line in read_log(run)])
    assert network.centre.device.type == DEVICE
    assert logs[0] == pytest.approx(logs[1], rel=1e-2)
    assert distance_ratio(tiles, network.encode(features)) > 1.05


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trunk_learns_from_pixels(tmp_path: Path, workers: int) -> None:
    tiles = some_tiles()
    source = Painted()
    config = replace(QUICK, steps=40, lr=1e-3, twins=0.2)
    network = train(
        tiles, config, TRUNK, tmp_path, source=source, device=DEVICE, workers=workers,
        progress=False,
    )  # fmt: skip
    found = network.encode(source.read(tiles))
    assert distance_ratio(tiles, found) > 1.05
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert losses[-1] < losses[0]
    again = load_model(tmp_path / "checkpoint.safetensors")  # on the CPU
    there = again.encode(source.read(tiles))
    assert (there * found).sum(axis=1).mean() > 0.99


def test_a_run_that_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    whole = train(tiles, QUICK, HEAD, tmp_path / "a", features=features, device=DEVICE)

    def save_and_stop(*words: Any) -> None:
        save_state(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(tiles, QUICK, HEAD, tmp_path / "b", features=features, device=DEVICE)
    monkeypatch.undo()
    resumed = train(tiles, QUICK, HEAD, tmp_path / "b", features=features, device=DEVICE)
    a, b = (torch.from_numpy(net.encode(features)) for net in (whole, resumed))
    assert torch.allclose(a, b, atol=1e-3)


def test_compiled(tmp_path: Path) -> None:
    tiles = some_tiles()
    found = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        # Few, for each step makes more of what rounding did in the one before.
        config = replace(QUICK, steps=3, log_every=1, lr=1e-4, precision="float32")
        train(
            tiles, config, TRUNK, run, source=Painted(), device=DEVICE, compiled=compiled,
            progress=False,
        )  # fmt: skip
        found.append([line["loss"] for line in read_log(run)])
    assert found[0][0] == pytest.approx(found[1][0], rel=5e-3)  # on the same weights
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_a_step_does_not_wait_for_the_gpu(tmp_path: Path) -> None:
    """Where it waited, the GPU would idle: more steps wait no more than few do."""
    tiles = some_tiles()

    def waits(steps: int) -> Counter[str]:
        config = replace(QUICK, steps=steps, log_every=steps, checkpoint_every=steps, twins=0.2)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run = tmp_path / str(steps)
                train(tiles, config, TRUNK, run, source=Painted(), device=DEVICE, progress=False)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = [
            f"{w.filename.rpartition('/')[2]}:{w.lineno}"
            for w in seen
            if "synchroniz" in str(w.message)
        ]
        # That the pixels of the step before have arrived is waited for, and has long happened.
        return Counter(place for place in places if not place.startswith("streams"))

    few, many = waits(4), waits(12)
    assert any(place.startswith("training") for place in few)  # the log's numbers are seen
    assert not many - few
