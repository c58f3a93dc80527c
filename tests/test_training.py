"""Training: it learns, it survives being killed, and it refuses to mix runs."""

import hashlib
import json
import multiprocessing
import shutil
import signal
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models._api import BUILTIN_MODELS, register_model  # no public name

from sslpath.augment import NONE, Augmentation
from sslpath.batches import Batches
from sslpath.errors import ConfigError, TileReadError, WeightsError
from sslpath.imagenet import random_encoder
from sslpath.model import ModelConfig, SiameseNetwork, load_model
from sslpath.pairs import sample_pairs
from sslpath.runs import claim, load_state, read_log, save_state
from sslpath.settings import PAPER, TrainConfig, default_config, paper_preset
from sslpath.table import centres_um, make_table
from sslpath.training import learning_rate, train, training_rows

HEAD = ModelConfig(arch="made up", feature_dim=24, hidden=32, descriptor_dim=16, dropout=0.2)
QUICK = TrainConfig(
    near_tiles=2, far_tiles=7, steps=24, slides_per_batch=2, tiles_per_slide=16,
    lr=3e-3, checkpoint_every=5, log_every=4,
)  # fmt: skip


def some_tiles(slides: int = 3, side: int = 14, tile_px: int = 32) -> pd.DataFrame:
    x, y = (tile_px * np.indices((side, side))).reshape(2, -1)
    columns = {
        "slide_id": np.repeat([f"s{i}" for i in range(slides)], side * side),
        "x": np.tile(x, slides), "y": np.tile(y, slides), "size": tile_px, "slide_mpp": 0.5,
    }  # fmt: skip
    return make_table(columns, mpp=0.5, tile_px=tile_px, source={})


def spatial_features(tiles: pd.DataFrame, seed: int = 0) -> NDArray[Any]:
    """Half of the features change smoothly over the slide, the other, louder half is noise."""
    rng = np.random.default_rng(seed)
    place = tiles[["x", "y"]].to_numpy(float) / tiles["x"].max()
    waves = np.sin(place @ rng.normal(0, 3, (2, 12)) + rng.uniform(0, 6, 12))
    noise = rng.normal(0, 2, waves.shape)
    return np.hstack([waves + noise / 8, noise]).astype(np.float32)


