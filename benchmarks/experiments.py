"""Ours against its rivals: every method, held-out patients of real tissue and phantoms, seeds.

    python benchmarks/experiments.py idc ARCHIVE --imagenet-weights FILE [--seeds 0 1] [--only ...]
    python benchmarks/experiments.py phantoms FOLDER --imagenet-weights FILE

Each fold is the test set once, the others train; a query searches among the test tiles of its fold,
its own patient left out. Scores are pooled over the folds, intervals are by bootstrap over all
patients, differences are paired. Descriptors are kept in --work: what is there is not computed
again, so a run that was stopped goes on, and a new setting costs its own time only. Settings were
chosen with IDC's folds 2, 3 and 4 and with other phantoms (seed 1) alone; rows named "folds 0 and
1" rest on patients that no choice has seen, and none was made on the phantoms of this benchmark.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from methods import KINDS, LOSSES, OF_VIEWS, Setting
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tile_sets import PHANTOM_SEED, PHANTOM_SLIDES, Floats, Inputs, idc, phantoms
from tqdm import tqdm

from sslpath import metrics
from sslpath.files import atomic_path, write_json
from sslpath.metrics import Score
from sslpath.neighbours import neighbours, pair_distances, unit_length
from sslpath.pairs import near_far_um
from sslpath.results import hardware, read_results, row, versions, write_results
from sslpath.retrieval import slide_pairs
from sslpath.settings import DEPTHS_DROPOUT

# Of trunks that learn: on two CPU cores, and longer on a GPU.
TRUNK_BATCHES = {"steps": 500, "slides_per_batch": 16, "tiles_per_slide": 16}
LONG = {**TRUNK_BATCHES, "input_px": 224}
SETTINGS = {
    "imagenet": Setting("plain", "last"),
    "imagenet centred": Setting("centred", "last"),
    "imagenet PCA": Setting("pca", "last"),
    "imagenet PCA whitened": Setting("pca", "last", {"whiten": True}),
    "imagenet depths": Setting("scaled", "depths"),
    "rgb": Setting("plain", "rgb"),
    "spatial": Setting("spatial"),
    "spatial, last layer": Setting("spatial", "last"),
    "spatial, views": Setting("spatial", changes={"views": "elsewhere"}),
    **{
        # Both find more tumour without dropout, on IDC's folds 2, 3 and 4 as on other phantoms.
        loss + name: Setting("variant", changes={"loss": loss, "views": views, "dropout": 0.0})
        for name, views in (("", "view"), (", elsewhere", "elsewhere"))
        for loss in OF_VIEWS
    },
    "imagenet, grey": Setting("plain", "grey last"),
    "spatial, grey": Setting("spatial", "grey depths"),
    "imagenet, 112 px": Setting("plain", "112 px last"),
    "spatial, 112 px": Setting("spatial", "112 px depths"),
    "fine-tuned, 64 px": Setting(
        "learning trunk",
        changes={"trunk": "finetune", "arch": "mobilenet_v2", "input_px": 64, **TRUNK_BATCHES},
    ),
    "from scratch, 64 px": Setting(
        "learning trunk",
        changes={"trunk": "scratch", "arch": "resnet18", "input_px": 64, **TRUNK_BATCHES},
    ),
    "fine-tuned, 224 px": Setting(
        "learning trunk",
        changes={**LONG, "trunk": "finetune", "arch": "mobilenet_v2", "steps": 1200},
    ),
    "from scratch, 224 px": Setting(
        "learning trunk",
        changes={**LONG, "trunk": "scratch", "arch": "resnet18", "steps": 2500},
    ),
    "views, no twins": Setting("spatial", changes={"views": "elsewhere", "twins": 0.0}),
    "views, no twins, dropout": Setting(
        "spatial", changes={"views": "elsewhere", "twins": 0.0, "dropout": DEPTHS_DROPOUT}
    ),
    "spatial, views, hidden 96": Setting("spatial", changes={"views": "elsewhere", "hidden": 96}),
    "near 2": Setting("spatial", changes={"near_tiles": 2}),
    "near 4": Setting("spatial", changes={"near_tiles": 4}),
    "near 12": Setting("spatial", changes={"near_tiles": 12}),
    "near 30": Setting("spatial", changes={"near_tiles": 30}),
    "far 12": Setting("spatial", changes={"far_tiles": 12}),
    "far 20": Setting("spatial", changes={"far_tiles": 20}),
    "margin 0.8": Setting("spatial", changes={"margin": 0.8}),
    "margin 1.5": Setting("spatial", changes={"margin": 1.5}),
    "explicit pairs": Setting("spatial", changes={"pairs": "explicit"}),
    "8 slides a batch": Setting("spatial", changes={"slides_per_batch": 8}),
    "150 steps": Setting("spatial", changes={"steps": 150}),
    "800 steps": Setting("spatial", changes={"steps": 800}),
    "no dropout": Setting("spatial", changes={"dropout": 0.0}),
    "dropout 0.5": Setting("spatial", changes={"dropout": 0.5}),
    "dropout 0.5, margin 1.5": Setting("spatial", changes={"dropout": 0.5, "margin": 1.5}),
    "16 numbers": Setting("spatial", changes={"descriptor_dim": 16}),
    "64 numbers": Setting("spatial", changes={"descriptor_dim": 64}),
    "512 numbers": Setting("spatial", changes={"descriptor_dim": 512}),
    **{loss: Setting("variant", changes={"loss": loss}) for loss in LOSSES if loss not in OF_VIEWS},
}
# Others minus these, where they were run.
COMPARED = (
    *("imagenet", "SimCLR", "instance discrimination", "spatial"),
    *("SimCLR, elsewhere", "instance discrimination, elsewhere"),
)


def descriptors(inputs: Inputs, name: str, test_fold: int, seed: int) -> Floats:
    """Descriptors of a fold's test tiles by a method that learned from the other folds."""
    one, test = SETTINGS[name], inputs.folds == test_fold
    path = descriptors_path(inputs, name, test_fold, seed)
    if not path.exists():
        found = KINDS[one.kind](inputs, one, ~test, test, seed)
        path.parent.mkdir(exist_ok=True)
        write_json(path.with_suffix(".json"), {"hardware": hardware(), "versions": versions()})
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    stored: Floats = np.load(path)
    if len(stored) != test.sum():
        raise SystemExit(f"{path} has {len(stored)} descriptors of {test.sum()} tiles: delete it")
    return stored


