"""The batch of each training step: which tiles, which pairs, and the pixels.

A batch is made from (seed, step) alone, so that it does not matter which process makes it, or
whether the run was interrupted before.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sslpath.errors import SlideError
from sslpath.pairs import BatchSampler, near_far_um
from sslpath.settings import TrainConfig
from sslpath.sources import TileSource


@dataclass
class Batch:
    """One step's tiles and pairs, made from (seed, step) alone.

    Attributes:
        positions: Rows of the b tiles in the table.
        near: Near pairs, bool ``(b, b)``.
        far: Far pairs.
        owners: Which process reads each tile, see :mod:`sslpath.ranks`.
        lost: Those that this process should have read, and could not.
        images: The others that it should, uint8 ``(n, 3, h, w)``.
    """

    positions: NDArray[np.intp]
    near: Tensor
    far: Tensor
    owners: NDArray[np.intp]
    lost: NDArray[np.bool_]
    images: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads by itself; PyTorch's DataLoader asks for it."""
        return self if self.images is None else replace(self, images=self.images.pin_memory())

    def without(self, lost: NDArray[np.bool_]) -> "Batch":
        """The batch without tiles that could not be read, here or elsewhere."""
        if not lost.any():
            return self
        kept = torch.from_numpy(~lost)
        near, far = self.near[kept][:, kept], self.far[kept][:, kept]
        return replace(
            self,
            positions=self.positions[~lost],
            near=near,
            far=far,
            owners=self.owners[~lost],
            lost=lost[~lost],
        )


class Batches(Dataset[Batch]):
    """The batch of each step: ``batches[step]``, the same in whatever process asks."""

    def __init__(
        self,
        tiles: pd.DataFrame,
        config: TrainConfig,
        source: TileSource | None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        near_um, far_um = near_far_um(tiles, config.near_tiles, config.far_tiles)
        self.sampler = BatchSampler(
            tiles,
            near_um=near_um,
            far_um=far_um,
            slides_per_batch=config.slides_per_batch,
            # The other places are for twins.
            tiles_per_slide=config.tiles_per_slide - round(config.twins * config.tiles_per_slide),
        )
        self.config, self.source, self.share = config, source, share
        # Without metadata, which name every slide and would be copied in every step.
        self.tiles = tiles.copy(deep=False)
        self.tiles.attrs = {}

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.config.seed, step])
        if self.config.pairs == "explicit":
            tiles = self.config.slides_per_batch * self.sampler.tiles_per_slide
            n = max(1, tiles // 3)
            pairs = self.sampler.index.sample(n, rng)
            positions = np.concatenate([pairs.anchor, pairs.near, pairs.far])
            near, far = np.zeros((2, 3 * n, 3 * n), bool)
            first = np.arange(n)
            near[first, first + n] = far[first, first + 2 * n] = True
        else:
            positions = self.sampler.batch(rng)
            near, far = self.sampler.masks(positions)
        number, processes = self.share
        owners = np.arange(len(positions)) * processes // len(positions)  # in-batch: slide by slide
        batch = Batch(
            positions, torch.from_numpy(near), torch.from_numpy(far), owners, owners < 0
        )  # fmt: skip
        if self.source is not None:
            own = np.flatnonzero(owners == number)
            pixels, kept = read_what_can_be_read(self.source, self.tiles.iloc[positions[own]])
            batch.images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
            batch.lost[own[~kept]] = True
        return batch


def read_what_can_be_read(
    source: TileSource, rows: pd.DataFrame
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read tiles; one that cannot be read is left out, never replaced.

    Raises:
        SlideError: If fewer than two tiles remain.
    """
    try:
        return source.read(rows), np.ones(len(rows), bool)
    except SlideError:
        kept, parts = np.zeros(len(rows), bool), []
        for i in range(len(rows)):
            try:
                parts.append(source.read(rows.iloc[i : i + 1]))
                kept[i] = True
            except SlideError as error:
                last = error
        if len(parts) < 2:
            raise last from None
        return np.concatenate(parts), kept
