"""The batch of each training step: which tiles, which pairs, and the pixels.

A batch is made from (seed, step) alone, so that it does not matter which process makes it, or
whether the run was interrupted before.
"""

from dataclasses import dataclass

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
    """One step's tiles and pairs, made from (seed, step) alone."""

    positions: NDArray[np.intp]
    images: Tensor | None  # uint8 (b, 3, h, w)
    near: Tensor  # bool (b, b)
    far: Tensor
    unread: int


class Batches(Dataset[Batch]):
    """The batch of each step: ``batches[step]``, the same in whatever process asks."""

    def __init__(self, tiles: pd.DataFrame, config: TrainConfig, source: TileSource | None) -> None:
        near_um, far_um = near_far_um(tiles, config.near_tiles, config.far_tiles)
        self.sampler = BatchSampler(
            tiles,
            near_um=near_um,
            far_um=far_um,
            slides_per_batch=config.slides_per_batch,
            # The other places are for twins.
            tiles_per_slide=config.tiles_per_slide - round(config.twins * config.tiles_per_slide),
        )
        self.tiles, self.config, self.source = tiles, config, source

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
        images, kept = None, np.ones(len(positions), bool)
        if self.source is not None:
            pixels, kept = read_what_can_be_read(self.source, self.tiles.iloc[positions])
            images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        if not kept.all():
            positions, near, far = positions[kept], *(m[np.ix_(kept, kept)] for m in (near, far))
        unread = int((~kept).sum())
        return Batch(positions, images, torch.from_numpy(near), torch.from_numpy(far), unread)


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
