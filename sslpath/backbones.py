"""Networks of torchvision without their classifiers, and how they run on the hardware at hand."""

import difflib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torchvision.models
from numpy.typing import NDArray
from torch import Tensor, nn

from sslpath.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]

MORE_OUTPUTS = {"aux1", "aux2", "AuxLogits"}  # modules of these architectures
WITH_MORE_OUTPUTS = {"googlenet", "inception_v3"}


class Architecture(NamedTuple):
    """What has to be known of a torchvision classifier to use it without its classifier."""

    dim: int
    classifier: str
    depthwise: bool


@cache
def architecture(arch: str) -> Architecture:
    """Look at a torchvision classifier, mostly without memory for its weights.

    Args:
        arch: A name of ``torchvision.models.list_models(module=torchvision.models)``.

    Returns:
        Length of the pooled features, name of the last linear layer, and whether there are
        depthwise convolutions, which lower precision does not speed up on a CPU.

    Raises:
        ConfigError: If torchvision has no such classifier, or it does not end in a linear layer.

    Example:
        >>> architecture("resnet50")
        Architecture(dim=2048, classifier='fc', depthwise=False)
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        close = difflib.get_close_matches(arch, known) or ["resnet50", "mobilenet_v2"]
        raise ConfigError(
            f"torchvision has no classifier {arch!r}; did you mean {' or '.join(close)}?"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some warn that their initialisation will change
        try:
            with torch.device("meta"):
                network = torchvision.models.get_model(arch, weights=None)
        except NotImplementedError:  # RegNets draw their first weights by value
            network = torchvision.models.get_model(arch, weights=None)
    modules = list(network.named_modules())
    linear = [(k, m) for k, m in modules if isinstance(m, nn.Linear) and m.out_features == 1000]
    if not linear:
        raise ConfigError(f"{arch} does not end in a linear layer; choose resnet50 or another.")
    name, last = linear[-1]
    depthwise = any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for _, m in modules)
    return Architecture(last.in_features, name, depthwise)


def make_trunk(arch: str) -> nn.Module:
    """A torchvision network without its classifier, ``(b, 3, h, w)`` to ``(b, dim)``.

    Its weights are random, drawn from PyTorch's global generator.
    """
    classifier = architecture(arch).classifier
    # In training, GoogLeNet and Inception also classify what earlier layers see.
    single = {"aux_logits": False, "init_weights": True} if arch in WITH_MORE_OUTPUTS else {}
    network: nn.Module = torchvision.models.get_model(arch, weights=None, **single)
    network.set_submodule(classifier, nn.Identity())
    return network


def without_more_outputs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the classifiers of earlier layers, which no trunk here has.

    Example:
        >>> one = torch.ones(1)
        >>> list(without_more_outputs({"conv1.conv.weight": one, "aux1.fc1.bias": one}))
        ['conv1.conv.weight']
    """
    return {key: value for key, value in state.items() if not MORE_OUTPUTS & set(key.split("."))}


def resolve_precision(
    precision: Precision, arch: str, device: torch.device | str = "cpu"
) -> torch.dtype:
    """The number type in which to run a trunk.

    ``auto`` means bfloat16 where that is known to be faster: on GPUs that have it, and on CPUs with
    the instructions for it unless the architecture has depthwise convolutions. Else float32.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if torch.device(device).type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        fast = _cpu_has_bfloat16() and not architecture(arch).depthwise
    return torch.bfloat16 if fast else torch.float32


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: If there is no such device here.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"No device {name!r} here ({reason}). Use cpu, or auto.") from error
    return device


def tiles_at_a_time(device: torch.device) -> int:
    """Tiles in a batch that need not be smaller: few on a CPU, where they stay in its cache."""
    return 32 if device.type == "cpu" else 256


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function as PyTorch compiles it (``torch.compile``) when it is first called."""
    faster: Callable[..., Tensor] = torch.compile(function)
    return faster


def compiled_for_any_length(
    function: Callable[..., Tensor], *batches: Tensor, **others: Any
) -> Tensor:
    """Call a compiled function on batches whose length differs from call to call.

    What is compiled for the length of the first call would be compiled again for the second.
    """
    for batch in batches:
        torch._dynamo.maybe_mark_dynamic(batch, 0)
    return compiled(function)(*batches, **others)


def start(
    network: Callable[[Tensor], Tensor], tiles: NDArray[np.uint8], device: torch.device
) -> Callable[[], NDArray[np.float32]]:
    """Send tiles to a device and have a network look at them there.

    A CPU has done so when this returns. A GPU has been told to, and goes on by itself: it never
    idles if the next tiles are sent before these features are asked for.

    Args:
        network: Turns images, float 0..1, ``(b, 3, h, w)``, into features ``(b, d)``.
        tiles: uint8, shape ``(b, h, w, 3)``; not to be changed before the features are there.
        device: Where to compute.

    Returns:
        A function that waits for the features, ``(b, d)``, and returns them.

    Raises:
        ConfigError: If these are no tiles.

    Example:
        >>> wait = start(lambda x: x.mean((2, 3)), np.ones((2, 8, 8, 3), np.uint8), pick_device())
        >>> wait().shape
        (2, 3)
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[-1] != 3:
        raise ConfigError(f"Tiles must be uint8 (n, h, w, 3), not {tiles.dtype} {tiles.shape}.")
    images = torch.from_numpy(np.ascontiguousarray(tiles))
    if device.type != "cuda":
        found = network(images.to(device).permute(0, 3, 1, 2).float() / 255).float()
        made = np.asarray(found.cpu().numpy())
        return lambda: made
    road, here = _road(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(road):
        there = images.to(device, non_blocking=True)
    here.wait_stream(road)
    there.record_stream(here)
    found = network(there.permute(0, 3, 1, 2).float() / 255).float()
    back = found.to("cpu", non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(here)

    def wait(sent: Tensor = images) -> NDArray[np.float32]:  # which lasts until then
        done.synchronize()
        return back.numpy().copy()  # memory that a GPU writes to is scarce, and used again

    return wait


@cache
def _road(device: torch.device) -> torch.cuda.Stream:
    """On which pixels travel to a GPU while it computes."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; PyTorch has no public way to ask."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
