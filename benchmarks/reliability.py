"""What sslpath survives, for the page of the book: bad inputs, bad servers, kills.

    python benchmarks/reliability.py inputs|servers|kills [--kills 100] [--out FILE]

``inputs`` tries each case of tests/bad_inputs.py and tests/odd_inputs.py and notes what comes of it
and what the user is told; ``servers`` downloads from a server on localhost whose faults are drawn
at random; ``kills`` runs tests/test_kills.py, which kills the whole experiment at random moments.
The other figures of the page come from benchmarks/fuzz.py and benchmarks/memory.py.
"""

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from sslpath.datasets.bucket import Remote, download_all
from sslpath.results import read_results, row, write_results

TESTS = Path(__file__).resolve().parents[1] / "tests"
FAULTS = ("cut", "503", "wrong", "slow")


def merge(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into a results file in the place of those of the same method, metric and n."""
    again = {(r["method"], r["metric"], r["n"]) for r in rows}
    kept = read_results(path) if path.exists() else []
    kept = [r for r in kept if (r["method"], r["metric"], r["n"]) not in again]
    write_results(path, kept + rows)


def inputs() -> list[dict[str, Any]]:
    """Try each bad input; a row each, with the message less the folder."""
    from bad_inputs import CASES

    rows = []
    for case in tqdm(CASES, "bad inputs"):
        if "permission" in case.name and os.geteuid() == 0:
            continue  # root may read every file
        with tempfile.TemporaryDirectory() as folder:
            try:
                case.use(Path(folder))
            except case.error as error:
                said = str(error).replace(f"{folder}/", "").replace(folder, "the folder")
                extra = {"error": case.error.__name__, "said": said}
                rows.append(row(f"bad input: {case.name}", "refused", 1, n=1, **extra))
                continue
        sys.exit(f"{case.name} was not refused")
    return rows + odd_inputs()


def odd_inputs() -> list[dict[str, Any]]:
    """Try each odd input; a row each, with what came of it and the warning less the folder."""
    from odd_inputs import CASES

    rows = []
    for case in tqdm(CASES, "odd inputs"):
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            found = case.use(Path(folder))
        said = " ".join(str(one.message) for one in warned)
        if found != case.gives or bool(said) != bool(case.warns):
            sys.exit(f"{case.name} gave {found!r}, and said {said!r}")
        said = said.replace(f"{folder}/", "").replace(folder, "the folder")
        rows.append(row(f"odd input: {case.name}", "read", 1, n=1, gives=str(found), said=said))
    return rows


def servers(files: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """Download from a server with faults at random; a row for each kind that was survived."""
    from servers import serving

    rng = random.Random(seed)
    bodies = {f"C/images/normal_{i:03d}.tif": rng.randbytes(100_000) for i in range(files)}
    sums = {Path(k).name: hashlib.sha256(v).hexdigest() for k, v in bodies.items()}
    with serving(bodies) as bucket, tempfile.TemporaryDirectory() as folder:
        # A wrong byte is found when the file is whole; it is fetched once more. So faults drawn for
        # a file that is whole by then are never met, and not counted.
        drawn = {k: [f for f in rng.sample(FAULTS, 3) if rng.random() < 0.7] for k in bodies}
        bucket.faults = {k: list(v) for k, v in drawn.items()}
        every = [Remote(k, len(v)) for k, v in bodies.items()]
        lost = download_all(every, bucket.url, "C/", folder, checksums=sums, wait_s=0.01)
        if lost:
            sys.exit(f"lost: {lost}")
        same = [(Path(folder) / k.removeprefix("C/")).read_bytes() == v for k, v in bodies.items()]
        if not all(same) or len(list(Path(folder).rglob("*.*"))) != files:
            sys.exit("the files that came are not those of the server")
        met = Counter(chain(*drawn.values())) - Counter(chain(*bucket.faults.values()))
    return [
        row(
            f"server: {kind}",
            "faults survived",
            met[kind],
            n=files,
            seed=seed,
            data="random bytes, 100 kB a file",
            unit="files",
        )
        for kind in FAULTS
    ]


def kills(count: int) -> list[dict[str, Any]]:
    """Run the test of kills with so many."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", str(TESTS / "test_kills.py")],
        env={**os.environ, "SSLPATH_KILLS": str(count)}, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-2000:], done.stderr[-2000:])
    found = re.findall(r"(\d+) kills, (\d+) experiments: the same", done.stdout)
    if done.returncode or not found:
        sys.exit("an experiment did not end the same")
    made, experiments = map(int, found[-1])
    steps = pd.Series(re.findall(r"killed in: (\w+)", done.stdout)).value_counts()
    about = {"data": "Camelyon16 in miniature, from download to table", "unit": "experiments"}
    counts = {"kill -9": made} | {f"kill -9, while {step}": int(n) for step, n in steps.items()}
    return [row(k, "kills survived", n, n=experiments, **about) for k, n in counts.items()]


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["inputs", "servers", "kills"])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("data/results/reliability.json"))
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    if options.part == "kills":
        rows = kills(options.kills)
    else:
        rows = inputs() if options.part == "inputs" else servers()
    merge(options.out, rows)
    print(f"{options.part}: {len(rows)} rows in {options.out}")


if __name__ == "__main__":
    main()
