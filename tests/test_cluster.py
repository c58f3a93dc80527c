"""The same work done by the workers of a Dask scheduler, some of which are lost on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from conftest import HANG_S, draw_tissue, write_slide
from distributed import LocalCluster

from sslpath.cli import main
from sslpath.cluster import each
from sslpath.descriptors import read_descriptors
from sslpath.embed import embed_encoder
from sslpath.errors import ConfigError, SlideError
from sslpath.imagenet import random_encoder
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import load_tiles
from sslpath.tiling import tile_slides


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    # A task that has taken one worker down is not tried again by a third.
    settings: dict[str, Any] = {"distributed.scheduler.allowed-failures": 1}
    settings |= {f"distributed.comm.timeouts.{what}": f"{HANG_S} s" for what in ("connect", "tcp")}
    with dask.config.set(settings), LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as started:  # fmt: skip
        yield started


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for i in range(6):
        write_slide(folder / f"{i}.tif", draw_tissue(1500, 1500, i))
    return folder


def processes(workers: LocalCluster) -> list[int]:
    return [nanny.pid for nanny in workers.workers.values()]


def kill_once_there(pattern: Path, workers: LocalCluster, killed: list[int]) -> threading.Thread:
    """Kill a worker, once a file that fits the pattern is there."""

    def watch() -> None:
        for _ in range(100 * HANG_S):
            if list(pattern.parent.glob(pattern.name)):
                killed.append(processes(workers)[0])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_descriptors_are_the_same_though_a_worker_is_killed(
    workers: LocalCluster, slides: Path, tmp_path: Path
) -> None:
    paths = sorted(slides.iterdir())
    tiles, _ = tile_slides(
        map(Slide, paths), mpp=0.5, tile_px=64, max_tiles=60, progress=False
    )  # fmt: skip
    encoder, killed = random_encoder("resnet18", input_px=96), list[int]()
    told: dict[str, Any] = {"source": open_source(tiles), "encoder": encoder, "progress": False}
    thread = kill_once_there(tmp_path / "there" / "*.h5", workers, killed)
    address = workers.scheduler_address
    failed = embed_encoder(tiles, folder=tmp_path / "there", scheduler=address, **told)
    thread.join()
    assert killed
    for _ in range(10 * HANG_S):  # its nanny may not have noticed yet
        if killed[0] not in processes(workers):
            break
        time.sleep(0.1)
    assert killed[0] not in processes(workers)
    assert failed.empty
    embed_encoder(tiles, folder=tmp_path / "here", **told)
    assert names(tmp_path / "there") == names(tmp_path / "here")
    there, here = (read_descriptors(tmp_path / name, tiles) for name in ("there", "here"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_command_cuts_the_same_tiles_and_reports_the_same_failures(
    workers: LocalCluster, slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0broken")
    words = ["tile", str(slides), str(tmp_path / "broken.tif"), "--mpp", "0.5", "--tile-px", "64"]
    where = {"here": [], "there": ["--scheduler", workers.scheduler_address]}
    for name, more in where.items():
        assert main([*words, *more, "--out", str(tmp_path / name / "tiles.parquet")]) == 3
    here, there = (load_tiles(tmp_path / name / "tiles.parquet") for name in where)
    pd.testing.assert_frame_equal(here, there)
    for name in where:
        assert names(tmp_path / name) == {"tiles.parquet", "tiles.failed.csv"}
    failed = [(tmp_path / name / "tiles.failed.csv").read_text() for name in where]
    assert failed[0] == failed[1]
    assert "broken.tif" in failed[0]


def test_the_command_embeds_and_a_broken_slide_is_reported(
    workers: LocalCluster, slides: Path, tmp_path: Path
) -> None:
    own = tmp_path / "slides"
    own.mkdir()
    for name in ("0.tif", "1.tif"):
        (own / name).write_bytes((slides / name).read_bytes())
    table = str(tmp_path / "tiles.parquet")
    assert main(["tile", str(own), "--mpp", "0.5", "--tile-px", "64", "--out", table]) == 0
    (own / "1.tif").unlink()
    words = ["embed", table, "--encoder", "rgb", "--scheduler", workers.scheduler_address]
    assert main([*words, "--out", str(tmp_path / "rgb")]) == 3
    assert names(tmp_path / "rgb") == {"0.h5", "failed.csv"}
    failed = pd.read_csv(tmp_path / "rgb" / "failed.csv", dtype=str)
    assert len(failed) == (load_tiles(table)["slide_id"] == "1").sum()
    assert set(failed["slide_id"]) == {"1"}


def test_an_item_that_takes_workers_down_is_given_up_and_the_others_are_done(
    workers: LocalCluster,
) -> None:
    def job(i: int) -> int:
        if i == 2:
            os._exit(1)
        return i * i

    done = dict(each(workers.scheduler_address, job, range(6)))
    assert isinstance(done.pop(2), SlideError)
    assert done == {i: i * i for i in (0, 1, 3, 4, 5)}


def test_no_scheduler_is_an_error_that_says_how_to_start_one() -> None:
    soon = dask.config.set({"distributed.comm.timeouts.connect": "1 s"})
    with soon, pytest.raises(ConfigError, match="dask scheduler"):
        list(each("tcp://127.0.0.1:9", abs, [1]))
