"""How far a descriptor moves when the picture changes and the tissue does not; and the slide in it.

    python benchmarks/robustness.py ARCHIVE --imagenet-weights FILE [--seeds 0]

Each test tile is changed as another laboratory or scanner would change it, and looked for among the
tiles of its fold as they were:

- twin: how often is the tile itself, as it was, the nearest of all, its own patient's too?
- p_at_10: as in the comparison, the share of tumour among the ten nearest of other patients.
- own_patient: how many of the ten nearest of an unchanged tile are of its own patient, where fewer
  are better.

Shares with intervals over patients, five folds pooled. The networks are those of
`benchmarks/experiments.py` for the same folds and seeds, from the same --work.
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from experiments import SETTINGS
from methods import configs, trained
from numpy.typing import NDArray
from PIL import Image
from tile_sets import Floats, Inputs, idc

from sslpath.augment import HED
from sslpath.metrics import Score, precision_at_k
from sslpath.model import SiameseNetwork
from sslpath.neighbours import neighbours, unit_length
from sslpath.results import read_results, row, write_results

Pixels = NDArray[np.uint8]


def stain(pixels: Pixels) -> Pixels:
    """A third more haematoxylin and a third less eosin, as another laboratory may stain."""
    basis = F.normalize(torch.tensor(HED), dim=1).numpy()
    density = -np.log10(np.maximum(pixels / 255, 1 / 255))
    amounts = density @ np.linalg.inv(basis) * (1.3, 0.7, 1.0)
    return (255 * 10 ** -(amounts @ basis)).clip(0, 255).round().astype(np.uint8)


def blur(pixels: Pixels) -> Pixels:
    """Lost focus: a Gaussian of one pixel."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return torchvision.transforms.functional.gaussian_blur(x, 7, 1.0).permute(0, 2, 3, 1).numpy()


def jpeg(pixels: Pixels) -> Pixels:
    """Stored as JPEG of quality 30."""
    changed = []
    for tile in pixels:
        buffer = BytesIO()
        Image.fromarray(tile).save(buffer, "JPEG", quality=30)
        changed.append(np.asarray(Image.open(buffer)))
    return np.stack(changed)


def scale(pixels: Pixels) -> Pixels:
    """A scanner whose pixels are a tenth finer than its file says: the middle, enlarged."""
    side, margin = pixels.shape[1], round(pixels.shape[1] * 0.05)
    x = torch.from_numpy(pixels[:, margin:-margin, margin:-margin]).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "stain": stain, "blur": blur, "jpeg": jpeg, "scale": scale,
}  # fmt: skip


def share(values: NDArray[Any], patients: NDArray[Any]) -> Score:
    """A mean over tiles that can be bootstrapped over patients."""
    names, of = np.unique(patients, return_inverse=True)
    totals = np.stack([np.bincount(of, values), np.bincount(of)], axis=1).astype(float)
    return Score(names, totals, lambda t: t[..., 0] / t[..., 1], len(values))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    parser.add_argument("--out", type=Path, default=Path("data/results/robustness.json"))
    options = parser.parse_args()
    inputs = Inputs(idc(options.archive), options.imagenet_weights, options.work / "idc")
    changed = {name: inputs.depths(f"twin {name}", make) for name, make in CHANGES.items()}
    rows = [row for seed in options.seeds for row in rows_of(inputs, changed, seed)]
    if options.out.exists():
        again = {(r["method"], r["metric"], r["seed"], r["data"]) for r in rows}
        old = read_results(options.out)
        rows += [r for r in old if (r["method"], r["metric"], r["seed"], r["data"]) not in again]
    write_results(options.out, rows)


def rows_of(inputs: Inputs, changed: dict[str, Floats], seed: int) -> list[dict[str, Any]]:
    """All measures of all methods, pooled over the folds."""
    every, tiles = inputs["depths"], inputs.tiles
    patients, labels = tiles["patient_id"].to_numpy(str), tiles["label"].to_numpy(int)
    own: dict[str, Floats] = {"chance": np.empty(len(tiles), np.float32)}
    right: dict[tuple[str, str], Floats] = {}
    answers: dict[tuple[str, str], NDArray[Any]] = {}
    for test_fold in np.unique(inputs.folds):
        at = np.flatnonzero(inputs.folds == test_fold)
        patient, label = patients[at], labels[at]
        of = np.unique(patient, return_inverse=True, return_counts=True)
        own["chance"][at] = (of[2][of[1]] - 1) / (len(at) - 1)
        for name, describe in methods_of(inputs, inputs.folds == test_fold, seed).items():
            clean, itself = unit_length(describe(every[at])), np.arange(len(at))
            found, _ = neighbours(clean, clean, itself, itself, 10)
            same = (patient[found] == patient[:, None]).mean(axis=1)
            own.setdefault(name, np.empty(len(tiles), np.float32))[at] = same
            for change, features in {"none": every, **changed}.items():
                key, seen = (name, change), unit_length(describe(features[at]))
                found, _ = neighbours(seen, clean, k=1)
                right.setdefault(key, np.empty(len(tiles), np.float32))[at] = found[:, 0] == itself
                found, _ = neighbours(seen, clean, patient, patient, 10)
                answers.setdefault(key, np.empty((len(tiles), 10), int))[at] = label[found]
    data = next(iter(inputs.set.results))
    rows = [result(name, "own_patient", share(x, patients), seed, data) for name, x in own.items()]
    for (name, change), found in answers.items():
        score = precision_at_k(labels, found, patients)
        rows.append(result(name, f"p_at_10_{change}", score, seed, data))
        if change != "none":
            score = share(right[name, change], patients)
            rows.append(result(name, f"twin_{change}", score, seed, data))
    return rows


def methods_of(
    inputs: Inputs, test: NDArray[np.bool_], seed: int
) -> dict[str, Callable[[Floats], Floats]]:
    """What turns features of all depths into descriptors, for each method."""
    scaler = SiameseNetwork(configs(inputs, SETTINGS["spatial"], seed)[1])
    scaler.fit_scale(torch.from_numpy(inputs["depths"][~test]))
    heads = {
        name: trained(inputs, SETTINGS[name], test, seed).encode
        for name in ("spatial", "spatial, views")
    }
    return {
        "imagenet": lambda x: x[:, -1280:],
        "imagenet depths": lambda x: ((torch.from_numpy(x) - scaler.centre) / scaler.scale).numpy(),
        **heads,
    }


def result(method: str, metric: str, score: Score, seed: int, data: str) -> dict[str, Any]:
    """A row."""
    low, high = score.interval() or (None, None)
    return row(method, metric, score.value, low, high, score.n, seed, data)


if __name__ == "__main__":
    main()
