"""Ours against ImageNet on real breast tissue (IDC), by the command line, over several seeds.

    python benchmarks/idc.py IDC_regular_ps50_idx5.zip --imagenet-weights mobilenet_v2.safetensors

Tiles, ImageNet features, training, descriptors and evaluation are the commands of the README. The
test patients are folds 0 and 1 of the fixed split, see `sslpath.table.split_by_patient`; the
settings were chosen on the others. Writes all rows, and a table of the means over seeds.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from sslpath.results import read_results, write_results

METRICS = ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median")


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip", type=Path)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("out/idc"))
    parser.add_argument("--out", type=Path, default=Path("data/results/idc.json"))
    options = parser.parse_args()
    work, tiles = options.work, options.work / "idc.parquet"
    features = work / "descriptors" / "imagenet"
    sslpath("tile", options.zip, "--out", tiles)
    sslpath("embed", tiles, "--encoder", "imagenet", "--arch", options.arch,
            "--imagenet-weights", options.imagenet_weights, "--out", features)  # fmt: skip
    rows = []
    for seed in range(options.seeds):
        run, ours = work / f"run-{seed}", work / "descriptors" / f"spatial-{seed}"
        sslpath("train", tiles, "--features", features, "--seed", seed, "--out", run)
        sslpath("embed", tiles, "--run", run, "--features", features, "--out", ours)
        result = work / f"results-{seed}.json"
        sslpath("evaluate", tiles, "--descriptors", f"spatial={ours}", f"imagenet={features}",
                "--seed", seed, "--data", "IDC, test patients", "--out", result)  # fmt: skip
        rows += read_results(result)
    write_results(options.out, rows)
    print(table(rows))


def sslpath(*words: object) -> None:
    """Run a command as a user would."""
    command = [sys.executable, "-m", "sslpath.cli", *map(str, words)]
    print("$ sslpath", *words, flush=True)
    subprocess.run(command, check=True)


def table(rows: list[dict[str, object]]) -> str:
    """Mean over seeds, and their standard deviation where they differ."""
    lines = [f"| method | {' | '.join(METRICS)} |", f"| --- |{' --- |' * len(METRICS)}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for metric in METRICS:
            found = [r["value"] for r in rows if (r["method"], r["metric"]) == (method, metric)]
            cells.append(f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}" if found else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
