"""The batch of each training step: which tiles, which pairs, and the pixels.

A batch is made from (seed, step) alone, so that it does not matter which process makes it, or
whether the run was interrupted before.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sslpath.errors import SlideError
from sslpath.pairs import BatchSampler, near_far_um
from sslpath.settings import TrainConfig
from sslpath.slots import Slots
from sslpath.sources import TileSource

AHEAD = 2  # batches that each process reads ahead


@dataclass
class Batch:
    """One step's tiles and pairs, made from (seed, step) alone.

    Attributes:
        positions: Rows of the b tiles in the table.
        near: Near pairs, bool ``(b, b)``.
        far: Far pairs.
        owners: Which process reads each tile, see :mod:`sslpath.ranks`.
        lost: Those that this process should have read, and could not.
        images: The others that it should, uint8 ``(n, 3, h, w)``, a view of ``(n, h, w, 3)``.
    """

    positions: NDArray[np.intp]
    near: NDArray[np.bool_]
    far: NDArray[np.bool_]
    owners: NDArray[np.intp]
    lost: NDArray[np.bool_]
    images: Tensor | None = None

    def without(self, lost: NDArray[np.bool_]) -> "Batch":
        """The batch without tiles that could not be read, here or elsewhere."""
        if not lost.any():
            return self
        both = np.ix_(~lost, ~lost)
        return replace(
            self,
            positions=self.positions[~lost],
            near=self.near[both],
            far=self.far[both],
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
            tiles_per_slide=config.different_tiles,
        )
        self.config, self.source, self.share = config, source, share
        self.slots: Slots | None = None  # where other processes leave what they read
        # The pixels of the largest batch.
        tile_px = tiles.attrs["tile_px"]
        self.shape = (-(-self._sizes()[1] // share[1]), tile_px, tile_px, 3)
        # Without metadata, which name every slide and would be copied in every step.
        self.tiles = tiles.copy(deep=False)
        self.tiles.attrs = {}

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.config.seed, step])
        if self.config.pairs == "explicit":
            n = self._pairs_of_each()
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
        batch = Batch(positions, near, far, owners, owners < 0)
        if self.source is not None:
            own = np.flatnonzero(owners == number)
            pixels, kept = read_what_can_be_read(self.source, self.tiles.iloc[positions[own]])
            batch.lost[own[~kept]] = True
            if self.slots is None or get_worker_info() is None:
                batch.images = as_images(pixels)
            else:
                self.slots[step][: len(pixels)] = pixels
        return batch

    @property
    def images_per_step(self) -> tuple[int, int]:
        """Fewest and most images that this process sees in a step if all tiles can be read."""
        processes, share = self.share[1], self.config.twins
        (fewest, most), twins = self._sizes(), count_twins(self._sizes()[1], share)
        if processes == 1:
            return fewest + count_twins(fewest, share), most + twins
        own = -(-most // processes)
        return fewest // processes, own + min(own, twins)  # twins are drawn from the tiles of all

    def _sizes(self) -> tuple[int, int]:
        """Different tiles in the smallest and in the largest batch."""
        if self.config.pairs == "explicit":
            return (3 * self._pairs_of_each(),) * 2
        return self.sampler.sizes

    def _pairs_of_each(self) -> int:
        """Explicit near pairs of a batch, and as many far ones that share their anchors."""
        return max(1, self.config.slides_per_batch * self.sampler.tiles_per_slide // 3)


def count_twins(tiles: int, share: float) -> int:
    """How many tiles come twice, so that ``share`` of all places are for the second time.

    Example:
        >>> count_twins(24, 0.25)
        8
    """
    return round(tiles * share / (1 - share))


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """Tiles as they are read, ``(n, h, w, 3)``, as PyTorch has them; nothing is copied."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def load(batches: Batches, steps: range, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of steps, read ahead by other processes, with the pixels on a device.

    A batch's pixels hold until the next one is asked for.

    Args:
        batches: All batches.
        steps: Which of them.
        workers: Processes that read; 0 reads in this one.
        device: Where the pixels go; on a GPU they travel while it computes.
    """
    if batches.source is None:
        workers = 0
    # One is looked at while the others are read.
    slots = Slots(AHEAD * workers + 1, batches.shape) if workers else None
    batches.slots = slots
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=AHEAD if workers else None,
    )
    road = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    with slots.pinned() if slots else nullcontext():
        for step, batch in zip(steps, loader, strict=True):
            if slots is not None:
                n = int((batch.owners == batches.share[0]).sum() - batch.lost.sum())
                batch.images = as_images(slots[step][:n])
            if batch.images is not None and road is not None:
                with torch.cuda.stream(road):
                    batch.images = batch.images.to(device, non_blocking=True)
                torch.cuda.current_stream(device).wait_stream(road)
                batch.images.record_stream(torch.cuda.current_stream(device))
            yield batch
            if road is not None:
                road.synchronize()  # what is read next may take the slot


def _as_it_is(batch: Any) -> Any:
    """Keep DataLoader from taking the batch apart."""
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
