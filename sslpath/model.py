"""The method: a siamese network, the contrastive loss, and how to see whether it collapsed.

Both tiles of a pair go through one network: a trunk turns a tile into features, a small head turns
features into a descriptor of unit length. The loss pulls the descriptors of near tiles together and
pushes those of far tiles apart, up to a margin.

The trunk can be *frozen* (the network is the head alone and takes features computed once by an
ImageNet encoder), *finetune* (a trunk that starts from ImageNet weights and learns along) or
*scratch* (a trunk that starts from random weights).
What this module does not do: the training loop, momentum encoders, projection heads that are thrown
away after training.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslpath.backbones import (
    architecture,
    compiled,
    compiled_for_any_length,
    make_trunk,
    resolve_precision,
    start,
    tiles_at_a_time,
    without_more_outputs,
)
from sslpath.depths import Depths
from sslpath.errors import ConfigError, WeightsError
from sslpath.files import atomic_path
from sslpath.imagenet import Encoder, check_provenance, prepare
from sslpath.runs import CHECKPOINT, STATE

HEADER = "sslpath_model"
ROWS = ".rows"  # ends the name of the scales of a matrix in 8 bits
FEATURES = 16_384  # rows of features that go through a head at a time
PART_NUMBERS = 2**27  # of a part of the features in 64 bits: 1 GB
Trunk = Literal["frozen", "finetune", "scratch"]


@dataclass(frozen=True)
class ModelConfig:
    """What a network is made of.

    Attributes:
        arch: Architecture of the trunk, any classifier of torchvision; with a frozen
            trunk, a name only.
        trunk: ``frozen``, ``finetune`` or ``scratch``.
        feature_dim: Length of the trunk's features; 0 takes it from ``arch``.
        descriptor_dim: Length of the descriptor; 128 in the paper (stated).
        hidden: Width of the head's hidden layer.
        dropout: Share of the hidden layer that is dropped while training.
        input_px: Side to which tiles are resized.
        encoder: Provenance of the features (frozen) or of the starting weights (finetune); see
            :class:`sslpath.imagenet.Encoder`.
    """

    arch: str = "resnet50"
    trunk: Trunk = "frozen"
    feature_dim: int = 0
    descriptor_dim: int = 128
    hidden: int = 512
    dropout: float = 0.0
    input_px: int = 224
    encoder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trunk not in ("frozen", "finetune", "scratch"):
            raise ConfigError(
                f"Unknown trunk {self.trunk!r}; choose `frozen`, `finetune` or `scratch`."
            )
        if not self.feature_dim:
            object.__setattr__(self, "feature_dim", architecture(self.arch).dim)
        blocks = self.encoder.get("blocks")
        if self.trunk != "frozen" and not blocks:
            dim = architecture(self.arch).dim
            if self.feature_dim != dim:
                raise ConfigError(f"{self.arch} has {dim} features, not {self.feature_dim}.")
        if min(self.feature_dim, self.descriptor_dim, self.hidden, self.input_px) < 1:
            raise ConfigError(f"Lengths and sizes must be at least 1: {self}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in 0..1 (1 excluded), not {self.dropout}.")


class SiameseNetwork(nn.Module):
    """Trunk and head; the same weights for both sides of a pair.

    The head is a hidden layer with batch normalisation, ReLU and dropout, and a linear layer to the
    descriptor. It always computes in float32.

    Example:
        >>> network = SiameseNetwork(ModelConfig(feature_dim=8, arch="mine")).eval()
        >>> descriptors = network(torch.randn(5, 8))
        >>> descriptors.shape, bool(torch.allclose(descriptors.norm(dim=1), torch.ones(5)))
        (torch.Size([5, 128]), True)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = None if config.trunk == "frozen" else make_trunk(config.arch)
        self.compiled = False  # whether PyTorch compiles what turns tiles into features
        # Fewest and most tiles in a batch, as far as known: for what is compiled.
        self.batch_sizes = (0, 0)
        if self.trunk is not None:
            self.trunk.to(memory_format=torch.channels_last)
        d = config.feature_dim
        self.register_buffer("centre", torch.zeros(d))
        # One scale for all features, or one for each where they come from several depths.
        self.blocks = list(config.encoder.get("blocks") or [])
        if self.blocks and sum(self.blocks) != d:
            raise ConfigError(
                f"Features of several depths {self.blocks} add up to {sum(self.blocks)} features, "
                f"not to {d}."
            )
        if self.trunk is not None and self.blocks:
            self.trunk = Depths(self.trunk)
        self.register_buffer("scale", torch.ones(d) if self.blocks else torch.ones(()))
        self.centre: Tensor
        self.scale: Tensor
        self.head = nn.Sequential(
            nn.Linear(d, config.hidden, bias=False),  # batch normalisation adds its own bias
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.descriptor_dim),
        )

    def fit_scale(self, features: Tensor) -> None:
        """Learn how to centre and scale frozen features from those of training, ``(n, d)``.

        One scale serves all features of a last layer: its small features are mostly noise, and
        scaling each to the same spread would make them as loud as the others. Features of several
        depths (:mod:`sslpath.depths`) have nothing in common but the tile: each is scaled to the
        same spread, and each depth as a whole is made as loud as any other, however long.
        """
        # Part by part: all of a large data set would not fit into memory in 64 bits.
        n = len(features)
        parts = torch.split(features, max(1, min(65_536, PART_NUMBERS // features.shape[1])))
        mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / n
        squares = torch.stack([part.double().sub_(mean).square_().sum(dim=0) for part in parts])
        self.centre.copy_(mean)
        scale = (squares.sum(dim=0).mean() / n).sqrt()
        self.scale.fill_(scale.item() or 1.0)
        if self.blocks:
            spread = (squares.sum(dim=0) / max(1, n - 1)).sqrt()
            # A feature that is the same everywhere says nothing: it stays at 0.
            spread[spread < 1e-6 * scale] = torch.inf
            lengths = torch.tensor(self.blocks, dtype=torch.float64)
            share = (lengths * len(self.blocks) / lengths.sum()).sqrt()
            self.scale.copy_(spread * share.repeat_interleave(torch.tensor(self.blocks)))

    def train(self, mode: bool = True) -> Self:
        """As of any module, but a fine-tuned trunk normalises by what it knows from ImageNet.

        A batch holds tiles of a few slides, so its mean and spread are not those that a tile meets
        in evaluation; and weights whose normalisation is folded into the convolutions, as exports
        for phones have it, answer nonsense if they are normalised once more.
        """
        super().train(mode)
        if self.trunk is not None and self.config.trunk == "finetune":
            for module in self.trunk.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor, exchange: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute descriptors.

        Args:
            x: Features ``(b, feature_dim)`` with a frozen trunk; else tiles ``(b, 3, h, w)``, RGB
                as floats in 0..1.
            exchange: Turns features of the trunk into those that the head gets; see
                :meth:`sslpath.ranks.Ranks.exchange`.

        Returns:
            Shape ``(b, descriptor_dim)``, of unit L2 length.
        """
        if self.trunk is not None:
            features = self._compiled_features if self.compiled else _features
            x = features(x, self.trunk, self.config.input_px)
        if exchange is not None:
            x = exchange(x)
        with torch.autocast(x.device.type, enabled=False):
            x = (x.float() - self.centre) / self.scale
            return F.normalize(self.head(x), dim=1)

    def _compiled_features(self, images: Tensor, trunk: nn.Module, input_px: int) -> Tensor:
        """As :func:`_features`, compiled once although sizes of batches differ.

        A batch of a fine-tuned trunk is filled up with black tiles to the largest size: its
        normalisation looks at no other tile, and what is compiled for a single size is faster. A
        trunk from scratch learns from the whole batch: it is compiled for any size if sizes differ.
        """
        n, (fewest, most) = len(images), self.batch_sizes
        if self.config.trunk == "scratch" and fewest < most:
            return compiled_for_any_length(_features, images, trunk=trunk, input_px=input_px)
        if self.config.trunk == "finetune" and n < most:
            images = F.pad(images, (0, 0) * 3 + (0, most - n))
        return compiled(_features)(images, trunk=trunk, input_px=input_px)[:n]

    def encode(self, inputs: NDArray[Any], batch: int | None = None) -> NDArray[np.float32]:
        """Compute descriptors in evaluation, without gradients.

        Args:
            inputs: Features ``(n, feature_dim)`` with a frozen trunk; else tiles, uint8
                ``(n, h, w, 3)``.
            batch: Rows at a time; by default 16,384 features, or as many tiles as
                :meth:`sslpath.imagenet.Encoder.encode` takes.

        Returns:
            Shape ``(n, descriptor_dim)``.
        """
        if self.trunk is None:
            self._check_features(inputs)
        if batch is None:
            batch = FEATURES if self.trunk is None else tiles_at_a_time(self.centre.device)
        result = np.empty((len(inputs), self.config.descriptor_dim), np.float32)
        for first in range(0, len(inputs), batch):
            result[first : first + batch] = self._start(inputs[first : first + batch])()
        return result

    def start(self, inputs: NDArray[Any]) -> Callable[[], NDArray[np.float32]]:
        """As :meth:`encode`, but a GPU is only told to, tiles all at a time.

        See :func:`sslpath.backbones.start`: the descriptors are what the returned function returns.
        """
        if self.trunk is not None and self.centre.device.type != "cpu":
            return self._start(inputs)
        made = self.encode(inputs)
        return lambda: made

    @torch.inference_mode()
    def _start(self, inputs: NDArray[Any]) -> Callable[[], NDArray[np.float32]]:
        was_training, device = self.training, self.centre.device
        self.eval()
        try:
            if self.trunk is not None:
                low = resolve_precision("auto", self.config.arch, device) == torch.bfloat16
                with torch.autocast(device.type, torch.bfloat16, enabled=low):
                    return start(self, inputs, device)
            x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).to(device)
            made = np.asarray(self(x).cpu().numpy())
            return lambda: made
        finally:
            self.train(was_training)

    def _check_features(self, inputs: NDArray[Any]) -> None:
        if inputs.ndim != 2 or inputs.shape[1] != self.config.feature_dim:
            raise WeightsError(
                f"This network takes features (n, {self.config.feature_dim}), not "
                f"{inputs.shape}: compute them with {self.config.encoder or self.config.arch}."
            )


def _features(images: Tensor, trunk: nn.Module, input_px: int) -> Tensor:
    """What a trunk sees in tiles."""
    return cast("Tensor", trunk(prepare(images, input_px)))


class Loss(NamedTuple):
    """A contrastive loss and its two parts."""

    total: Tensor
    near: Tensor
    far: Tensor


def pair_loss(a: Tensor, b: Tensor, is_near: Tensor, margin: float) -> Loss:
    r"""Contrastive loss on explicit pairs (Hadsell, Chopra, LeCun 2006, eq. 4).

    With $d = \lVert a - b \rVert_2$, a near pair costs $d^2$ and a far pair
    $\max(0, m - d)^2$. The total is the mean over near pairs plus the mean over far pairs, so that
    neither kind outweighs the other by number. (Their factor 1/2 and their label $Y = 0$ for
    similar pairs are left out; ``is_near`` is $1 - Y$.)

    Args:
        a: Descriptors of the first sides, shape ``(p, d)``.
        b: Descriptors of the second sides, shape ``(p, d)``.
        is_near: Bool, shape ``(p,)``.
        margin: $m$, the distance beyond which far pairs cost nothing; 0..2 for unit descriptors.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
        >>> loss = pair_loss(a, b, torch.tensor([True, False]), margin=2.0)
        >>> round(loss.near.item(), 3), round(loss.far.item(), 3)
        (2.0, 0.343)
    """
    squared = (a - b).square().sum(dim=1)
    return _contrast(squared[is_near], squared[~is_near], margin)


def contrastive_loss(
    descriptors: Tensor, near_mask: Tensor, far_mask: Tensor, margin: float
) -> Loss:
    """As :func:`pair_loss`, on all near and far pairs within a batch.

    Args:
        descriptors: Shape ``(b, d)``.
        near_mask: Bool, ``(b, b)``; see :func:`sslpath.pairs.pair_masks`. Symmetric: each pair
            counts twice, which leaves the means as they are. On the CPU, so that no GPU
            is waited for.
        far_mask: Bool, ``(b, b)``.
        margin: As in :func:`pair_loss`.
    """
    norms = descriptors.square().sum(dim=1)
    squared = (norms[:, None] + norms[None] - 2 * descriptors @ descriptors.T).clamp(min=0)
    near, far = (
        _places(mask).to(squared.device, non_blocking=True) for mask in (near_mask, far_mask)
    )
    return _contrast(squared.flatten()[near], squared.flatten()[far], margin)


def _places(mask: Tensor) -> Tensor:
    """Where a mask is set, as numbers on the CPU, so that no one waits until a GPU has counted.

    By NumPy: PyTorch would share this among threads, which on a busy machine wait for each other.
    """
    return torch.from_numpy(np.flatnonzero(mask.cpu().numpy()))


def _contrast(near_squared: Tensor, far_squared: Tensor, margin: float) -> Loss:
    """Mean over near plus mean over far pairs; a kind without pairs costs nothing."""
    # The square root has no gradient at 0: keep away from it by less than rounding.
    far_cost = (margin - (far_squared + 1e-12).sqrt()).clamp(min=0).square()
    near = near_squared.sum() / max(1, near_squared.numel())
    far = far_cost.sum() / max(1, far_cost.numel())
    return Loss(near + far, near, far)


def collapse(descriptors: Tensor) -> dict[str, float]:
    """Measure how far unit descriptors are from having collapsed to a point or a line.

    Args:
        descriptors: Unit length, shape ``(n, d)``.

    Returns:
        ``spread``: root mean square distance from the mean descriptor, 0 (all the same) to 1
        (no common direction). ``effective_rank``: the exponential of the entropy of the
        covariance's eigenvalues as shares of their sum (Roy and Vetterli 2007), from 1 (all on a
        line) to d; 0 if all descriptors are the same.

    Example:
        >>> measured = collapse(torch.ones(10, 4) / 2)
        >>> measured["spread"], measured["effective_rank"]
        (0.0, 0.0)
    """
    x = descriptors.detach().double()
    x = x - x.mean(dim=0)
    variances = torch.linalg.svdvals(x).square() / max(1, len(x))
    total = variances.sum()
    if total < 1e-10:
        return {"spread": float(total.sqrt()), "effective_rank": 0.0}
    shares = variances / total
    entropy = -torch.xlogy(shares, shares).sum()
    return {"spread": float(total.sqrt()), "effective_rank": float(entropy.exp())}


def whole(network: SiameseNetwork, encoder: Encoder) -> SiameseNetwork:
    """Put a head and the frozen encoder that it was trained on into one network.

    It turns pixels into the same descriptors as both in turn, and needs no other weights: the form
    to hand on. Its trunk counts as ``finetune``: one could train it further.

    Args:
        network: With a frozen trunk.
        encoder: The encoder of its features.

    Raises:
        WeightsError: If the head was trained on another encoder's features.
    """
    check_provenance(network.config.encoder, encoder.provenance, "The head")
    made = SiameseNetwork(
        replace(network.config, trunk="finetune", encoder=dict(encoder.provenance))
    )
    assert made.trunk is not None
    made.trunk.load_state_dict(encoder.trunk.state_dict())
    made.head.load_state_dict(network.head.state_dict())
    made.centre.copy_(network.centre)
    made.scale.copy_(network.scale)
    return made.eval()


def save_model(network: SiameseNetwork, path: str | Path, *, small: bool = False) -> None:
    """Write a network as safetensors, its config as JSON in the header.

    Args:
        network: The network.
        path: The file.
        small: Store the trunk's matrices in 8 bits a weight, with a scale for each row, and all
            other weights in 16: about a quarter of the size. Reading makes them 32 bits again.

    Raises:
        WeightsError: If a weight is too large for 16 bits.
    """
    state = {key: value.contiguous().cpu() for key, value in network.state_dict().items()}
    if small:
        state = _shrunk(state)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, {HEADER: json.dumps(asdict(network.config))}))


def _shrunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's matrices as int8 with a float scale for each row, other weights as float16."""
    made = {}
    for key, value in state.items():
        if key in ("centre", "scale") or not value.is_floating_point():
            made[key] = value
        elif key.startswith("trunk.") and value.ndim > 1:
            rows = value.flatten(1)
            step = rows.abs().amax(dim=1).clamp(min=1e-12) / 127
            made[key] = (rows / step[:, None]).round().to(torch.int8).reshape(value.shape)
            made[key + ROWS] = step
        else:
            made[key] = value.half()
            if not torch.isfinite(made[key]).all():
                raise WeightsError(f"{key} is too large for 16 bits; save with small=False.")
    return made


def _grown(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`_shrunk`; what was never shrunk stays as it is."""
    grown = {key: value for key, value in state.items() if not key.endswith(ROWS)}
    for key in state.keys() - grown.keys():
        matrix = state[key.removesuffix(ROWS)].float()
        step = state[key].reshape(-1, *[1] * (matrix.ndim - 1))
        grown[key.removesuffix(ROWS)] = matrix * step
    return grown


def _check_head(config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Compare a header with the tensors: one that lies about sizes would fill the memory.

    Raises:
        ValueError: If the head is of another size.
    """
    sizes = config.hidden, config.feature_dim, config.descriptor_dim
    first, last = state["head.0.weight"].shape, state["head.4.weight"].shape
    if (*first, *last) != (*sizes[:2], sizes[2], sizes[0]):
        raise ValueError(
            f"the head is {tuple(first)} and {tuple(last)}, not (hidden, feature_dim) and "
            f"(descriptor_dim, hidden) of {sizes}"
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as reason:
        return reason.strerror or str(reason)
    if not start:
        return "the file is empty"
    if start in (b"PK", b"\x80\x02"):  # what torch.save writes, now and formerly
        return "it is a pickle, which is never read because it could run code"
    return f"it is cut short, damaged, or another kind of file ({error})"


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    trunk: str | None = None,
    descriptor_dim: int | None = None,
) -> SiameseNetwork:
    """Read a network, in evaluation mode; nothing in the file is ever executed.

    Args:
        path: A file of :func:`save_model`, or the folder of a finished run.
        arch: Refuse other architectures.
        trunk: Refuse other kinds of trunk.
        descriptor_dim: Refuse other lengths of the descriptor.

    Raises:
        WeightsError: If the file is missing, damaged, no checkpoint of sslpath, or holds another
            network than was asked for.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except FileNotFoundError as error:
        if path.name == CHECKPOINT and (path.parent / STATE).exists():
            raise WeightsError(
                f"The run in {path.parent} is not finished: `sslpath train`, called as before, "
                "goes on with it."
            ) from error
        raise WeightsError(f"No checkpoint at {path}; make one with `sslpath train`.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"Cannot read {path} as safetensors: {_why_unreadable(path, error)}. Pass the folder "
            f"of a finished run, or its `{CHECKPOINT}`."
        ) from error
    if HEADER not in metadata:
        raise WeightsError(
            f"{path} is no checkpoint of sslpath: its header holds no network. Pass the folder of "
            f"a finished run, or its `{CHECKPOINT}`."
        )
    try:
        found = json.loads(metadata[HEADER])
        known = {each.name for each in fields(ModelConfig)}
        config = ModelConfig(**{k: v for k, v in found.items() if k in known})
        state = without_more_outputs(_grown(state))
        _check_head(config, state)
        network = SiameseNetwork(config)
        network.load_state_dict(state)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"The tensors in {path} do not fit its own header: {reason}.") from error
    wanted = {"arch": arch, "trunk": trunk, "descriptor_dim": descriptor_dim}
    for key, value in wanted.items():
        have = getattr(network.config, key)
        if value is not None and have != value:
            raise WeightsError(
                f"{path} has {key} {have!r}, not {value!r}. Pass another checkpoint."
            )
    return network.eval()
