"""The benchmark of speed: ratios, and the processes that packages run in."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from speed import NAMES, Worker, take_turns, together


def test_a_way_that_takes_twice_as_long_has_half_the_rate():
    ways = {"one": lambda: time.sleep(0.05), "twice": lambda: time.sleep(0.1)}
    rows = {row["method"]: row for row in take_turns("sleep", ways, 10, "naps")}
    assert rows["one"]["value"] == 1
    assert rows["twice"]["low"] <= rows["twice"]["value"] <= rows["twice"]["high"]
    assert rows["twice"]["value"] == pytest.approx(0.5, abs=0.2)
    assert rows["one"]["rate"] == pytest.approx(200, rel=0.5)
    assert rows["twice"]["versus"] == "one"


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
