"""Memory in which processes that read leave their tiles, so that none need be sent.

A batch of tiles has tens of megabytes. Sent from process to process it is copied several times,
and a GPU may have to wait. Here it is copied once, to where the process that asked for it looks.
The memory belongs to no file that could be left behind: it ends with the processes.
"""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray

import numpy as np
from numpy.typing import NDArray


class Slots:
    """Room for a few batches, used in turns. Hand it to a process when that is started.

    Args:
        count: Batches under way at a time: the next turn finds the memory of ``count`` turns ago.
        shape: Of a batch, uint8.

    Example:
        >>> slots = Slots(2, (4, 8, 8, 3))
        >>> slots[0][:] = 7
        >>> int(slots[1].max()), int(slots[2].max())
        (0, 7)
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.shape = count, *shape
        self._memory = RawArray(ctypes.c_uint8, math.prod(self.shape))

    def __getitem__(self, turn: int) -> NDArray[np.uint8]:
        """The memory of a turn, from 0."""
        size = math.prod(self.shape[1:])
        start = turn % self.shape[0] * size
        memory = memoryview(self._memory).cast("B")
        return np.frombuffer(memory, np.uint8, size, start).reshape(self.shape[1:])

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep the memory where a GPU finds it by itself, if this process uses one."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            yield
            return
        start, size = ctypes.addressof(self._memory), math.prod(self.shape)
        # Refused, it costs time and nothing else.
        error = torch.cuda.cudart().cudaHostRegister(start, size, 0)
        try:
            yield
        finally:
            if int(error) == 0:
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaHostUnregister(start)
