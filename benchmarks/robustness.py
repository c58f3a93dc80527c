"""How far a descriptor moves when the picture changes and the tissue does not; and the slide in it.

    python benchmarks/robustness.py ARCHIVE --imagenet-weights FILE [--seed 0] [--only-fold 0]

Each test tile is changed as another laboratory or scanner would change it. Its twin, the tile as it
was, stands among all tiles of the fold, its own patient's too: how often is the twin the nearest?
And how many of a tile's ten nearest are of its own patient, where fewer are better? Shares with
intervals over patients. The network is that of `benchmarks/experiments.py` for the same fold and
seed, from the same --work.
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
from tile_sets import Inputs, idc

from sslpath.augment import HED
from sslpath.metrics import Score
from sslpath.model import SiameseNetwork
from sslpath.neighbours import neighbours, unit_length
from sslpath.results import read_results, row, write_results
from sslpath.sources import open_source

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-fold", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/experiments/idc"))
    parser.add_argument("--out", type=Path, default=Path("data/results/robustness.json"))
    options = parser.parse_args()
    inputs = Inputs(idc(options.archive), options.imagenet_weights, options.work)
    test = inputs.folds == options.only_fold
    tiles = inputs.tiles[test]
    pixels = open_source(inputs.tiles).read(tiles)
    patients = tiles["patient_id"].to_numpy(str)

    every = inputs["depths"]
    scaler = SiameseNetwork(configs(inputs, SETTINGS["spatial"], options.seed)[1])
    scaler.fit_scale(torch.from_numpy(every[~test]))
    head = trained(inputs, SETTINGS["spatial"], test, options.seed)
    methods: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "imagenet": lambda x: x[:, -1280:],
        "imagenet depths": lambda x: ((torch.from_numpy(x) - scaler.centre) / scaler.scale).numpy(),
        "spatial": head.encode,
    }
    clean = {name: unit_length(of(every[test])) for name, of in methods.items()}
    data = f"IDC, fold {options.only_fold}"
    rows = []
    for name, unit in clean.items():
        itself = np.arange(len(unit))
        found, _ = neighbours(unit, unit, itself, itself, 10)
        rows.append(result(name, "own_patient", (patients[found] == patients[:, None]).mean(1),
                           patients, options.seed, data))  # fmt: skip
    sizes = np.unique(patients, return_inverse=True, return_counts=True)
    chance = (sizes[2][sizes[1]] - 1) / (len(patients) - 1)
    rows.append(result("chance", "own_patient", chance, patients, options.seed, data))
    for change, make in CHANGES.items():
        features = inputs.encoder.encode(make(pixels))
        for name, of in methods.items():
            found, _ = neighbours(unit_length(of(features)), clean[name], k=1)
            right = found[:, 0] == np.arange(len(found))
            rows.append(result(name, f"twin_{change}", right, patients, options.seed, data))
            print(rows[-1]["method"], rows[-1]["metric"], f"{rows[-1]['value']:.3f}", flush=True)
    if options.out.exists():
        again = {(r["method"], r["metric"], r["seed"], r["data"]) for r in rows}
        old = read_results(options.out)
        rows += [r for r in old if (r["method"], r["metric"], r["seed"], r["data"]) not in again]
    write_results(options.out, rows)


def result(
    method: str, metric: str, values: NDArray[Any], patients: NDArray[Any], seed: int, data: str
) -> dict[str, Any]:
    """A row."""
    score = share(values, patients)
    low, high = score.interval() or (None, None)
    return row(method, metric, score.value, low, high, score.n, seed, data)


if __name__ == "__main__":
    main()
