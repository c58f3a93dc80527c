"""How the defaults of the frozen head were chosen: one setting changed at a time, on IDC.

    python benchmarks/tune_head.py --idc ZIP --imagenet-weights FILE [--seeds 3] [--only hidden lr]

Folds 0 and 1 of the patients are the test set: this script never looks at them. Each of folds 2, 3
and 4 is the validation set once, the other two train. Tumour P@10 and kNN AUC (k = 10), cosine,
the query's patient left out; `validation 4` is fold 4 alone. Features are computed once and kept
in --cache.
"""

import argparse
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sslpath.datasets.idc import idc_tiles
from sslpath.files import atomic_path, sha256
from sslpath.imagenet import load_imagenet
from sslpath.metrics import knn_auc, precision_at_k
from sslpath.model import ModelConfig
from sslpath.neighbours import neighbours, unit_length
from sslpath.sources import open_source
from sslpath.table import fold
from sslpath.training import TrainConfig, train

VALIDATION = (4, 2, 3)
GRID: dict[str, tuple[Any, ...]] = {
    "lr": (1e-3,),
    "dropout": (0.2,),
    "slides_per_batch": (8,),
    "pairs": ("explicit",),
    "near_tiles": (12,),
    "far_tiles": (20,),
    "margin": (0.8, 1.5),
    "steps": (75, 300),
    "hidden": (256, 2048),
    "weight_decay": (0.3,),
    "descriptor_dim": (64, 256),
}


def cached_features(tiles: pd.DataFrame, weights: Path, cache: Path) -> NDArray[np.float32]:
    """MobileNetV2 features of the tiles at 224 px, computed once."""
    path = cache / f"idc-{len(tiles)}-{sha256(weights)[:12]}.npy"
    if not path.exists():
        source, encoder = open_source(tiles), load_imagenet("mobilenet_v2", weights)
        starts = range(0, len(tiles), 256)
        parts = [encoder.encode(source.read(tiles.iloc[i : i + 256])) for i in starts]
        with atomic_path(path) as temporary:
            np.save(temporary, np.concatenate(parts))
    features: NDArray[np.float32] = np.load(path)
    return features


def score(tiles: pd.DataFrame, descriptors: NDArray[np.float32]) -> tuple[float, float]:
    """Tumour P@10 and kNN AUC with the patient left out."""
    z, patient = unit_length(descriptors), tiles["patient_id"].to_numpy(str)
    labels = tiles["label"].to_numpy(np.int64)
    nearest, _ = neighbours(z, z, patient, patient, k=10)
    found = labels[nearest]
    return (
        precision_at_k(labels, found, patient).value,
        knn_auc(labels, found, patient).value,
    )


def trial(
    tiles: pd.DataFrame,
    features: NDArray[np.float32],
    config: TrainConfig,
    model: ModelConfig,
    seeds: int,
) -> NDArray[np.float64]:
    """Scores and seconds of each seed and validation fold, shape ``(seeds, folds, 3)``."""
    folds = tiles["patient_id"].map(fold).to_numpy()
    result = np.empty((seeds, len(VALIDATION), 3))
    for seed in range(seeds):
        for i, validation in enumerate(VALIDATION):
            split = tiles.assign(split=np.where(folds == validation, "validation", "train"))
            split.attrs = tiles.attrs
            with tempfile.TemporaryDirectory() as run:
                start = time.perf_counter()
                network = train(
                    split, replace(config, seed=seed), model, run,
                    features=features, progress=False,
                )  # fmt: skip
                seconds = time.perf_counter() - start
            held_out = folds == validation
            found = score(tiles[held_out], network.encode(features[held_out]))
            result[seed, i] = (*found, seconds)
    return result


def report(name: str, result: NDArray[np.float64]) -> None:
    """One row: mean over folds, spread over seeds, and the one validation fold."""
    mean, spread = result.mean(axis=(0, 1)), result.mean(axis=1).std(axis=0)
    four = result[:, 0].mean(axis=0)
    print(
        f"| {name} | {mean[0]:.3f} ({spread[0]:.3f}) | {mean[1]:.3f} ({spread[1]:.3f}) "
        f"| {four[0]:.3f} | {four[1]:.3f} | {mean[2]:.1f} |",
        flush=True,
    )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idc", type=Path, required=True)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("out/tune_head"))
    parser.add_argument("--seeds", type=int, default=3)
    # On busy cores several threads mostly wait for each other; with one, times can be compared.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help=f"settings to vary, of: {', '.join(GRID)}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tiles = idc_tiles(options.idc)
    features = cached_features(tiles, options.imagenet_weights, options.cache)
    inner = tiles["patient_id"].map(fold).isin(VALIDATION).to_numpy()
    attrs, tiles, features = tiles.attrs, tiles[inner].reset_index(drop=True), features[inner]
    tiles.attrs = attrs

    print("| setting | P@10 (SD of seeds) | AUC (SD) | validation 4 P@10 | AUC | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    folds = tiles["patient_id"].map(fold).to_numpy()
    plain = [(*score(tiles[folds == v], features[folds == v]), 0.0) for v in VALIDATION]
    report("ImageNet features", np.array([plain]))
    config, model = TrainConfig(), ModelConfig(arch="mobilenet_v2")
    names = {each.name for each in fields(TrainConfig)}
    report("defaults", trial(tiles, features, config, model, options.seeds))
    for key, values in GRID.items():
        if options.only is not None and key not in options.only:
            continue
        for value in values:
            one = replace(config, **{key: value}) if key in names else config
            other = model if key in names else replace(model, **{key: value})
            report(f"{key} {value}", trial(tiles, features, one, other, options.seeds))


if __name__ == "__main__":
    main()