class Painted:
    """A source whose tiles are coloured by where they are; some cannot be read."""

    def __init__(self, tile_px: int = 32, broken: tuple[int, ...] = ()) -> None:
        self.tile_px, self.broken = tile_px, broken

    def read(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        tiles = np.empty((len(rows), self.tile_px, self.tile_px, 3), np.uint8)
        for i, (index, x, y) in enumerate(zip(rows.index, rows["x"], rows["y"], strict=True)):
            if index in self.broken:
                raise TileReadError(f"tile {index} is broken")
            grain = np.random.default_rng(int(index)).normal(0, 12, tiles.shape[1:])
            tiles[i] = np.clip(np.array([80 + x / 4, 160, 80 + y / 4]) + grain, 0, 255)
        return tiles


def same_weights(one: SiameseNetwork, other: SiameseNetwork) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def distance_ratio(tiles: pd.DataFrame, z: NDArray[Any]) -> float:
    """Mean distance of far pairs over that of near pairs, on pairs not used in training."""
    pairs = sample_pairs(tiles, 2000, near_um=32, far_um=112, rng=np.random.default_rng(99))
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    far = np.linalg.norm(z[pairs.anchor] - z[pairs.far], axis=1).mean()
    return float(far / np.linalg.norm(z[pairs.anchor] - z[pairs.near], axis=1).mean())


@pytest.mark.parametrize("pairs", ["in-batch", "explicit"])
def test_the_loss_falls_and_unseen_slides_gain_structure(pairs: Any, tmp_path: Path) -> None:
    tiles = some_tiles()
    tiles["split"] = np.where(tiles["slide_id"] == "s2", "test", "train")
    features = spatial_features(tiles)
    config = replace(QUICK, steps=80, pairs=pairs, tiles_per_slide=32)
    network = train(tiles, config, HEAD, tmp_path, features=features, progress=False)
    log = read_log(tmp_path)
    assert log[-1]["step"] == 80
    assert np.mean([x["loss"] for x in log[-4:]]) < 0.7 * log[0]["loss"]
    assert log[-1]["spread"] > 0.3
    assert log[-1]["effective_rank"] > 1.5
    assert min(line["near_pairs"] for line in log) > 0
    assert min(line["far_pairs"] for line in log) > 0
    unseen = (tiles["split"] == "test").to_numpy()
    part = tiles[unseen]
    part.attrs = tiles.attrs
    before = distance_ratio(part, features[unseen])
    assert distance_ratio(part, network.encode(features[unseen])) > before + 0.15


def test_shuffled_places_teach_nothing(tmp_path: Path) -> None:
    """The same features in random places: the ratio stays what it was, near 1."""
    tiles = some_tiles()
    features = spatial_features(tiles)[np.random.default_rng(5).permutation(len(tiles))]
    config = replace(QUICK, steps=80, tiles_per_slide=32)
    tiles["split"] = np.where(tiles["slide_id"] == "s2", "test", "train")
    network = train(tiles, config, HEAD, tmp_path, features=features, progress=False)
    unseen = (tiles["split"] == "test").to_numpy()
    part = tiles[unseen]
    part.attrs = tiles.attrs
    assert distance_ratio(part, network.encode(features[unseen])) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    ("trunk", "arch"),
    [("finetune", "resnet18"), ("scratch", "resnet18"), ("scratch", "mobilenet_v2")],
)
def test_trunks_that_learn_from_pixels_train_and_move_their_weights(
    trunk: Any, arch: str, tmp_path: Path
) -> None:
    tiles = some_tiles(2, 10)
    model = ModelConfig(arch=arch, trunk=trunk, input_px=32, hidden=32)
    config = replace(QUICK, steps=4, tiles_per_slide=8, log_every=1, twins=0.25)
    encoder = random_encoder(arch, seed=7, input_px=32) if trunk == "finetune" else None
    network = train(
        tiles, config, model, tmp_path, source=Painted(), encoder=encoder, progress=False
    )
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    z = network.encode(Painted().read(tiles.iloc[:6]))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    assert network.trunk is not None
    if encoder is not None:
        start, end = encoder.trunk.state_dict(), network.trunk.state_dict()
        change = (end["conv1.weight"] - start["conv1.weight"]).abs().max()
        assert 0 < change < 0.1  # moved, but started there
        assert network.config.encoder == encoder.provenance


def test_a_fine_tuned_trunk_answers_as_it_did_before_it_learns(tmp_path: Path) -> None:
    """Its normalisation has mean 0 and spread 1, of no data, like that of folded weights."""
    encoder, pixels = random_encoder("resnet18", seed=7, input_px=32), Painted()
    network = train(
        some_tiles(2, 10),
        replace(QUICK, steps=4, tiles_per_slide=8, lr=1e-12),
        ModelConfig(arch="resnet18", trunk="finetune", input_px=32, hidden=32),
        tmp_path,
        source=pixels,
        encoder=encoder,
        progress=False,
    )
    assert network.trunk is not None
    start, end = encoder.trunk.state_dict(), network.trunk.state_dict()
    for name in start:
        torch.testing.assert_close(start[name], end[name], rtol=0, atol=1e-9)
    images = torch.from_numpy(pixels.read(some_tiles(2, 10))).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        while_learning, after = network.train().trunk(images), network.eval().trunk(images)
    torch.testing.assert_close(while_learning, after)


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with g++")
def test_compiled_steps_are_the_same_to_rounding(tmp_path: Path) -> None:
    config = replace(QUICK, steps=2, tiles_per_slide=8, log_every=1, lr=1e-4, precision="float32")
    found = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        train(
            some_tiles(), config, PIXELS, run, source=Painted(), compiled=compiled, progress=False
        )  # fmt: skip
        found.append([line["loss"] for line in read_log(run)])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-2)  # Adam makes more of rounding


