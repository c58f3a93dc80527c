"""The benchmark of speed: ratios, and the processes that packages run in."""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sslpath.embed import store
from sslpath.index import build_index
from sslpath.model import ModelConfig
from sslpath.slides import Slide
from sslpath.tiling import tile_slides

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu
from speed import (
    NAMES,
    Worker,
    as_slides,
    commands,
    like_tissue,
    peak_bytes,
    ratios_of,
    resident,
    take_turns,
    together,
)


def test_a_way_that_takes_twice_as_long_has_half_the_rate():
    one, twice = ratios_of("part", {"one": [200, 100, 50], "twice": [100, 40, 30]}, 10, "naps")
    assert (one["value"], one["low"], one["high"], one["rate"]) == (1, 1, 1, 100)
    assert (twice["value"], twice["low"], twice["high"], twice["rate"]) == (0.5, 0.4, 0.6, 40)
    assert (twice["n"], twice["versus"]) == (3, "one")


def test_ways_take_turns_and_the_first_turn_is_not_counted():
    called = []
    ways = {name: partial(called.append, name) for name in ("one", "other")}
    rows = take_turns("part", ways, 10, "calls", turns=3)
    assert called == ["one", "other"] * 4
    assert [row["n"] for row in rows] == [3, 3]


def test_a_rate_is_work_over_seconds():
    start = time.perf_counter()
    (row,) = take_turns("part", {"nap": partial(time.sleep, 0.02)}, 10, "naps", turns=1)
    assert 10 / (time.perf_counter() - start) < row["rate"] <= 10 / 0.02


def test_the_memory_of_a_command_does_not_include_that_of_this_process():
    small = peak_bytes(sys.executable, "-c", "pass")
    large = peak_bytes(sys.executable, "-c", "bytearray(b'1') * 50_000_000")
    assert large - small == pytest.approx(50e6, rel=0.1)
    assert small < resident() / 2  # which has imported PyTorch


@pytest.mark.parametrize("package", ["sslpath", "libvips"])
def test_processes_of_packages_read_the_pixels_that_openslide_reads(slide_path, tmp_path, package):
    places = np.array([(0, 0), (700, 500), (1111, 987)])
    read = {}
    for one in ("openslide", package):
        worker = Worker(one, "reading", slide_path, places, tmp_path)
        read[one] = worker.result()
        together([worker, Worker(one, "reading", slide_path, places, tmp_path)])
    assert read["openslide"].shape == (3, 224, 224, 3)
    np.testing.assert_array_equal(read[package], read["openslide"])


def test_a_process_that_fails_ends_the_benchmark_and_names_its_log(tmp_path):
    with pytest.raises(SystemExit, match=r"openslide does not start; see .*openslide\.log"):
        Worker("openslide", "reading", tmp_path / "none.tif", [(0, 0)], tmp_path)
    assert "missing image file" in (tmp_path / "openslide.log").read_text()
    assert "openslide" in NAMES


def test_search_is_timed_as_a_command_on_tiles_that_can_be_read(slide_path, tmp_path, capfd):
    tiles = as_slides(slide_path, 400, slides=4)
    assert tiles["slide_id"].nunique() == 4
    assert not tiles.duplicated(["slide_id", "x", "y"]).any()
    store(tiles, like_tissue(400), tmp_path / "d", {"arch": "like tissue"})
    build_index(tiles, tmp_path / "d", tmp_path / "index", progress=False)
    rows = commands(tiles, tmp_path / "d", tmp_path / "index", tmp_path, turns=1)
    assert (tmp_path / "gallery.png").exists()
    assert [(r["method"], r["metric"]) for r in rows[2:]] == [
        ("exact", "memory, GB"),
        ("index", "memory, GB"),
    ]
    assert all(0.05 < r["value"] < 1.5 for r in rows[2:])
    with pytest.raises(SystemExit, match="failed"):
        commands(tiles, tmp_path / "none", tmp_path / "index", tmp_path, turns=1)
    assert "tmp" in capfd.readouterr().err


def test_windows_count_images_and_drop_those_that_warm_up():
    start = time.perf_counter()
    rates = gpu.windows(lambda: time.sleep(0.002), 5 * gpu.WINDOW, 8, "cpu")
    took = time.perf_counter() - start
    seconds = [8 * gpu.WINDOW / rate for rate in rates]
    assert len(seconds) == 5 - gpu.WARM
    assert min(seconds) >= 0.002 * gpu.WINDOW
    assert sum(seconds) < took


def test_rows_of_a_gpu_are_ratios_of_images_over_seconds():
    # Windows of as many images: 1/60 + 1/30 s for two, so 40 a second.
    bare, ours = gpu.rows_of("part", {"bare steps": [80, 80, 80], "ours": [60, 30]}, "work")
    assert (bare["value"], bare["low"], bare["high"]) == (1, 1, 1)
    assert ours["value"] == pytest.approx(0.5)
    assert (ours["low"], ours["high"]) == (0.375, 0.75)
    assert (ours["rate"], ours["n"], ours["versus"]) == (pytest.approx(40), 2, "bare steps")


def test_steps_from_slides_are_measured_by_the_log(slide_path):
    config = replace(gpu.settings(5), slides_per_batch=1, tiles_per_slide=4, log_every=1)
    tiles, _ = tile_slides([Slide(slide_path)], mpp=0.5, tile_px=32, progress=False)
    model = ModelConfig("resnet18", trunk="scratch", input_px=32)
    rates = gpu.from_slides(tiles, model, config, "cpu", compiled=False, workers=0)
    assert len(rates) == 5 - gpu.WARM
    assert min(rates) > 0
