"""ImageNet encoders: the baseline, the frozen trunk, and the start of fine-tuning.

A torchvision network with its classifier removed turns a tile into pooled features. Its weights
come from torchvision (downloaded once, checked against the hash in their name) or from a local
file. Where features come from is part of their meaning: an encoder carries a provenance that
travels with what it computed, so features of one encoder never meet a head trained on another's.
What this module does not do: pathology foundation models, and any file that needs pickle's code.
"""

import copy
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sslpath.backbones import (
    Precision,
    architecture,
    make_trunk,
    resolve_precision,
    start,
    tiles_at_a_time,
    without_more_outputs,
)
from sslpath.depths import Depths
from sslpath.errors import WeightsError
from sslpath.files import sha256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VERSION = "IMAGENET1K_V1"
# What must agree between the features a head was trained on and those it is given.
IDENTITY = ("arch", "sha256", "input_px")
PROBE_PX = 128  # side of the images on which a folded network is compared


def prepare(images: Tensor, input_px: int) -> Tensor:
    """Resize tiles (floats in 0..1) to ``input_px`` and normalise them as ImageNet was.

    Both directions are antialiased bilinear; tiles of the right size are not resampled.
    """
    if images.shape[-2:] != (input_px, input_px):
        images = F.interpolate(
            images, (input_px, input_px), mode="bilinear", align_corners=False, antialias=True
        )
    # Moved so that nobody waits for what a GPU still has to do.
    mean, std = (
        torch.tensor(three).to(images.device, non_blocking=True)[:, None, None]
        for three in (MEAN, STD)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Encoder:
    """A frozen network that turns tiles into features.

    Attributes:
        trunk: The network, in evaluation mode.
        folded: What computes the features: the same, its normalisations folded into its
            convolutions, which is faster.
        provenance: ``arch``, ``weights`` (a name), ``sha256`` of the weights, ``input_px``,
            ``precision``, and with :class:`sslpath.depths.Depths` their ``blocks``.
    """

    trunk: nn.Module
    folded: nn.Module
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """Architecture and weights, for tables."""
        return f"{self.provenance['arch']} ({self.provenance['weights']})"

    @property
    def arch(self) -> str:
        """The architecture."""
        return str(self.provenance["arch"])

    @property
    def input_px(self) -> int:
        """The side to which tiles are resized."""
        return int(self.provenance["input_px"])

    @property
    def dim(self) -> int:
        """Length of the features."""
        blocks = self.provenance.get("blocks")
        return sum(blocks) if blocks else architecture(self.arch).dim

    def encode(self, tiles: NDArray[np.uint8], batch: int | None = None) -> NDArray[np.float32]:
        """Compute the features of tiles.

        Args:
            tiles: uint8, shape ``(n, h, w, 3)``, RGB.
            batch: Tiles at a time; by default 32 on a CPU, where small batches stay in its cache,
                and 256 elsewhere.

        Returns:
            Shape ``(n, dim)``.
        """
        if batch is None:
            batch = tiles_at_a_time(self.device)
        result = np.empty((len(tiles), self.dim), np.float32)
        for first in range(0, len(tiles), batch):
            result[first : first + batch] = self._start(tiles[first : first + batch])()
        return result

    def start(self, tiles: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """As :meth:`encode`, but a GPU is only told to, tiles all at a time.

        See :func:`sslpath.backbones.start`: the features are what the returned function returns.
        """
        if self.device.type != "cpu":
            return self._start(tiles)
        made = self.encode(tiles)
        return lambda: made

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.folded.parameters()).device

    def _start(self, tiles: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        low = self.provenance["precision"] == "bfloat16"

        def network(images: Tensor) -> Tensor:
            images = prepare(images, self.input_px)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
                return cast("Tensor", self.folded(images))

        with torch.inference_mode():
            return start(network, tiles, self.device)


def load_imagenet(
    arch: str = "resnet50",
    weights: str | Path | None = None,
    input_px: int = 224,
    *,
    precision: Precision = "auto",
    device: str | torch.device = "cpu",
    depths: bool = False,
    url: str | None = None,
    progress: bool = True,
) -> Encoder:
    """Load an encoder trained on ImageNet.

    Args:
        arch: Any classifier of torchvision; see :func:`architecture`.
        weights: A local file, safetensors or a PyTorch state dict; None downloads torchvision's.
        input_px: Side to which tiles are resized before the network.
        precision: Number type; see :func:`resolve_precision`.
        device: Where to run it.
        depths: Features of every depth, not of the last layer only; for a frozen trunk. See
            :mod:`sslpath.depths`.
        url: Another address of torchvision's file, such as a mirror inside a hospital; its name
            must end in ``-<first digits of its SHA-256>.pth`` as torchvision's do.
        progress: Whether to draw a bar while downloading.

    Raises:
        WeightsError: If the weights cannot be downloaded or read, are damaged, or belong to
            another architecture.
        ConfigError: If the architecture is unknown.
    """
    trunk = make_trunk(arch)
    if weights is None:
        path, checksum = download_weights(arch, url, progress=progress)
        name = f"torchvision {path.stem}"
    else:
        path, checksum = Path(weights), None
        name = path.name
    _fill(trunk, arch, read_state(path), path)
    checksum = checksum or sha256(path)  # not before it was found to be readable
    return _encoder(trunk, arch, name, checksum, input_px, precision, device, depths)


def random_encoder(
    arch: str = "resnet50",
    seed: int = 0,
    input_px: int = 224,
    *,
    precision: Precision = "auto",
    device: str | torch.device = "cpu",
) -> Encoder:
    """An encoder with random weights: a baseline that shows what the architecture alone gives.

    The global random state of PyTorch is left as it was.

    Example:
        >>> encoder = random_encoder("resnet18", seed=0, input_px=32)
        >>> encoder.encode(np.zeros((2, 50, 50, 3), np.uint8)).shape
        (2, 512)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = make_trunk(arch)
    digest = hashlib.sha256()
    for tensor in trunk.state_dict().values():
        digest.update(tensor.numpy())
    name = f"random, seed {seed}"
    return _encoder(trunk, arch, name, digest.hexdigest(), input_px, precision, device)


def _encoder(
    trunk: nn.Module,
    arch: str,
    name: str,
    checksum: str,
    input_px: int,
    precision: Precision,
    device: str | torch.device,
    depths: bool = False,
) -> Encoder:
    trunk.eval().requires_grad_(False)
    both = [trunk, fold_normalisations(trunk)]
    if depths:
        both = [Depths(network) for network in both]
    trunk, folded = (network.to(device).to(memory_format=torch.channels_last) for network in both)
    dtype = str(resolve_precision(precision, arch, device)).removeprefix("torch.")
    provenance = {
        "arch": arch,
        "weights": name,
        "sha256": checksum,
        "input_px": input_px,
        "precision": dtype,
    }
    if isinstance(trunk, Depths):
        provenance["blocks"] = list(trunk.blocks)
    return Encoder(trunk, folded, provenance)


def fold_normalisations(trunk: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose batch normalisations are in its convolutions.

    They are taken to belong together where one follows the other in a module; a network that
    answers otherwise when it is folded so comes back as it is.
    """
    folded = copy.deepcopy(trunk)
    for module in list(folded.modules()):
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if conv.out_channels == norm.num_features:
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    # Drawn apart from PyTorch's global random state, which is the caller's.
    images = torch.randn(2, 3, PROBE_PX, PROBE_PX, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            before, after = trunk(images), folded(images)
    except (AssertionError, RuntimeError):  # of another size of image
        return trunk
    same = torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    return folded if same else trunk


def download_weights(
    arch: str, url: str | None = None, *, progress: bool = True
) -> tuple[Path, str]:
    """Fetch torchvision's ImageNet weights into PyTorch's cache, once, and check their hash.

    Returns:
        The file, and its SHA-256.

    Raises:
        WeightsError: If there is no connection or the hash differs.
    """
    classifier_weights = torchvision.models.get_model_weights(arch)
    # The first version is what publications compare with; a few networks have none.
    chosen = getattr(classifier_weights, VERSION, classifier_weights.DEFAULT)
    url = url or chosen.url
    name = Path(urlparse(url).path).name
    prefix = name.removesuffix(".pth").rpartition("-")[2]
    if len(prefix) < 8 or not set(prefix) <= set("0123456789abcdef"):
        raise WeightsError(f"{url} does not end in -<SHA-256>.pth, so nothing vouches for it.")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    remedy = (
        f"Pass a local file: `--imagenet-weights FILE --arch {arch}` (in Python "
        f"`load_imagenet({arch!r}, weights=FILE)`), a safetensors file or state dict of "
        f"torchvision's {arch}, for instance {url} fetched on another machine."
    )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), prefix, progress=progress)
        except (URLError, OSError) as error:
            raise WeightsError(f"Cannot download {url}: {error}. {remedy}") from error
        except RuntimeError as error:
            raise WeightsError(f"{url} is not what its name promises: {error}. {remedy}") from error
    checksum = sha256(path)
    if not checksum.startswith(prefix):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 does not start with {prefix}. Delete it."
        )
    return path, checksum


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, never running code from the file.

    Raises:
        WeightsError: If the file is missing, damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"No weights at {path}. Pass a file that exists.") from error
    except pickle.UnpicklingError as error:  # whose message advises to run the code
        raise WeightsError(
            f"{path} holds more than tensors; reading it could run code, so it was not read. "
            "Pass safetensors, or a PyTorch state dict that holds tensors only."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"Cannot read {path} as weights: {reason} "
            "Pass safetensors, or a PyTorch state dict that holds tensors only."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no state dict. Save `model.state_dict()` instead.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _fill(trunk: nn.Module, arch: str, state: dict[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``trunk``, its classifier dropped."""
    classifier = architecture(arch).classifier + "."
    kept = without_more_outputs(state)
    kept = {k: v for k, v in kept.items() if not k.startswith(classifier)}
    try:
        trunk.load_state_dict(kept)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} does not hold weights of {arch}: {reason} ... Name the right architecture."
        ) from error
    broken = [k for k, v in kept.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise WeightsError(f"{path} holds values that are not finite, in {broken[0]}.")


def check_provenance(expected: dict[str, Any], found: dict[str, Any], what: str) -> None:
    """Refuse features of another encoder than the one a head was trained on.

    Precision may differ: it changes features by rounding only.

    Raises:
        WeightsError: If architecture, weights or input size differ.
    """
    # What neither says agrees with nothing: descriptors of a run, say, are no features.
    wrong = [key for key in IDENTITY if key not in found or expected.get(key) != found[key]]
    # Features of the last layer alone have no blocks.
    wrong += ["blocks"] if expected.get("blocks") != found.get("blocks") else []
    if wrong:
        pairs = "; ".join(f"{k}: {found.get(k)!r}, not {expected.get(k)!r}" for k in wrong)
        raise WeightsError(
            f"{what} was trained on the features of another encoder ({pairs}). "
            "Compute the features with the encoder it was trained on."
        )