@pytest.fixture
def small() -> Iterator[str]:
    """A network that is compiled in seconds, with what MobileNetV2 is made of but dropout."""

    def small_network(weights: object = None) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000),
        )  # fmt: skip

    small_network.__module__ = "torchvision.models.small"  # list_models() looks at it
    register_model()(small_network)
    yield "small_network"
    del BUILTIN_MODELS["small_network"]


def slides_of(*sides: int) -> pd.DataFrame:
    """Slides of so many tiles squared."""
    each = [some_tiles(1, side).assign(slide_id=f"s{i}") for i, side in enumerate(sides)]
    tiles = pd.concat(each, ignore_index=True)
    tiles.attrs = some_tiles(1).attrs
    return tiles


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with g++")
@pytest.mark.parametrize(
    ("trunk", "sides", "broken", "most"),
    [
        # Batches differ in size as slides have fewer tiles than are asked for: known before.
        ("scratch", (14, 9, 10, 11), (), 1),
        # Or as tiles cannot be read: not known before.
        ("scratch", (14, 14, 14), range(0, 588, 9), 2),
        ("finetune", (14, 9, 10, 11), range(0, 588, 9), 1),
    ],
    ids=["small slides", "unreadable tiles", "both, fine-tuned"],
)
def test_a_trunk_is_compiled_once_or_twice_however_many_steps_and_sizes_of_batches(
    trunk: Any, sides: tuple[int, ...], broken: Any, most: int, small: str, tmp_path: Path
) -> None:
    tiles, found = slides_of(*sides), []
    config = replace(
        QUICK, steps=8, tiles_per_slide=128, log_every=1, lr=1e-4, twins=0.25, precision="float32",
        augmentation=Augmentation(),
    )  # fmt: skip
    encoder = random_encoder(small, seed=7, input_px=24) if trunk == "finetune" else None
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        train(
            tiles, config, ModelConfig(arch=small, trunk=trunk, input_px=24, hidden=32),
            tmp_path / str(compiled), source=Painted(broken=tuple(broken)), encoder=encoder,
            device="cpu", compiled=compiled, progress=False,
        )  # fmt: skip
        found.append([line["loss"] for line in read_log(tmp_path / str(compiled))])
    # With the two of augmentation, for stains and for colours.
    assert 3 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 + most
    assert not torch._dynamo.utils.counters["graph_break"]
    assert found[0] == pytest.approx(found[1], rel=1e-2)  # Adam makes more of rounding


def test_a_scratch_trunk_learns_to_tell_far_from_near_by_pixels(tmp_path: Path) -> None:
    tiles = some_tiles(2, 12)
    model = ModelConfig(arch="resnet18", trunk="scratch", input_px=32, hidden=64, dropout=0)
    config = replace(
        QUICK, steps=12, log_every=1, augmentation=Augmentation(stain=0.05, stain_shift=0)
    )
    train(tiles, config, model, tmp_path, source=Painted(), progress=False)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:2])


# Being killed.

LONG = replace(QUICK, steps=150, checkpoint_every=7, log_every=1)
PIXELS = ModelConfig(arch="resnet18", trunk="scratch", input_px=32, hidden=32)
LONG_PIXELS = replace(QUICK, steps=12, tiles_per_slide=8, checkpoint_every=2, log_every=1)


def one_run(pixels: bool, run: Path) -> None:
    """A whole run, or the rest of one; in a process of its own, to be killed."""
    torch.set_num_threads(1)
    tiles = some_tiles()
    if pixels:
        train(tiles, LONG_PIXELS, PIXELS, run, source=Painted(), progress=False)
    else:
        train(tiles, LONG, HEAD, run, features=spatial_features(tiles), progress=False)


def steps_logged(run: Path) -> int:
    lines = read_log(run)
    return int(lines[-1]["step"]) if lines else 0