def descriptors_path(inputs: Inputs, name: str, test_fold: int, seed: int) -> Path:
    """Where they are kept; named by the setting too, so that a changed one is computed anew."""
    key = hashlib.sha256(repr(SETTINGS[name]).encode()).hexdigest()[:8]
    return inputs.work / "descriptors" / f"{name} {key} fold {test_fold} seed {seed}.npy"


def described_on(inputs: Inputs, name: str, seed: int, folds: Sequence[int]) -> dict[str, Any]:
    """The machine that made descriptors, if it is another than this, which scores them."""
    files = [descriptors_path(inputs, name, fold, seed).with_suffix(".json") for fold in folds]
    told = [json.loads(file.read_text()) for file in files if file.exists()]
    other = [one for one in told if one["hardware"] != hardware()]
    return {"described_on": other[0]} if other else {}


def scores(inputs: Inputs, name: str, seed: int, folds: Sequence[int]) -> dict[str, Score]:
    """All metrics of a method, pooled over folds; labels are compared where they are known."""
    near_um, far_um = near_far_um(inputs.tiles, inputs.set.near_tiles, inputs.set.far_tiles)
    labels, answers, patients, near, far, owners = ([] for _ in range(6))
    for test_fold in folds:
        tiles = inputs.tiles[inputs.folds == test_fold].reset_index(drop=True)
        tiles.attrs = inputs.tiles.attrs
        unit = unit_length(descriptors(inputs, name, test_fold, seed))
        patient, known = tiles["patient_id"].to_numpy(object), tiles["label"].notna().to_numpy()
        label = tiles["label"][known].to_numpy(np.int64)
        found, _ = neighbours(unit[known], unit[known], patient[known], patient[known], 10)
        labels.append(label)
        answers.append(label[found])
        patients.append(patient[known])
        anchor, close, apart = slide_pairs(tiles, near_um, far_um, 0)[0].T
        near.append(pair_distances(unit, unit, anchor, close))
        far.append(pair_distances(unit, unit, anchor, apart))
        owners.append(patient[anchor])
    every = [np.concatenate(part) for part in (labels, answers, patients)]
    pairs = [np.concatenate(part) for part in (near, far, owners)]
    return {
        "tumour_top1": metrics.tumour_top1(*every),
        "tumour_p_at_10": metrics.precision_at_k(*every),
        "knn_auc": metrics.knn_auc(*every),
        "addr_global": metrics.addr_global(*pairs),
    }


