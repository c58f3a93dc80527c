"""Several processes that train one network together, such as one for each GPU.

Started by PyTorch's ``torchrun``, every process knows the whole of each batch, but reads and runs
through the trunk only its share of the tiles. Then the features of all are exchanged, and everyone
computes the head, the pairs and the loss of the whole batch. So all pairs of a batch are learned
from, and the loss is that of one process with the same batch. The batch normalisation of a trunk
that is fine-tuned looks at no batch; that of one from scratch sees the whole batch on GPUs, a
process's share on CPUs, for which PyTorch has no other.

Hugging Face's accelerate connects the processes and averages their gradients.
What this module does not do: shards of the network, and training of a head on frozen features,
which takes seconds.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslpath.backbones import pick_device
from sslpath.errors import ConfigError


def count_ranks() -> int:
    """How many processes train together: those that torchrun has started, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_head_of_many(trunk: str) -> None:
    """Refuse a head on frozen features in several processes.

    Raises:
        ConfigError: If torchrun has started several, and the trunk is frozen.
    """
    if count_ranks() > 1 and trunk == "frozen":
        raise ConfigError("A head on frozen features learns in seconds: leave out torchrun.")


class Ranks:
    """The processes that train together; one, unless torchrun has started more.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; with several processes, each gets a GPU of its own.

    Attributes:
        count: How many.
        number: Which of them this one is, from 0.
        device: Where this one computes.

    Raises:
        ConfigError: If accelerate is needed and not installed.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.number = count_ranks(), 0
        self.device = pick_device(device)
        if self.count > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise ConfigError(
                    "Several processes need accelerate: pip install accelerate."
                ) from error
            self._accelerator: Any = Accelerator(cpu=self.device.type == "cpu")
            self.number, self.device = self._accelerator.process_index, self._accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.number == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to call, so that gradients are those of all processes."""
        if self.count == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        wrapped: nn.Module = self._accelerator.prepare(network)
        return wrapped

    def any(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The flags that are set in any process."""
        if self.count == 1:
            return flags
        every = torch.from_numpy(flags.astype(np.uint8)).to(self.device)
        torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
        return every.cpu().numpy().astype(bool)

    def exchange(self, owners: Tensor) -> Callable[[Tensor], Tensor]:
        """What turns the features of this process's tiles into those of all.

        Args:
            owners: Which process has each tile, ``(b,)``.

        Returns:
            A function from ``(b of this process, d)``, in the order of its tiles, to ``(b, d)``,
            in the order of all. Gradients find their way back.
        """
        counts = torch.bincount(owners, minlength=self.count).tolist()
        back = torch.argsort(torch.argsort(owners, stable=True))

        def exchanged(features: Tensor) -> Tensor:
            if self.count == 1:
                return features
            rows = F.pad(features.float(), (0, 0, 0, max(counts) - len(features)))
            parts = torch.distributed.nn.functional.all_gather(rows.contiguous())
            every = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
            return every[back.to(every.device)]

        return exchanged
