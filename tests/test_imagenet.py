"""ImageNet encoders: real weights on real images, downloads from a server here, hostile files."""

import http.server
import pickle
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslpath import imagenet
from sslpath.backbones import architecture, make_trunk, resolve_precision
from sslpath.errors import ConfigError, WeightsError
from sslpath.files import sha256
from sslpath.imagenet import (
    Encoder,
    check_provenance,
    load_imagenet,
    prepare,
    random_encoder,
)


def some_tiles(n: int = 5, side: int = 40, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=(n, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A whole state dict of torchvision's resnet18, classifier included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torchvision.models.resnet18().state_dict()


@pytest.fixture
def weights(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "resnet18.safetensors"
    save_file(state, path)
    return path


FAMILIES = ("resnet18", "mobilenet_v2", "densenet121", "convnext_tiny", "regnet_y_400mf")


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_trunk_of_every_architecture_has_the_length_it_claims(arch: str) -> None:
    trunk = make_trunk(arch).eval()
    with torch.inference_mode():
        assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, architecture(arch).dim)
    url = torchvision.models.get_model_weights(arch)[imagenet.VERSION].url
    assert url.endswith(".pth")


@pytest.mark.slow
def test_weights_of_googlenet_are_read_without_the_classifiers_of_earlier_layers(
    tmp_path: Path,
) -> None:
    network = torchvision.models.googlenet(init_weights=False, aux_logits=True).eval()
    save_file(network.state_dict(), tmp_path / "g.safetensors")
    encoder = load_imagenet("googlenet", tmp_path / "g.safetensors", 64, precision="float32")
    pooled: list[Tensor] = []
    network.dropout.register_forward_hook(lambda *args: pooled.append(args[2]))
    tiles = some_tiles(2, 64)
    with torch.inference_mode():
        network(imagenet.prepare(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255, 64))
    np.testing.assert_allclose(encoder.encode(tiles), pooled[0].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", FAMILIES)
def test_normalisations_are_folded_without_a_change_of_features(arch: str) -> None:
    trunk = make_trunk(arch).eval()
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    folded = imagenet.fold_normalisations(trunk)
    left = [
        sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
        for network in (trunk, folded)
    ]
    assert left[1] < left[0] or left == [0, 0]  # ConvNeXt has none
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        expected = trunk(images)
        assert torch.allclose(folded(images), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_network_whose_normalisation_is_not_of_the_convolution_before_it_stays() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x)).relu().mean(dim=(2, 3))

    network = Odd().eval()
    assert imagenet.fold_normalisations(network) is network


@pytest.mark.parametrize(("side", "tolerance"), [(64, 1e-5), (80, 0.03)])
def test_features_are_those_of_torchvision_itself(
    side: int, tolerance: float, weights: Path, state: dict[str, Tensor]
) -> None:
    """The oracle resizes with Pillow and takes the pooled layer out of the whole network."""
    tiles = some_tiles(3, side)
    encoder = load_imagenet("resnet18", weights, input_px=64, precision="float32")
    network = torchvision.models.resnet18().eval()
    network.load_state_dict(state)
    pooled: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda *args: pooled.append(args[2].flatten(1)))
    to_tensor = torchvision.transforms.Compose([
        torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    resized = [Image.fromarray(tile).resize((64, 64), Image.Resampling.BILINEAR) for tile in tiles]
    with torch.inference_mode():
        network(torch.stack([to_tensor(image) for image in resized]))
    found, expected = encoder.encode(tiles), pooled[0].numpy()
    # Pillow rounds a resized tile to whole grey levels, we do not.
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    assert found.dtype == np.float32


def test_a_checkerboard_shrinks_to_grey_because_resizing_is_antialiased() -> None:
    board = torch.from_numpy((np.indices((128, 128)).sum(0) % 2).astype(np.float32))
    images = board.expand(1, 3, 128, 128)
    mean = torch.tensor(imagenet.MEAN)[:, None, None]
    std = torch.tensor(imagenet.STD)[:, None, None]
    small = prepare(images, 32) * std + mean
    assert (small - 0.5).abs().max() < 0.05


def test_tiles_of_the_right_size_are_only_normalised() -> None:
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(imagenet.MEAN), torch.tensor(imagenet.STD)
    expected = (images - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(prepare(images, 32), expected)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_features_are_the_same_each_time_and_whatever_the_batch(arch: str) -> None:
    encoder = random_encoder(arch, seed=3, input_px=64)
    tiles = some_tiles(7)
    first = encoder.encode(tiles)
    np.testing.assert_array_equal(first, encoder.encode(tiles))
    np.testing.assert_array_equal(first, encoder.start(tiles)())
    np.testing.assert_array_equal(first, random_encoder(arch, seed=3, input_px=64).encode(tiles))
    size = np.abs(first).max()
    tolerance = size * (0.02 if encoder.provenance["precision"] == "bfloat16" else 1e-4)
    np.testing.assert_allclose(first, encoder.encode(tiles, batch=2), atol=tolerance)
    # Depthwise networks shrink random features to 1e-9: compare by their own size.
    other = random_encoder(arch, seed=4, input_px=64).encode(tiles)
    assert not np.allclose(first / size, other / size, atol=0.01)


def test_a_random_encoder_says_so_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    encoder = random_encoder("resnet18", seed=5, input_px=32)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.provenance["weights"] == "random, seed 5"
    other = random_encoder("resnet18", seed=6, input_px=32)
    assert encoder.provenance["sha256"] != other.provenance["sha256"]
    assert not any(p.requires_grad for p in encoder.trunk.parameters())
    assert not encoder.trunk.training


def test_an_encoder_knows_its_architecture_weights_and_size(weights: Path) -> None:
    encoder = load_imagenet("resnet18", weights, input_px=96)
    assert (encoder.arch, encoder.dim, encoder.input_px) == ("resnet18", 512, 96)
    assert encoder.name == "resnet18 (resnet18.safetensors)"
    assert encoder.provenance["sha256"] == sha256(weights)
    assert encoder.provenance["precision"] in ("float32", "bfloat16")


def test_depthwise_networks_stay_in_float32_on_a_cpu_and_a_choice_is_obeyed() -> None:
    assert resolve_precision("auto", "mobilenet_v2") == torch.float32
    assert resolve_precision("bfloat16", "mobilenet_v2") == torch.bfloat16
    assert resolve_precision("float32", "resnet50") == torch.float32
    tiles = some_tiles(2)
    low, high = (
        random_encoder("resnet18", input_px=64, precision=p).encode(tiles)
        for p in ("bfloat16", "float32")
    )
    assert not np.array_equal(low, high)
    assert np.abs(low - high).max() < 0.05 * np.abs(high).max()


def test_safetensors_pth_and_wrapped_state_dicts_hold_the_same_weights(
    weights: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "plain.pth")
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(headless, tmp_path / "headless.pth")
    expected = load_imagenet("resnet18", weights, 32).encode(some_tiles())
    for name in ("plain.pth", "wrapped.pth", "headless.pth"):
        found = load_imagenet("resnet18", tmp_path / name, 32).encode(some_tiles())
        np.testing.assert_array_equal(found, expected)


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["pickle", "torch", "torch legacy", "renamed"])
def test_code_in_a_weights_file_is_refused_and_never_run(
    form: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    sign = tmp_path / "it ran"
    path = tmp_path / ("w.safetensors" if form == "renamed" else "w.pth")
    if form in ("pickle", "renamed"):
        path.write_bytes(pickle.dumps(Evil(sign)))
    else:
        torch.save(
            state | {"evil": Evil(sign)}, path, _use_new_zipfile_serialization=form == "torch"
        )
    with pytest.raises(WeightsError, match="tensors only"):
        load_imagenet("resnet18", path)
    assert not sign.exists()


def test_weights_of_another_architecture_are_refused(weights: Path) -> None:
    for arch in ("resnet34", "resnet50", "mobilenet_v2"):
        with pytest.raises(WeightsError, match=f"does not hold weights of {arch}"):
            load_imagenet(arch, weights)


def test_an_unknown_architecture_is_refused_with_a_likely_one() -> None:
    with pytest.raises(ConfigError, match="did you mean resnet"):
        load_imagenet("resnet51")


def test_missing_empty_cut_and_foreign_files_are_refused(
    weights: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="No weights at"):
        load_imagenet("resnet18", tmp_path / "none.pth")
    pth = tmp_path / "whole.pth"
    torch.save(state, pth)
    for whole in (weights, pth):
        for size in (0, 1, 1000, whole.stat().st_size // 2):
            cut = tmp_path / f"cut{whole.suffix}"
            cut.write_bytes(whole.read_bytes()[:size])
            with pytest.raises(WeightsError, match=f"cut{whole.suffix}"):
                load_imagenet("resnet18", cut)
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    for name in ("text.pth", "list.pth", "numbers.pth"):
        with pytest.raises(WeightsError, match=name):
            load_imagenet("resnet18", tmp_path / name)


def test_weights_that_are_not_numbers_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    broken = {k: v.clone() for k, v in state.items()}
    broken["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(broken, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=r"not finite, in layer1\.0\.conv1\.weight"):
        load_imagenet("resnet18", tmp_path / "nan.safetensors")


def test_input_that_is_no_tile_is_refused() -> None:
    encoder = random_encoder("resnet18", input_px=32)
    for wrong in (np.zeros((2, 9, 9, 3)), np.zeros((2, 3, 9, 9), np.uint8)):
        with pytest.raises(ConfigError, match="uint8"):
            encoder.encode(wrong)  # type: ignore[arg-type]


def test_features_of_another_encoder_are_refused_but_other_precision_is_not() -> None:
    one = random_encoder("resnet18", seed=1, input_px=32).provenance
    check_provenance(one, one | {"precision": "float64", "weights": "renamed"}, "The head")
    for change in ({"arch": "resnet34"}, {"sha256": "0" * 64}, {"input_px": 64}):
        with pytest.raises(WeightsError, match="The head was trained on the features of another"):
            check_provenance(one, one | change, "The head")


# Downloads: torchvision's official path, from a server on this machine.


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of PyTorch's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def publish(state: dict[str, Tensor], folder: Path) -> str:
    """Save weights under the name torchvision gives its files: ``-<8 digits of SHA-256>.pth``."""
    torch.save(state, folder / "new.pth")
    name = f"resnet18-{sha256(folder / 'new.pth')[:8]}.pth"
    (folder / "new.pth").rename(folder / name)
    return name


def test_weights_are_downloaded_once_checked_and_kept(
    served: tuple[str, Path], cache: Path, state: dict[str, Tensor], weights: Path
) -> None:
    address, folder = served
    name = publish(state, folder)
    url = f"{address}/{name}"
    encoder = load_imagenet("resnet18", url=url, input_px=32, progress=False)
    assert encoder.provenance["weights"] == "torchvision " + name.removesuffix(".pth")
    assert encoder.provenance["sha256"] == sha256(folder / name)
    expected = load_imagenet("resnet18", weights, 32).encode(some_tiles())
    np.testing.assert_array_equal(encoder.encode(some_tiles()), expected)
    (folder / name).unlink()  # from now on only the cache can answer
    again = load_imagenet("resnet18", url=url, input_px=32, progress=False)
    np.testing.assert_array_equal(again.encode(some_tiles()), expected)
    assert [path.name for path in cache.iterdir()] == [name]


def test_weights_in_the_cache_are_read_no_oftener_than_a_local_file(
    served: tuple[str, Path], cache: Path, state: dict[str, Tensor]
) -> None:
    """Once for the weights, once for the hash, which checks them and names them."""
    address, folder = served
    name = publish(state, folder)
    load_imagenet("resnet18", url=f"{address}/{name}", progress=False)
    opened: list[str] = []
    watching = True

    def watch(event: str, given: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(given[0], (str, Path)):
            opened.append(Path(given[0]).name)

    sys.addaudithook(watch)  # for good: there is no way to take one away
    load_imagenet("resnet18", folder / name, progress=False)
    local, opened[:] = opened.count(name), []
    load_imagenet("resnet18", url=f"{address}/{name}", progress=False)
    watching = False
    assert opened.count(name) == local > 0


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(
    served: tuple[str, Path], cache: Path, state: dict[str, Tensor]
) -> None:
    address, folder = served
    name = publish(state, folder)
    wrong = name.replace(name[9:17], "0123abcd")
    shutil.copy(folder / name, folder / wrong)
    with pytest.raises(WeightsError, match="not what its name promises"):
        load_imagenet("resnet18", url=f"{address}/{wrong}", progress=False)
    assert list(cache.iterdir()) == []


def test_a_cached_file_that_was_damaged_is_refused(
    served: tuple[str, Path], cache: Path, state: dict[str, Tensor]
) -> None:
    address, folder = served
    name = publish(state, folder)
    load_imagenet("resnet18", url=f"{address}/{name}", progress=False)
    with (cache / name).open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(WeightsError, match="is damaged"):
        load_imagenet("resnet18", url=f"{address}/{name}", progress=False)


def test_without_a_connection_the_error_says_how_to_pass_a_local_file(cache: Path) -> None:
    for url in (
        "http://127.0.0.1:9/resnet18-f37072fd.pth",
        "http://name.invalid/resnet18-f37072fd.pth",
    ):
        with pytest.raises(WeightsError) as caught:
            load_imagenet("resnet18", url=url, progress=False)
        assert "--imagenet-weights FILE --arch resnet18" in str(caught.value)
        assert "load_imagenet('resnet18', weights=FILE)" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_file_the_server_does_not_have_is_an_error_with_the_remedy(
    served: tuple[str, Path], cache: Path
) -> None:
    with pytest.raises(WeightsError, match=r"404.*--imagenet-weights"):
        load_imagenet("resnet18", url=f"{served[0]}/resnet18-f37072fd.pth", progress=False)


def test_a_name_without_a_hash_is_refused_before_anything_is_fetched(cache: Path) -> None:
    with pytest.raises(WeightsError, match="nothing vouches for it"):
        load_imagenet("resnet18", url="http://127.0.0.1:9/resnet18.pth")


# The lent weights: a real ImageNet network.


def test_lent_weights_tell_tissue_tiles_apart_that_random_weights_hardly_do(shared: Path) -> None:
    archive = zipfile.ZipFile(shared / "real" / "idc" / "IDC_regular_ps50_idx5_sample.zip")
    names = [name for name in archive.namelist() if name.endswith(".png")][::300]
    images = [Image.open(archive.open(name)).convert("RGB") for name in names]
    tiles = np.stack([np.asarray(image) for image in images if image.size == (50, 50)])
    path = shared / "weights" / "mobilenet_v2_imagenet.safetensors"

    def mean_cosine(encoder: Encoder) -> float:
        features = encoder.encode(tiles)
        assert features.shape == (len(tiles), 1280)
        assert np.isfinite(features).all()
        z = features / np.linalg.norm(features, axis=1, keepdims=True)
        return float((z @ z.T)[np.triu_indices(len(z), 1)].mean())

    assert 0.3 < mean_cosine(load_imagenet("mobilenet_v2", path, input_px=96)) < 0.9
    assert mean_cosine(random_encoder("mobilenet_v2", input_px=96)) > 0.95


def test_lent_weights_fill_every_tensor_of_the_trunk(shared: Path) -> None:
    path = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    encoder = load_imagenet("mobilenet_v2", path)
    stored = load_file(path)
    for key, value in encoder.trunk.state_dict().items():
        assert torch.equal(value, stored[key]), key