@pytest.mark.parametrize("pixels", [False, True], ids=["features", "pixels"])
def test_a_run_killed_at_random_steps_ends_bit_for_bit_as_if_undisturbed(
    pixels: bool, tmp_path: Path
) -> None:
    total = (LONG_PIXELS if pixels else LONG).steps
    rng = np.random.default_rng(int(pixels))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # Children are forked from a server that has imported PyTorch but never run it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sslpath.training"])

    def start(run: Path) -> "multiprocessing.context.ForkServerProcess":
        process = context.Process(target=one_run, args=(pixels, run))
        process.start()
        return process

    undisturbed = start(whole)
    kills = []
    for _ in range(2):
        before = steps_logged(killed)
        if before >= total // 2:
            break
        at = before + int(rng.integers(1, max(2, total // 3)))
        child = start(killed)
        while steps_logged(killed) < at and child.is_alive():
            time.sleep(0.001)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kills.append(steps_logged(killed))
        assert not (killed / "checkpoint.safetensors").exists()
    assert kills
    last = start(killed)
    last.join()
    undisturbed.join()
    assert last.exitcode == undisturbed.exitcode == 0
    one, other = (load_file(run / "checkpoint.safetensors") for run in (killed, whole))
    different = [key for key in other if not torch.equal(one[key], other[key])]
    assert different == [], f"killed after {kills}"
    logs = [
        [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_log(run)]
        for run in (killed, whole)
    ]
    assert logs[0] == logs[1], f"killed after {kills}"


class Interrupted(Painted):
    """A source that is interrupted at one of its reads, as by Ctrl-C."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def read(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().read(rows)


@pytest.mark.slow
def test_an_interrupted_googlenet_goes_on_bit_for_bit(tmp_path: Path) -> None:
    tiles = some_tiles(2, 10)
    model = ModelConfig(arch="googlenet", trunk="scratch", input_px=32, hidden=32)
    config = replace(QUICK, steps=3, tiles_per_slide=4, checkpoint_every=2)

    def run(name: str, source: Painted) -> SiameseNetwork:
        return train(
            tiles, config, model, tmp_path / name, source=source, device="cpu", progress=False
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run("part", Interrupted(at=2))
    assert (tmp_path / "part" / "state.safetensors").exists()
    assert same_weights(run("part", Painted()), run("whole", Painted()))


class Parts(nn.Module):
    """Parameters of every kind: used, used from the third call on, unused, frozen, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.late, self.unused, self.frozen = (nn.Linear(4, 4) for _ in range(4))
        self.map = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.number = nn.Parameter(torch.tensor(2.0))
        self.frozen.requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0))
        self.calls: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.number * self.frozen(self.used(x))
        x = self.map(x[:, :, None, None].expand(-1, -1, 3, 3)).mean(dim=(2, 3))
        return self.late(x) if self.calls >= 3 else x


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_state_restores_parameters_with_late_and_without_any_gradient(
    stop: int, tmp_path: Path
) -> None:
    def learn(network: nn.Module, optimiser: torch.optim.AdamW, steps: range) -> None:
        for step in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad(set_to_none=True)
            network(x).square().sum().backward()
            optimiser.step()

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
        torch.manual_seed(seed)
        network = Parts()
        return network, torch.optim.AdamW(network.parameters(), lr=0.1)

    whole, optimiser = fresh(0)
    learn(whole, optimiser, range(stop))
    save_state(tmp_path, whole, optimiser, stop)
    part, other = fresh(1)
    assert load_state(tmp_path, part, other) == stop
    kept = [name for name, p in whole.named_parameters() if p in optimiser.state]
    assert [name for name, p in part.named_parameters() if p in other.state] == kept
    learn(whole, optimiser, range(stop, 6))
    learn(part, other, range(stop, 6))
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    one, same, other = (
        train(tiles, replace(QUICK, seed=s), HEAD, tmp_path / n, features=features, progress=False)
        for n, s in (("one", 0), ("same", 0), ("other", 1))
    )
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_reading_in_other_processes_changes_nothing(tmp_path: Path) -> None:
    tiles = some_tiles(2, 10)
    config = replace(QUICK, steps=3, tiles_per_slide=8)
    here, there = (
        train(tiles, config, PIXELS, tmp_path / str(n), source=Painted(), workers=n, progress=False)
        for n in (0, 2)
    )
    assert same_weights(here, there)


@pytest.mark.parametrize("pairs", ["in-batch", "explicit"])
def test_each_step_has_its_own_batch_and_always_the_same(pairs: Any) -> None:
    tiles = some_tiles()
    one, other = (Batches(tiles, replace(QUICK, pairs=pairs), Painted()) for _ in range(2))
    drawn = [tuple(one[step].positions.tolist()) for step in range(20)]
    assert len(set(drawn)) == 20
    again = [other[step] for step in reversed(range(20))]
    assert drawn == [tuple(batch.positions.tolist()) for batch in reversed(again)]
    for batch in again:
        xy = centres_um(tiles)[batch.positions]
        slide = tiles["slide_id"].to_numpy(str)[batch.positions]
        distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
        same = slide[:, None] == slide[None]
        assert (distance[batch.near] <= 32).all()
        assert (distance[batch.far] > 112).all()
        assert same[batch.near | batch.far].all()
        assert batch.images is not None
        pixels = Painted().read(tiles.iloc[batch.positions])
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)


