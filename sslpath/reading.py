"""Tiles read ahead, slide by slide, by other processes; those that cannot be read are told apart.

The pixels are left in memory that the processes share (:mod:`sslpath.slots`). What is done with
them is no matter of this module; training reads by :func:`sslpath.batches.load`.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sslpath.errors import DescriptorError, SlideError, TileReadError
from sslpath.slots import Slots
from sslpath.sources import TileSource

_source: TileSource  # of a process that reads, and where it leaves pixels
_slots: Slots

FailedTile = tuple[str, int, int, str]  # slide, corner, why


@dataclass(frozen=True)
class Read:
    """Tiles of one slide read together, and those of them that could not be.

    Attributes:
        slide_id: The slide.
        images: Its tiles, ``(n, h, w, 3)``.
        coords: Their corners (x, y), level-0 px, ``(n, 2)``.
        failures: Of the others: slide, corner and why.
    """

    slide_id: str
    images: NDArray[np.uint8]
    coords: NDArray[np.int64]
    failures: list[FailedTile]


def read_ahead(
    jobs: Iterable[tuple[str, pd.DataFrame, bool]],
    source: TileSource,
    workers: int,
    shape: tuple[int, ...],
) -> Iterator[tuple[Read, bool]]:
    """Read the jobs in their order, with ``workers`` processes at most two batches each ahead.

    Args:
        jobs: Tiles of one slide to be read together: its id, their rows of the table, and whether
            they are the slide's last.
        source: Where the tiles come from.
        workers: Processes; 0 reads in this one.
        shape: Of the largest batch, ``(b, h, w, 3)``.

    Returns:
        What was read, and whether it is the slide's last. The pixels hold until the batch after the
        next is asked for.

    Raises:
        DescriptorError: If a process that reads dies.
    """
    if workers == 0:
        for slide_id, rows, last in jobs:
            yield _read(source, slide_id, rows), last
        return
    slots = Slots(2 * workers + 2, shape)
    # Started afresh, since neither slides nor the threads of a numerical library survive a fork.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _remember, (source, slots)
    )
    with pool, slots.pinned():
        waiting: deque[tuple[Future[tuple[Read, int]], int, bool]] = deque()

        def first() -> tuple[Read, bool]:
            future, turn, last = waiting.popleft()
            read, n = _result(future)
            return replace(read, images=slots[turn][:n]), last

        try:
            for turn, (slide_id, rows, last) in enumerate(jobs):
                waiting.append((pool.submit(_read_into, turn, slide_id, rows), turn, last))
                if len(waiting) > 2 * workers:
                    yield first()
            pool.shutdown(wait=False)  # processes end as the last batches are looked at
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)


def _remember(source: TileSource, slots: Slots) -> None:
    """What a process that reads needs for all of its jobs."""
    global _source, _slots
    _source, _slots = source, slots


def _read_into(turn: int, slide_id: str, rows: pd.DataFrame) -> tuple[Read, int]:
    """Read tiles, leave their pixels in the slot, and say how many there are."""
    read = _read(_source, slide_id, rows)
    n = len(read.images)
    if n:
        _slots[turn][:n] = read.images
    return replace(read, images=read.images[:0]), n


def _result(future: "Future[tuple[Read, int]]") -> tuple[Read, int]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DescriptorError(
            "A process that reads tiles died. Finished slides are kept: run again with workers=0 "
            'to see why; a script must call compute() from under `if __name__ == "__main__"`.'
        ) from error


def _read(source: TileSource, slide_id: str, rows: pd.DataFrame) -> Read:
    """Read tiles of one slide; if one of them is broken, each alone."""
    coords = rows[["x", "y"]].to_numpy(np.int64)
    images = np.empty((0, 1, 1, 3), np.uint8)
    failures: list[FailedTile] = []
    try:
        if len(rows):
            images = source.read(rows)
        return Read(slide_id, images, coords, [])
    except TileReadError:
        good: list[NDArray[np.uint8]] = []
        read = np.zeros(len(rows), bool)
        for i, (x, y) in enumerate(coords.tolist()):
            try:
                good.append(source.read(rows.iloc[i : i + 1]))
                read[i] = True
            except SlideError as error:
                failures.append((slide_id, x, y, str(error)))
        images = np.concatenate(good) if good else images
        return Read(slide_id, images, coords[read], failures)
    except SlideError as error:  # the slide cannot be opened: so neither can its tiles
        failures = [(slide_id, x, y, str(error)) for x, y in coords.tolist()]
        return Read(slide_id, images, coords[:0], failures)
