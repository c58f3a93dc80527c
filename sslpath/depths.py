"""Features of every depth of a network: colour, texture and shape beside what the last layer says.

The last layer of a classifier has learned to tell things of everyday life apart, and has thrown
away much of what tells tissues apart. Earlier layers still hold it. So :class:`Depths` pools the
pixels and the last block at each spatial size inside a trunk, and puts the trunk's own features at
the end. A head that learns from them needs each depth to be equally loud, see
:meth:`sslpath.model.SiameseNetwork.fit_scale`.
What this module does not do: networks without spatial maps (vision transformers), and choosing
which depths are worth having.
"""

import torch
from torch import Tensor, nn

from sslpath.errors import ConfigError

PROBE_PX = 128  # side of the image that finds the sizes
STAGES = ("features", "layers")  # where networks that are one long sequence keep their blocks


class Depths(nn.Module):
    """A trunk that also answers with what its earlier blocks see.

    Attributes:
        trunk: The network, images to pooled features.
        taps: Names of the blocks whose output is pooled, from fine to coarse.
        blocks: Lengths of the parts of the answer: pixels, each tap, the trunk's own features.

    Example:
        >>> from sslpath.backbones import make_trunk
        >>> network = Depths(make_trunk("resnet18"))
        >>> network.taps, network.blocks
        (('relu', 'layer1', 'layer2', 'layer3'), (6, 128, 128, 256, 512, 512))
        >>> network(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1542])
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk.eval()
        self._seen: list[tuple[str, Tensor]] = []
        stages = next((getattr(trunk, s) for s in STAGES if hasattr(trunk, s)), trunk)
        for name, block in stages.named_children():
            block.register_forward_hook(self._keep(name))
        try:
            with torch.inference_mode():
                own = self.trunk(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
        except (AssertionError, RuntimeError):  # vision transformers want one size only
            self._seen.clear()
        # Square in the last two axes: some transformers keep channels last.
        maps = [(n, x) for n, x in self._seen if x.ndim == 4 and x.shape[2] == x.shape[3]]
        last = {x.shape[3]: (name, x.shape[1]) for name, x in maps}
        if not last:
            raise ConfigError(
                f"{type(trunk).__name__} has no maps of features to pool; use it without depths."
            )
        # The coarsest map is what the trunk pools itself; what is 1 x 1 already is pooled.
        sizes = sorted((size for size in last if size > 1), reverse=True)
        kept = [last[size] for size in sizes if size > min(sizes)]
        self.taps = tuple(name for name, _ in kept)
        self.blocks = (6, *(2 * channels for _, channels in kept), own.shape[1])

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                self._seen.append((name, output))

        return hook

    def forward(self, images: Tensor) -> Tensor:
        """Mean and spread of the pixels and of each tap, then the trunk's features.

        Args:
            images: ``(b, 3, h, w)``, normalised as the trunk wants them.

        Returns:
            Shape ``(b, sum(blocks))``.
        """
        self._seen.clear()
        own = self.trunk(images)
        maps = dict(self._seen)  # a name that comes twice: its last output
        self._seen.clear()
        pooled = [_pool(x) for x in (images, *(maps[name] for name in self.taps))]
        return torch.cat([*pooled, own.float()], dim=1)


def _pool(x: Tensor) -> Tensor:
    """Mean and standard deviation over positions, ``(b, c, h, w)`` to ``(b, 2 c)``."""
    x = x.float()
    return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)