def test_training_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    tiles = some_tiles(1)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    train(tiles, QUICK, HEAD, tmp_path, features=spatial_features(tiles), progress=False)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002


def test_a_finished_run_is_loaded_not_trained_again(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    first = train(tiles, QUICK, HEAD, tmp_path, features=features, progress=False)
    written = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    again = train(tiles, QUICK, HEAD, tmp_path, features=features, progress=False)
    assert same_weights(first, again)
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == written
    assert same_weights(first, load_model(tmp_path / "checkpoint.safetensors"))


@pytest.mark.parametrize("change", ["lr", "augmentation", "hidden", "tiles", "features"])
def test_going_on_with_other_settings_or_data_is_refused_by_name(
    change: str, tmp_path: Path
) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    train(tiles, QUICK, HEAD, tmp_path, features=features, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    config, model = QUICK, HEAD
    if change == "lr":
        config = replace(config, lr=0.5)
    elif change == "augmentation":
        config = replace(config, augmentation=NONE)
    elif change == "hidden":
        model = replace(model, hidden=33)
    elif change == "tiles":
        keep = np.arange(len(tiles)) != 5
        attrs, tiles, features = tiles.attrs, tiles[keep], features[keep]
        tiles.attrs = attrs
    else:
        features = features + 1
    says = {"tiles": "data sha256", "features": "data sha256"}.get(change, change)
    with pytest.raises(ConfigError, match=f"other settings.*{says}"):
        train(tiles, config, model, tmp_path, features=features, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_fits_no_pair_or_no_encoder_does_not_claim_the_folder(tmp_path: Path) -> None:
    tiles, features = some_tiles(), spatial_features(some_tiles())
    with pytest.raises(ConfigError, match="No tile has both a near partner"):
        train(tiles, replace(QUICK, far_tiles=99), HEAD, tmp_path, features=features)
    with pytest.raises(ConfigError, match="Fine-tuning starts"):
        train(tiles, QUICK, replace(PIXELS, trunk="finetune"), tmp_path, source=Painted())
    assert list(tmp_path.iterdir()) == []
    train(tiles, QUICK, HEAD, tmp_path, features=features, progress=False)


def test_the_data_of_a_run_are_known_by_the_digest_that_they_always_had(tmp_path: Path) -> None:
    """Of names, places and features, one after the other: else no older run could go on."""
    tiles = some_tiles(2, 9)
    features = np.arange(len(tiles) * 24, dtype=np.float32).reshape(-1, 24)
    views = [features[::-1], np.asfortranarray(features + 1)]
    config = replace(QUICK, steps=1)
    train(tiles, config, HEAD, tmp_path, features=features, views=views, progress=False)
    saved = json.loads((tmp_path / "config.json").read_text())
    data = "\n".join(tiles["slide_id"]).encode()
    data += tiles[["x", "y", "size"]].to_numpy(np.int64).tobytes()
    data += b"".join(each.tobytes() for each in (features, *views))
    assert saved["data"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert saved["data"]["sha256"].startswith("940ba0a4ad70ce00")


def test_training_holds_its_features_and_views_once_more_and_no_oftener(tmp_path: Path) -> None:
    tiles = some_tiles(3, 80)
    features = np.random.default_rng(0).random((len(tiles), 400), np.float32)
    views = [features, features]
    model = ModelConfig(arch="made up", feature_dim=400, hidden=8, descriptor_dim=4)
    tracemalloc.start()
    try:
        train(
            tiles, replace(QUICK, steps=1), model, tmp_path, features=features, views=views,
            device="cpu", progress=False,
        )  # fmt: skip
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.6 * 3 * features.nbytes


def test_how_often_to_save_and_log_may_change_when_going_on(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    whole = train(tiles, QUICK, HEAD, tmp_path / "whole", features=features, progress=False)
    train(tiles, QUICK, HEAD, tmp_path / "part", features=features, progress=False)
    (tmp_path / "part" / "checkpoint.safetensors").unlink()
    other = replace(QUICK, checkpoint_every=1, log_every=1)
    part = train(tiles, other, HEAD, tmp_path / "part", features=features, progress=False)
    assert same_weights(whole, part)


def test_a_damaged_state_is_refused_and_a_damaged_config_too(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)

    def run() -> SiameseNetwork:
        return train(tiles, QUICK, HEAD, tmp_path, features=features, progress=False)

    run()
    (tmp_path / "checkpoint.safetensors").unlink()
    state = tmp_path / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:1000])
    with pytest.raises(WeightsError, match="Cannot resume"):
        run()
    save_file({"network.centre": torch.zeros(3)}, state, {"step": "7"})
    with pytest.raises(WeightsError, match="Cannot resume"):
        run()
    state.write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        run()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        run()


def test_a_log_of_another_program_is_neither_added_to_nor_trimmed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ConfigError, match=r"holds log\.jsonl, but no config\.json"):
        claim(tmp_path, {"training": {"seed": 0}})
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert (tmp_path / "log.jsonl").read_text() == '{"mine": 1}\n'


def test_a_log_cut_in_a_line_is_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 4, "loss": 1.0}\n{"step": 8, "lo')
    assert read_log(tmp_path) == [{"step": 4, "loss": 1.0}]
    assert read_log(tmp_path / "nowhere") == []


# What it trains on.


def test_only_the_train_split_is_used_and_all_rows_if_there_is_no_split(tmp_path: Path) -> None:
    tiles = some_tiles()
    assert training_rows(tiles).tolist() == list(range(len(tiles)))
    tiles["split"] = np.where(tiles["slide_id"] == "s1", "test", "train")
    assert (tiles["slide_id"].iloc[training_rows(tiles)] != "s1").all()
    # Features of the test split could be anything: they are never seen.
    features = spatial_features(tiles)
    other = features.copy()
    other[tiles["split"] == "test"] = 1e6
    one, same = (
        train(tiles, QUICK, HEAD, tmp_path / str(i), features=each, progress=False)
        for i, each in enumerate((features, other))
    )
    assert same_weights(one, same)
    tiles["split"] = "test"
    with pytest.raises(ConfigError, match="No tile has the split `train`"):
        training_rows(tiles)


def test_labels_change_nothing(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    one = train(tiles, QUICK, HEAD, tmp_path / "a", features=features, progress=False)
    tiles["label"] = pd.array(np.arange(len(tiles)) % 2, dtype="Int8")
    other = train(tiles, QUICK, HEAD, tmp_path / "b", features=features, progress=False)
    assert same_weights(one, other)


def test_tiles_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    tiles = some_tiles(1, 9)
    config = replace(QUICK, steps=2, log_every=1, slides_per_batch=1, tiles_per_slide=40)
    source = Painted(broken=tuple(range(0, 81, 3)))
    whole = Batches(tiles, config, source)[0]
    batch = whole.without(whole.lost)
    assert (batch.positions % 3 > 0).all()
    assert batch.images is not None
    n = len(batch.positions)
    assert n + whole.lost.sum() == 40
    assert batch.images.shape[0] == batch.near.shape[0] == batch.far.shape[1] == n
    train(tiles, config, PIXELS, tmp_path / "a", source=source, progress=False)
    for line in read_log(tmp_path / "a"):
        assert 5 < line["unread_tiles"] < 25
        assert line["near_pairs"] > 0
    with pytest.raises(TileReadError, match="is broken"):
        train(
            tiles, config, PIXELS, tmp_path / "b", source=Painted(broken=tuple(range(81))),
            progress=False,
        )  # fmt: skip


def test_the_encoder_that_made_the_features_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    tiles = some_tiles(2, 10)
    encoder = random_encoder("resnet18", seed=2, input_px=32)
    features = encoder.encode(Painted().read(tiles))
    model = ModelConfig(arch="resnet18", hidden=16, input_px=32)
    train(tiles, QUICK, model, tmp_path, features=features, encoder=encoder, progress=False)
    assert load_model(tmp_path / "checkpoint.safetensors").config.encoder == encoder.provenance
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model"]["encoder"]["sha256"] == encoder.provenance["sha256"]


def test_a_collapsed_run_warns(tmp_path: Path) -> None:
    """Constant features cannot but collapse."""
    tiles = some_tiles()
    with pytest.warns(UserWarning, match="collapsed"):
        train(
            tiles, QUICK, replace(HEAD, dropout=0), tmp_path,
            features=np.ones((len(tiles), 24), np.float32), progress=False,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiles, QUICK, HEAD, tmp_path / "b", features=spatial_features(tiles), progress=False)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiles = some_tiles()
    features = spatial_features(tiles)
    nan = features.copy()
    nan[3, 3] = np.nan
    scratch = ModelConfig(arch="resnet18", trunk="scratch", input_px=32)
    cases: list[tuple[str, ModelConfig, dict[str, Any]]] = [
        ("pass `features`", HEAD, {}),
        (r"shape \(588, 23\)", HEAD, {"features": features[:, 1:]}),
        (r"shape \(587, 24\)", HEAD, {"features": features[1:]}),
        ("not finite", HEAD, {"features": nan}),
        ("pass `source`", scratch, {}),
        ("Leave out `features`", scratch, {"source": Painted(), "features": features}),
        ("Fine-tuning starts", replace(scratch, trunk="finetune"), {"source": Painted()}),
    ]
    for i, (says, model, given) in enumerate(cases):
        with pytest.raises(ConfigError, match=says):
            train(tiles, QUICK, model, tmp_path / str(i), progress=False, **given)


@pytest.mark.parametrize(
    "change", [{"pairs": "some"}, {"steps": 0}, {"lr": 0}, {"margin": -1}, {"warmup": 1}]
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(QUICK, **change)


@pytest.mark.parametrize(
    ("slides", "tiles", "twins", "left"),
    [
        (32, 2, 0.5, 1),
        (32, 3, 0.5, 1),
        (1, 1, 0.0, 1),
        (4, 2, 0.3, 1),
        (0, 8, 0.0, 8),
        (2, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("pairs", ["in-batch", "explicit"])
def test_batches_too_small_for_a_pair_are_refused_by_the_names_and_values_of_their_settings(
    slides: int, tiles: int, twins: float, left: int, pairs: Any
) -> None:
    says = (
        f"slides_per_batch {slides}, tiles_per_slide {tiles} and twins {twins:g} leave "
        f"{left} different tiles per slide"
    )
    with pytest.raises(ConfigError, match=says):
        replace(QUICK, slides_per_batch=slides, tiles_per_slide=tiles, twins=twins, pairs=pairs)


@pytest.mark.parametrize(("tiles", "twins"), [(4, 0.5), (2, 0.2), (16, 0.25), (7, 0.4)])
def test_twins_and_different_tiles_together_fill_the_places_of_a_slide(
    tiles: int, twins: float, tmp_path: Path
) -> None:
    table = some_tiles()
    config = replace(QUICK, slides_per_batch=3, tiles_per_slide=tiles, twins=twins)
    batch = Batches(table, config, None)[0]
    per_slide = table["slide_id"].iloc[batch.positions].value_counts()
    assert per_slide.tolist() == [config.different_tiles] * 3
    assert len(set(batch.positions)) == len(batch.positions)
    assert tiles - config.different_tiles == pytest.approx(twins * tiles, abs=0.5)


@pytest.mark.parametrize("trunk", ["finetune", "scratch", "frozen"])
def test_the_papers_preset_leaves_rate_steps_and_batch_to_the_trunk(trunk: Any) -> None:
    training, model = paper_preset(trunk)
    plain = default_config(trunk)
    assert model.trunk == trunk
    for name in ("lr", "steps", "slides_per_batch", "tiles_per_slide", "checkpoint_every"):
        assert getattr(training, name) == getattr(plain, name), name
    assert (training.near_tiles, training.far_tiles, training.pairs) == (8, 30, "explicit")


@pytest.mark.parametrize(("logs", "saves"), [(7, 3), (3, 7)])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(
    tmp_path: Path, logs: int, saves: int
) -> None:
    tiles = some_tiles()
    config = replace(QUICK, lr=1e30, warmup=0, steps=9, log_every=logs, checkpoint_every=saves)
    with pytest.raises(ConfigError, match=r"by step 3 .*Lower `lr`"):
        train(
            tiles, config, HEAD, tmp_path, features=spatial_features(tiles), progress=False
        )  # fmt: skip
    # Neither told nor kept.
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert not (tmp_path / "state.safetensors").exists()


def test_long_gradients_are_clipped(tmp_path: Path) -> None:
    tiles = some_tiles(1)
    features = spatial_features(tiles)
    tight, loose, looser = (
        train(
            tiles, replace(QUICK, clip=clip), HEAD, tmp_path / str(clip),
            features=features, progress=False,
        )
        for clip in (1e-3, 1e6, 1e9)
    )  # fmt: skip
    assert same_weights(loose, looser)
    assert not same_weights(tight, loose)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    config = TrainConfig(steps=200, warmup=0.1, lr=3e-3)
    rates = [learning_rate(step, config) for step in range(200)]
    assert np.argmax(rates) in (19, 20)
    assert max(rates) == 3e-3
    assert (np.diff(rates[:20]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert 0 < rates[-1] < 1e-6


def test_the_papers_settings_carry_how_each_is_known() -> None:
    training, model = paper_preset()
    assert PAPER["descriptor_dim"].standing == "stated"
    assert model.descriptor_dim == 128
    # 1792 px is second hand; 8 widths of a 224 px tile, which is unverified, say the same.
    assert PAPER["near_px"].value == PAPER["near_tiles"].value * PAPER["tile_px"].value
    # Two far thresholds are told; the preset takes the better founded.
    told = {name: PAPER[name] for name in ("far_px_of_reimplementation", "far_px")}
    assert told["far_px_of_reimplementation"].standing == "second hand"
    assert told["far_px"].standing == "unverified"
    far_px = training.far_tiles * PAPER["tile_px"].value
    assert far_px == told["far_px_of_reimplementation"].value
    assert PAPER["far_px"].value == PAPER["far_tiles"].value * PAPER["tile_px"].value
    assert {each.standing for each in PAPER.values()} == {"stated", "second hand", "unverified"}
    assert not {"margin", "lr", "steps"} & set(PAPER)
    assert training.slides_per_batch * training.tiles_per_slide <= 128  # they come as pixels