def probe_rows(inputs: Inputs) -> list[dict[str, Any]]:
    """A linear classifier trained with all labels of the training patients: the ceiling's mark."""
    known = inputs.tiles["label"].notna().to_numpy()
    labels = inputs.tiles["label"][known].to_numpy(int)
    patients, folds = inputs.tiles["patient_id"].to_numpy(str)[known], inputs.folds[known]
    rows = []
    for features in ("last", "depths"):
        x, score = inputs[features][known], np.empty(len(labels))
        for test_fold in np.unique(folds):
            test = folds == test_fold
            mean, spread = x[~test].mean(axis=0), x[~test].std(axis=0) + 1e-6
            x_scaled = (x - mean) / spread
            fitted = LogisticRegression(C=1e-3, max_iter=1000).fit(x_scaled[~test], labels[~test])
            score[test] = fitted.decision_function(x_scaled[test])
        rng, names = np.random.default_rng(0), np.unique(patients)
        of = {name: np.flatnonzero(patients == name) for name in names}
        drawn = []
        for _ in range(500):
            some = np.concatenate([of[name] for name in rng.choice(names, len(names))])
            drawn.append(roc_auc_score(labels[some], score[some]))
        low, high = np.percentile(drawn, [2.5, 97.5])
        value = float(roc_auc_score(labels, score))
        rows.append(
            row(f"supervised probe, {features}", "auc", value, float(low), float(high),
                len(labels), 0, next(iter(inputs.set.results)), resamples=500)
        )  # fmt: skip
    return rows


def rows_of(inputs: Inputs, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Values and paired differences of methods, for all that the set of tiles is scored on."""
    rows = []
    for data, folds in inputs.set.results.items():
        found = {name: scores(inputs, name, seed, folds) for name in names}
        for name, measured in found.items():
            for metric, score in measured.items():
                low, high = score.interval() or (None, None)
                extra: dict[str, Any] = {"patients": len(score.patients)}
                extra |= described_on(inputs, name, seed, folds)
                rows.append(row(name, metric, score.value, low, high, score.n, seed, data, **extra))
                for versus in COMPARED:
                    if versus not in found or versus == name:
                        continue
                    value, ends = metrics.difference(score, found[versus][metric])
                    low, high = ends or (None, None)
                    extra = {**extra, "versus": versus}
                    label = f"{name} - {versus}"
                    rows.append(row(label, metric, value, low, high, score.n, seed, data, **extra))
    return rows


def main() -> None:
    """Run the methods, one seed after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["idc", "phantoms"])
    parser.add_argument("path", type=Path, help="IDC's archive, or where phantoms are kept")
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known = ", ".join(SETTINGS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", help=known)
    parser.add_argument(
        "--phantom-seed", type=int, default=PHANTOM_SEED,
        help="other phantoms; twins were chosen on those of 1 (another FOLDER and --work)",
    )  # fmt: skip
    parser.add_argument("--phantom-slides", type=int, default=PHANTOM_SLIDES, help="how many")
    parser.add_argument(
        "--folds", type=int, nargs="+",
        help="only these are test folds, and only results that need no other are recorded",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes that make phantoms")
    parser.add_argument(
        "--describe", action="store_true",
        help="only make the descriptors of --only, to be scored where --work is copied to",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    parser.add_argument("--out", type=Path, default=Path("data/results/experiments.json"))
    options = parser.parse_args()
    if options.data == "idc":
        tile_set = idc(options.path)
    else:
        tile_set = phantoms(
            options.path, options.phantom_slides, options.phantom_seed, options.workers
        )
    folds = sorted(options.folds or np.unique(tile_set.folds).tolist())
    if options.folds:
        results = {name: of for name, of in tile_set.results.items() if set(of) <= set(folds)}
        if folds != sorted({fold for of in results.values() for fold in of}):
            parser.error(f"the folds {folds} are not those of a result: {tile_set.results}")
        tile_set = replace(tile_set, results=results)
    inputs = Inputs(tile_set, options.imagenet_weights, options.work / options.data)
    names = [name for name in SETTINGS if options.only is None or name in options.only]
    if options.describe:
        for seed, name, test_fold in product(options.seeds, names, folds):
            descriptors(inputs, name, test_fold, seed)
        return
    names = list(dict.fromkeys(["imagenet", "spatial", *names]))
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in tqdm(names, f"seed {seed}"):
            for test_fold in folds:
                descriptors(inputs, name, test_fold, seed)
        rows += rows_of(inputs, names, seed)
    if options.folds is None:
        rows += probe_rows(inputs)
    again = {(r["method"], r["metric"], r["seed"], r["data"]) for r in rows}
    if options.out.exists():
        kept = [
            r for r in read_results(options.out)
            if (r["method"], r["metric"], r["seed"], r["data"]) not in again
        ]  # fmt: skip
        rows = kept + rows
    write_results(options.out, rows)
    print(summary(rows, next(iter(tile_set.results))))


def summary(rows: Sequence[dict[str, Any]], data: str) -> str:
    """A table of means over seeds, with the standard deviation where seeds differ."""
    found = pd.DataFrame([r for r in rows if r["data"] == data])
    by = found.groupby(["method", "metric"], sort=False)["value"]
    cell = by.mean().map("{:.3f}".format) + by.std().map(
        lambda sd: f" ± {sd:.3f}" if sd > 5e-4 else ""
    )
    table = cell.reset_index().pivot_table("value", "method", "metric", aggfunc="first")
    return str(table.reindex(found["method"].unique()).fillna("").to_string())


if __name__ == "__main__":
    main()
