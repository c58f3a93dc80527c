"""Tiles in shared memory: each turn finds its own, whoever wrote it and however slow the reader."""

import multiprocessing
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import QUICK, Painted, some_tiles

from sslpath.batches import Batches, load
from sslpath.slots import Slots


def fill(slots: Slots, turn: int) -> None:
    slots[turn][:] = turn + 1


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_what_another_process_writes_is_seen_here(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    slots = Slots(3, (2, 4, 4, 3))
    for turn in (0, 1, 2, 4):
        process = multiprocessing.get_context(method).Process(target=fill, args=(slots, turn))
        process.start()
        process.join()
    assert [int(slots[turn].min()) for turn in range(3)] == [1, 5, 3]
    assert slots[1].shape == (2, 4, 4, 3)


def test_pinning_without_a_gpu_does_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    slots = Slots(1, (1, 2, 2, 3))
    with slots.pinned():
        slots[0][:] = 3
    assert slots[0].min() == 3


@pytest.mark.parametrize("pairs", ["in-batch", "explicit"])
@pytest.mark.parametrize("wait_s", [0.0, 0.02])
def test_batches_read_ahead_are_those_read_here(pairs: Any, wait_s: float) -> None:
    """More steps than slots; a slow learner finds its batch whole until it asks for the next."""
    tiles, source = some_tiles(), Painted(broken=(3, 4, 40))
    config = replace(QUICK, pairs=pairs, steps=24)
    expected = Batches(tiles, config, source)
    ahead = load(Batches(tiles, config, source), range(2, 24), 2, torch.device("cpu"))
    lost = 0
    for step, batch in enumerate(ahead, start=2):
        time.sleep(wait_s)
        own = expected[step]
        assert batch.images is not None
        assert own.images is not None
        assert torch.equal(batch.images, own.images)
        np.testing.assert_array_equal(batch.positions, own.positions)
        np.testing.assert_array_equal(batch.lost, own.lost)
        lost += int(batch.lost.sum())
    assert step == 23
    assert lost > 0


def test_two_processes_share_a_batch_of_an_odd_number() -> None:
    tiles, source = some_tiles(), Painted()
    config = replace(QUICK, steps=3, slides_per_batch=1, tiles_per_slide=7)
    for number in (0, 1):
        batches = Batches(tiles, config, source, share=(number, 2))
        for batch in load(batches, range(3), 1, torch.device("cpu")):
            assert batch.images is not None
            own = tiles.iloc[batch.positions[batch.owners == number]]
            found = batch.images.permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(found, source.read(own))
