"""The whole experiment, killed at random moments, ends as if it had never been disturbed.

``SSLPATH_KILLS=100 pytest tests/test_kills.py`` is the stress test; by default a few must do.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from camelyon import SMALL, draw_images, newer, random_weights
from conftest import HANG_S
from safetensors.numpy import load_file
from servers import Bucket, serving

from sslpath.results import read_results
from sslpath.table import load_tiles

KILLS = int(os.environ.get("SSLPATH_KILLS", "3"))
EACH = 6  # kills of one experiment


def start(bucket: Bucket, folder: Path, weights: Path) -> "subprocess.Popen[bytes]":
    words = [
        *("reproduce", "camelyon16", "--config", "paper", "--url", bucket.url, *SMALL),
        *("--data", folder / "c16", "--out", folder / "out", "--imagenet-weights", weights),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "sslpath.cli", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[bytes]") -> None:
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said.decode()[-3000:]


def test_an_experiment_killed_at_random_moments_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    files = newer(draw_images(tmp_path / "slides"))
    weights = random_weights(tmp_path / "resnet18.pth")
    draw = random.Random(3)
    with serving(files) as bucket:
        began = time.monotonic()
        process = start(bucket, tmp_path / "whole", weights)
        while process.poll() is None and step(tmp_path / "whole") != "evaluating":
            time.sleep(0.05)
        # Kills fall into every step on any machine; evaluation is long, and writes only at its end.
        longest_s = 1.3 * (time.monotonic() - began)
        finish(process)
        done, begun = 0, 0
        while done < KILLS:
            begun += 1
            folder = tmp_path / f"killed {begun}"
            # A few kills each, then it may finish: the last step is killed no more than others.
            for _ in range(min(EACH, KILLS - done)):
                process = start(bucket, folder, weights)
                time.sleep(draw.uniform(0, longest_s))
                if process.poll() is not None:
                    break  # it was finished before the kill: another one
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                done += 1
                print(f"killed in: {step(folder)}")
            finish(start(bucket, folder, weights))
            same(tmp_path / "whole", folder)
            print(f"{done} kills, {begun} experiments: the same")


def step(folder: Path) -> str:
    """What an experiment was at when it was killed, by what it had not finished."""
    last = {
        "downloading": "c16/slides.csv", "tiling": "out/tiles.parquet",
        "preparing": "out/run/config.json", "training": "out/run/checkpoint.safetensors",
        "embedding": "out/spatial/test_114.h5",
    }  # fmt: skip
    return next((name for name, file in last.items() if not (folder / file).exists()), "evaluating")


def same(whole: Path, killed: Path) -> None:
    """Two finished experiments agree in every file, and nothing else is left."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole, killed)
    ]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        a, b = whole / name, killed / name
        if name.startswith("c16/") and name != "c16/slides.csv":
            assert a.read_bytes() == b.read_bytes(), name
        elif a.suffix == ".parquet":
            pd.testing.assert_frame_equal(load_tiles(a), load_tiles(b))
        elif a.suffix == ".h5":
            with h5py.File(a) as one, h5py.File(b) as other:
                for key in ("features", "coords"):
                    np.testing.assert_array_equal(one[key][...], other[key][...], name)
        elif a.suffix == ".safetensors":
            one, other = load_file(a), load_file(b)
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], f"{name}: {key}")
        elif name == "out/results.json":
            results = [
                [
                    (r["method"], r["metric"], r["value"])
                    for r in read_results(path)
                    if r["metric"] != "query_us"  # a time
                ]
                for path in (a, b)
            ]
            assert results[0] == results[1]
