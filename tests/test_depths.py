"""Features of several depths: which blocks, what is pooled, and how a head weighs them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslpath import training
from sslpath.augment import NONE
from sslpath.backbones import make_trunk
from sslpath.depths import Depths
from sslpath.descriptors import read_descriptors
from sslpath.embed import embed_views
from sslpath.errors import ConfigError, WeightsError
from sslpath.imagenet import check_provenance, load_imagenet
from sslpath.model import ModelConfig, SiameseNetwork, load_model, save_model, whole
from sslpath.runs import read_log
from sslpath.settings import TrainConfig
from sslpath.table import make_table
from sslpath.training import _drawn_twins, _drawn_views, train


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Depths(make_trunk("mobilenet_v2"))


@pytest.mark.parametrize(
    ("arch", "taps", "blocks"),
    [
        ("mobilenet_v2", ("1", "3", "6", "13"), (6, 32, 48, 64, 192, 1280)),
        ("resnet50", ("relu", "layer1", "layer2", "layer3"), (6, 128, 512, 1024, 2048, 2048)),
        ("efficientnet_b0", ("1", "2", "3", "5"), (6, 32, 48, 80, 224, 1280)),
    ],
)
def test_one_block_of_each_size_is_tapped(arch, taps, blocks):
    made = Depths(make_trunk(arch))
    assert made.taps == taps
    assert made.blocks == blocks


@pytest.mark.parametrize("arch", ["vit_b_16", "swin_t"])
def test_networks_without_maps_are_refused_by_name(arch):
    with pytest.raises(ConfigError, match="no maps of features to pool; use it without depths"):
        Depths(make_trunk(arch))


def test_parts_are_the_pooled_pixels_the_blocks_and_what_the_trunk_says(network):
    images = torch.rand(3, 3, 96, 96)
    with torch.inference_mode():
        parts = network(images).split(network.blocks, dim=1)
        own = network.trunk(images)
        x = images
        for block in network.trunk.features[:4]:
            x = block(x)
    assert torch.allclose(parts[0][:, :3], images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(parts[0][:, 3:], images.std((2, 3)), atol=1e-6)
    assert torch.allclose(parts[2], torch.cat([x.mean((2, 3)), x.std((2, 3))], 1), atol=1e-4)
    assert torch.allclose(parts[-1], own, atol=1e-5)


def test_nothing_is_kept_between_batches(network):
    with torch.inference_mode():
        first = network(torch.rand(2, 3, 64, 64))
        network(torch.rand(1, 3, 96, 96))
    assert network._seen == []
    assert first.shape == (2, sum(network.blocks))


def head_of(blocks):
    about = {"arch": "any", "sha256": "0", "input_px": 224, "blocks": list(blocks)}
    return SiameseNetwork(ModelConfig(arch="any", feature_dim=sum(blocks), encoder=about))


def test_each_depth_is_equally_loud_however_long_and_large():
    rng = np.random.default_rng(0)
    blocks = (6, 40, 200)
    x = np.hstack(
        [rng.normal(3, s, (500, n)) for s, n in zip((0.01, 5.0, 300.0), blocks, strict=True)]
    )
    head = head_of(blocks)
    head.fit_scale(torch.from_numpy(x.astype(np.float32)))
    scaled = (torch.from_numpy(x.astype(np.float32)) - head.centre) / head.scale
    energy = [part.square().sum(dim=1).mean().item() for part in scaled.split(blocks, dim=1)]
    assert energy == pytest.approx([sum(blocks) / 3] * 3, rel=0.01)
    assert scaled.square().mean().item() == pytest.approx(1, rel=0.01)


def test_a_feature_that_never_changes_says_nothing():
    x = torch.randn(50, 8)
    x[:, 2] = 4.0
    head = head_of((3, 5))
    head.fit_scale(x)
    scaled = (x + 100 - head.centre) / head.scale
    assert scaled[:, 2].abs().max() == 0
    assert torch.isfinite(scaled).all()


def test_a_head_on_depths_survives_the_file(tmp_path):
    head = head_of((3, 5)).eval()
    head.fit_scale(torch.randn(50, 8))
    save_model(head, tmp_path / "head.safetensors")
    again = load_model(tmp_path / "head.safetensors")
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert np.array_equal(head.encode(x), again.encode(x))


def test_blocks_that_do_not_fit_are_refused():
    about = {"blocks": [3, 5]}
    with pytest.raises(ConfigError, match="add up to 8 features"):
        SiameseNetwork(ModelConfig(arch="any", feature_dim=9, encoder=about))


def test_features_of_the_last_layer_never_meet_a_head_on_depths():
    about = {"arch": "resnet18", "sha256": "0", "input_px": 64}
    check_provenance(about, dict(about), "run")
    with pytest.raises(WeightsError, match="blocks"):
        check_provenance({**about, "blocks": [3, 5]}, about, "run")
    with pytest.raises(WeightsError, match="blocks"):
        check_provenance(about, {**about, "blocks": [3, 5]}, "run")


def test_an_encoder_with_depths_ends_in_the_features_without(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(make_trunk("resnet18").state_dict(), path)
    plain = load_imagenet("resnet18", path, 64, precision="float32")
    deep = load_imagenet("resnet18", path, 64, precision="float32", depths=True)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 50, 50, 3), dtype=np.uint8)
    found = deep.encode(tiles)
    assert found.shape == (3, deep.dim) == (3, 1542)
    assert np.allclose(found[:, -512:], plain.encode(tiles), atol=1e-4)
    assert deep.provenance["blocks"] == [6, 128, 128, 256, 512, 512]


def views_run(tmp_path, name, views, steps=6, **settings):
    """Train a small head, features 0 for tiles as they are and 1, 2 ... for their views."""
    rng = np.random.default_rng(0)
    tiles = make_table(
        {"slide_id": np.repeat(["a", "b"], 60), "x": np.tile(np.arange(60) * 50, 2), "y": 0,
         "size": 50, "slide_mpp": 4.0}, mpp=4.0, tile_px=50, source={},
    )  # fmt: skip
    features = rng.normal(size=(120, 12)).astype(np.float32)
    config = TrainConfig(
        steps=steps, checkpoint_every=2, log_every=2, near_tiles=3, far_tiles=9, **settings
    )
    model = ModelConfig(arch="any", feature_dim=12)
    return train(
        tiles, config, model, tmp_path / name, features=features,
        views=[features + k for k in range(1, views + 1)], device="cpu", progress=False,
    )  # fmt: skip


def test_half_of_the_tiles_come_as_they_are_and_the_others_as_any_view():
    none = torch.empty(0, dtype=torch.long)
    which = _drawn_views(5, 8000, none, torch.Generator().manual_seed(0))
    counts = np.bincount(which.numpy(), minlength=5)
    assert abs(counts[0] - 4000) < 150
    assert all(abs(each - 1000) < 120 for each in counts[1:])
    assert not _drawn_views(1, 10, none, torch.Generator()).any()


@pytest.mark.parametrize("views", [2, 3, 5])
def test_a_twin_is_another_view_of_its_tile(views):
    generator = torch.Generator().manual_seed(0)
    twins = _drawn_twins(800, 0.2, generator)
    assert len(set(twins.tolist())) == 200  # a fifth of 1,000 places
    assert twins.max() < 800
    which = _drawn_views(views, 800, twins, generator)
    assert which.shape == (1000,)
    assert set(which.tolist()) == set(range(views))
    assert (which[800:] != which[twins]).all()
    assert not len(_drawn_twins(800, 0, generator))


def test_twins_bring_the_views_of_a_tile_together(tmp_path):
    x = np.random.default_rng(1).normal(size=(200, 12)).astype(np.float32)
    apart = {}
    for share in (0.0, 0.4):
        settings = {"steps": 60, "lr": 3e-3, "twins": share, "twin_weight": 1.0}
        network = views_run(tmp_path, f"twins {share}", 2, **settings)
        a, b = (network.encode(each) for each in (x, x + 2))
        apart[share] = np.square(a - b).sum(axis=1).mean()
    assert apart[0.4] < 0.6 * apart[0.0]


def test_twins_share_a_batch_with_others_and_need_views(tmp_path):
    views_run(tmp_path, "twins", 1, twins=0.25, tiles_per_slide=40)
    line = read_log(tmp_path / "twins")[0]
    # Two slides, each 30 tiles and 10 of them again: more pairs than 30 tiles have, no more places.
    views_run(tmp_path, "plain", 1, tiles_per_slide=30)
    assert line["near_pairs"] > read_log(tmp_path / "plain")[0]["near_pairs"]
    with pytest.raises(ConfigError, match="pass `views`"):
        views_run(tmp_path, "none", 0, twins=0.25)
    with pytest.raises(ConfigError, match="twins"):
        TrainConfig(twins=0.6)


def test_views_are_learned_from_and_an_interrupted_run_ends_the_same(tmp_path, monkeypatch):
    with_views = views_run(tmp_path, "views", 2, twins=0.2).state_dict()
    without = views_run(tmp_path, "none", 0).state_dict()
    assert not torch.equal(with_views["centre"], without["centre"])
    assert not torch.equal(with_views["head.0.weight"], without["head.0.weight"])

    # Killed before the last step of six: what is left is the state of step 4.
    def killed(run, line):
        if line["step"] == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "append_log", killed)
        with pytest.raises(KeyboardInterrupt):
            views_run(tmp_path, "killed", 2, twins=0.2)
    again = views_run(tmp_path, "killed", 2, twins=0.2).state_dict()
    assert all(torch.equal(with_views[key], again[key]) for key in again)
    with pytest.raises(ConfigError, match="other settings"):
        views_run(tmp_path, "views", 1, twins=0.2)


def test_views_that_do_not_fit_are_refused(tmp_path):
    tiles = make_table(
        {"slide_id": "a", "x": np.arange(4) * 50, "y": 0, "size": 50, "slide_mpp": 4.0},
        mpp=4.0, tile_px=50, source={},
    )  # fmt: skip
    x = np.zeros((4, 12), np.float32)
    model = ModelConfig(arch="any", feature_dim=12)
    with pytest.raises(ConfigError, match=r"shape \(3, 12\)"):
        train(tiles, TrainConfig(), model, tmp_path, features=x, views=[x[:3]])
    scratch = ModelConfig(arch="resnet18", trunk="scratch")
    with pytest.raises(ConfigError, match="augments tiles as it learns"):
        train(tiles, TrainConfig(), scratch, tmp_path, source=object(), views=[x])


def test_a_view_of_a_tile_is_seen_through_the_augmentation_and_comes_again(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet18.pth"
    torch.save(make_trunk("resnet18").state_dict(), path)
    encoder = load_imagenet("resnet18", path, 64, precision="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 50, 50, 3), dtype=np.uint8)
    tiles = make_table(
        {"slide_id": "a", "x": np.arange(6) * 50, "y": 0, "size": 50, "slide_mpp": 4.0},
        mpp=4.0, tile_px=50, source={},
    )  # fmt: skip
    source = SimpleNamespace(read=lambda rows: pixels[rows["x"].to_numpy() // 50])
    found = {}
    for name, settings in {
        "as it is": {"augmentation": NONE}, "0": {}, "again": {}, "1": {"seed": 1},
    }.items():  # fmt: skip
        failed = embed_views(tiles, source, encoder, tmp_path / name, progress=False, **settings)
        assert not len(failed)
        found[name] = read_descriptors(tmp_path / name, tiles)
    assert np.allclose(found["as it is"], encoder.encode(pixels), atol=1e-5)
    assert np.array_equal(found["0"], found["again"])
    assert not np.allclose(found["0"], found["1"])
    assert not np.allclose(found["0"], found["as it is"])


@pytest.mark.parametrize("depths", [False, True])
def test_a_whole_network_says_of_pixels_what_encoder_and_head_say_in_turn(tmp_path, depths):
    torch.manual_seed(0)
    path = tmp_path / "mobilenet_v2.pth"
    torch.save(make_trunk("mobilenet_v2").state_dict(), path)
    encoder = load_imagenet("mobilenet_v2", path, 64, precision="float32", depths=depths)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 50, 50, 3), dtype=np.uint8)
    features = encoder.encode(pixels)
    config = ModelConfig(
        arch="mobilenet_v2", feature_dim=encoder.dim, input_px=64,
        encoder=encoder.provenance,
    )  # fmt: skip
    head = SiameseNetwork(config).eval()
    head.fit_scale(torch.from_numpy(features))
    one = whole(head, encoder)
    assert np.allclose(one.encode(pixels), head.encode(features), atol=1e-5)
    save_model(one, tmp_path / "whole.safetensors")
    again = load_model(tmp_path / "whole.safetensors")
    assert np.array_equal(again.encode(pixels), one.encode(pixels))
    save_model(one, tmp_path / "small.safetensors", small=True)
    small = load_model(tmp_path / "small.safetensors")
    # These weights are random; trained ones stay closer, see data/results/shipped.json.
    assert (small.encode(pixels) * one.encode(pixels)).sum(axis=1).min() > 0.95
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.4 * sizes[1]
    for key, value in one.trunk.state_dict().items():
        if value.is_floating_point() and value.ndim > 1:
            largest = value.flatten(1).abs().amax(dim=1).reshape(-1, 1)
            wrong = (small.trunk.state_dict()[key] - value).flatten(1).abs()
            assert (wrong <= largest / 127 / 2 * 1.001).all(), key
    other = load_imagenet("mobilenet_v2", path, 32, precision="float32", depths=depths)
    with pytest.raises(WeightsError, match="another encoder"):
        whole(head, other)
    if depths:
        assert sizes[0] < 5_000_000


def test_weights_that_do_not_fit_into_16_bits_are_refused(tmp_path):
    head = SiameseNetwork(ModelConfig(arch="any", feature_dim=4))
    with torch.no_grad():
        head.head[0].weight[0, 0] = 1e6
    with pytest.raises(WeightsError, match="16 bits"):
        save_model(head, tmp_path / "head.safetensors", small=True)
    assert not (tmp_path / "head.safetensors").exists()


def test_the_scale_of_a_large_data_set_is_found_part_by_part():
    x = torch.randn(70_000, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    head = head_of((3, 5))
    head.fit_scale(x)
    assert torch.allclose(head.centre, x.mean(dim=0), atol=1e-5)
    share = torch.tensor([3 * 2 / 8] * 3 + [5 * 2 / 8] * 5).sqrt()
    assert torch.allclose(head.scale, x.std(dim=0) * share, rtol=1e-5)
