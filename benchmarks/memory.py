"""Peak memory of tiling, embedding and training from slides, for 1, 10, 100 and 1,000 slides.

    python benchmarks/memory.py [--slides 1 10 100 1000] [--out FILE]

One phantom slide is linked under other names, so that all slides have the same tiles. Each command
runs as its user would run it, with two processes that read; meanwhile the memory of all its
processes is added up (Linux's proportional set size, which counts shared pages once).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from reliability import merge

from sslpath.datasets.phantom import make_phantom
from sslpath.results import row

TILE = ("--mpp", "0.5", "--tile-px", "64", "--min-tissue", "0.1", "--max-tiles", "300")
TRAIN = (
    *("--trunk", "scratch", "--arch", "resnet18", "--input-px", "64", "--steps", "20"),
    *("--slides-per-batch", "8", "--tiles-per-slide", "16"),
    *("--near-tiles", "2", "--far-tiles", "8"),
)


def peak_mib(words: list[Any]) -> float:
    """Run a command of sslpath; returns the most memory that all its processes had, MiB."""
    line = [sys.executable, "-m", "sslpath.cli", *map(str, words)]
    peak = 0
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody empties would stop it
        process = psutil.Popen(line, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, sum(_pss(p) for p in [process, *_children(process)]))
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(line)}: {said.read()[-2000:]}")
    return peak / 2**20


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
        return 0


def measure(slides: int, phantom: Path, work: Path) -> list[dict[str, Any]]:
    """Rows for a number of slides."""
    folder = work / f"{slides} slides"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "slides").mkdir(parents=True)
    for i in range(slides):
        (folder / "slides" / f"slide_{i:04d}.tif").hardlink_to(phantom)
    names = [path.stem for path in sorted((folder / "slides").iterdir())]
    patients = pd.DataFrame({"slide_id": names, "patient_id": names, "split": "train"})
    patients.to_csv(folder / "patients.csv", index=False)
    table, on = folder / "tiles.parquet", ["--device", "cpu", "--workers", 2]
    cut = [*TILE, "--patients", folder / "patients.csv", "--workers", 2]
    steps: dict[str, list[Any]] = {
        "tiling": ["tile", folder / "slides", *cut, "--out", table],
        "embedding": ["embed", table, "--encoder", "rgb", *on, "--out", folder / "rgb"],
        "training from slides": ["train", table, *TRAIN, *on, "--out", folder / "run"],
    }
    rows = []
    for name, words in steps.items():
        mib = peak_mib(words)
        print(f"{slides:4d} slides, {name}: {mib:,.0f} MiB", flush=True)
        data = "one phantom under many names, 300 tiles each"
        rows.append(row(name, "peak memory, MiB", mib, n=slides, data=data))
    shutil.rmtree(folder / "slides")
    return rows


def main() -> None:
    """Measure for each number of slides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--work", type=Path, default=Path("out/memory"))
    parser.add_argument("--out", type=Path, default=Path("data/results/reliability.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    phantom = make_phantom(options.work, "phantom", seed=0)
    rows = [one for slides in options.slides for one in measure(slides, phantom, options.work)]
    merge(options.out, rows)


if __name__ == "__main__":
    main()
