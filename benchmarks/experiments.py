"""Ours against its rivals on real tissue: every method, five folds of patients, several seeds.

    python benchmarks/experiments.py ARCHIVE --imagenet-weights FILE [--seeds 0 1] [--only NAME]

Each fifth of the patients (by the hash of `sslpath.table.fold`) is the test set once, the others
train; a query searches among the test tiles of its fold, its own patient left out. Scores are
pooled over the folds, intervals are by bootstrap over all patients, differences are paired.
Descriptors are kept in --work: what is there is not computed again, so a run that was stopped goes
on, and a new setting costs its own time only. Settings were chosen with folds 2, 3 and 4 alone;
rows named "folds 0 and 1" rest on patients that no choice has seen.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from sslpath import metrics
from sslpath.augment import augment
from sslpath.datasets.idc import idc_tiles
from sslpath.descriptors import rgb_features
from sslpath.files import atomic_path
from sslpath.imagenet import Encoder, load_imagenet
from sslpath.metrics import Score
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss
from sslpath.neighbours import neighbours, pair_distances, unit_length
from sslpath.pairs import near_far_um
from sslpath.results import read_results, row, write_results
from sslpath.retrieval import slide_pairs
from sslpath.settings import DEPTHS_DROPOUT, TrainConfig, default_config
from sslpath.sources import open_source
from sslpath.table import fold
from sslpath.training import learning_rate, train

Floats = NDArray[np.float32]
VIEWS = 5  # augmented views of each tile, for generic self-supervision
FOLDS = range(5)
UNSEEN = (0, 1)  # folds that no setting was chosen on


@dataclass(frozen=True)
class Setting:
    """A method.

    Attributes:
        kind: How its descriptors come about: a key of ``KINDS``.
        features: What goes in: ``last`` or ``depths``, of the tiles as they are; ``grey depths``
            and ``grey last``, of the tiles without colour; ``rgb``.
        changes: Settings of training or of the head.
    """

    kind: str
    features: str = "depths"
    changes: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    "imagenet": Setting("plain", "last"),
    "imagenet centred": Setting("centred", "last"),
    "imagenet PCA": Setting("pca", "last"),
    "imagenet PCA whitened": Setting("pca", "last", {"whiten": True}),
    "imagenet depths": Setting("scaled", "depths"),
    "rgb": Setting("plain", "rgb"),
    "spatial": Setting("spatial"),
    "spatial, last layer": Setting("spatial", "last"),
    "instance discrimination": Setting("own", changes={"loss": "contrastive"}),
    "SimCLR": Setting("own", changes={"loss": "simclr"}),
    "imagenet, grey": Setting("plain", "grey last"),
    "spatial, grey": Setting("spatial", "grey depths"),
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
    "16 numbers": Setting("spatial", changes={"descriptor_dim": 16}),
    "64 numbers": Setting("spatial", changes={"descriptor_dim": 64}),
    "512 numbers": Setting("spatial", changes={"descriptor_dim": 512}),
}
MAIN = tuple(SETTINGS)[:12]
COMPARED = ("imagenet", "SimCLR", "instance discrimination", "spatial")  # others minus these


class Inputs:
    """Tiles of IDC, and features of them that are computed once and kept."""

    def __init__(self, archive: Path, weights: Path, work: Path, input_px: int = 224) -> None:
        self.work, self.weights, self.input_px = work, weights, input_px
        work.mkdir(parents=True, exist_ok=True)
        self.tiles = idc_tiles(archive, progress=False)
        self.folds = self.tiles["patient_id"].map(fold).to_numpy()
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """MobileNetV2 with features of every depth; its last 1280 are those of the last layer."""
        if self._encoder is None:
            self._encoder = load_imagenet("mobilenet_v2", self.weights, self.input_px, depths=True)
        return self._encoder

    def __getitem__(self, name: str) -> Floats:
        kind = name.removesuffix(" last").removesuffix("last").removesuffix("depths").strip()
        if name == "rgb":
            return self._kept("rgb", rgb_features)
        grey: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = without_colour
        change = grey if kind == "grey" else None
        every = self.depths(f"{kind} depths".strip(), change)
        return every[:, -1280:] if name.endswith("last") else every

    def depths(
        self, name: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    ) -> Floats:
        """Features of all depths of the tiles, changed in some way or not."""
        return self._kept(name, lambda x: self.encoder.encode(x if change is None else change(x)))

    def view(self, k: int) -> Floats:
        """The same of an augmented view of each tile."""
        generator = torch.Generator().manual_seed(1000 + k)
        return self.depths(f"view {k}", lambda x: augmented(x, generator))

    def _kept(self, name: str, compute: Callable[[NDArray[np.uint8]], Floats]) -> Floats:
        path = self.work / f"features {name}.npy"
        if not path.exists():
            source, parts = open_source(self.tiles), []
            for start in tqdm(range(0, len(self.tiles), 128), f"features: {name}"):
                parts.append(compute(source.read(self.tiles.iloc[start : start + 128])))
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(parts))
        features: Floats = np.load(path)
        return features


def augmented(pixels: NDArray[np.uint8], generator: torch.Generator) -> NDArray[np.uint8]:
    """One augmented view of each tile, uint8 ``(n, h, w, 3)``."""
    views = augment(torch.from_numpy(pixels).permute(0, 3, 1, 2), generator)
    return (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def without_colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tiles in grey, every one with the same mean and spread: neither stain nor density."""
    grey = pixels.astype(np.float32).mean(axis=3, keepdims=True)
    spread = grey.std(axis=(1, 2), keepdims=True)
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) / np.maximum(spread, 1.0)
    return np.repeat((170 + 30 * grey).clip(0, 255).astype(np.uint8), 3, axis=3)


# How descriptors come about: (inputs, setting, train, test, seed) to descriptors of the test rows.


def plain(inputs: Inputs, one: Setting, train: Any, test: Any, seed: int) -> Floats:
    """The features as they are."""
    return inputs[one.features][test]


def centred(inputs: Inputs, one: Setting, train: Any, test: Any, seed: int) -> Floats:
    """Less the mean of the training tiles."""
    x = inputs[one.features]
    return x[test] - x[train].mean(axis=0)


def pca(inputs: Inputs, one: Setting, train: Any, test: Any, seed: int) -> Floats:
    """128 principal components of the training tiles."""
    x = inputs[one.features]
    fitted = PCA(128, random_state=0, whiten=one.changes.get("whiten", False)).fit(x[train])
    return np.asarray(fitted.transform(x[test]), np.float32)


def scaled(inputs: Inputs, one: Setting, train: Any, test: Any, seed: int) -> Floats:
    """As a head gets them before it learns: each depth equally loud."""
    x = torch.from_numpy(inputs[one.features])
    head = SiameseNetwork(configs(inputs, one, seed)[1])
    head.fit_scale(x[train])
    return ((x[test] - head.centre) / head.scale).numpy()


def configs(inputs: Inputs, one: Setting, seed: int) -> tuple[TrainConfig, ModelConfig]:
    """Settings of training and of the head."""
    deep = one.features.endswith("depths")
    about = {k: v for k, v in inputs.encoder.provenance.items() if deep or k != "blocks"}
    config = replace(default_config("frozen", depths=deep), seed=seed)
    model = ModelConfig(
        arch=inputs.encoder.arch,
        feature_dim=inputs[one.features].shape[1],
        dropout=DEPTHS_DROPOUT if deep else 0.0,
        encoder=about,
    )
    of_training = {k: v for k, v in one.changes.items() if hasattr(config, k)}
    of_model = {k: v for k, v in one.changes.items() if hasattr(model, k)}
    return replace(config, **of_training), replace(model, **of_model)


def spatial(inputs: Inputs, one: Setting, train_rows: Any, test: Any, seed: int) -> Floats:
    """The method: a head that learns from near and far pairs."""
    return trained(inputs, one, test, seed).encode(inputs[one.features][test])


def trained(inputs: Inputs, one: Setting, test: Any, seed: int) -> SiameseNetwork:
    """The head of a fold; a finished run is read, not trained again."""
    tiles = inputs.tiles.copy()
    tiles["split"] = np.where(test, "test", "train")
    config, model = configs(inputs, one, seed)
    name = f"{one.features} {sorted(one.changes.items())} fold {inputs.folds[test][0]} seed {seed}"
    return train(
        tiles, config, model, inputs.work / "runs" / name,
        features=inputs[one.features], device="cpu", progress=False,
    )  # fmt: skip


def own_views(inputs: Inputs, one: Setting, train_rows: Any, test: Any, seed: int) -> Floats:
    """Generic self-supervision: the partner of a tile is another augmented view of itself.

    The same head, optimiser, steps and features a step as ``spatial``: half as many tiles, two
    views each.
    """
    changes = {k: v for k, v in one.changes.items() if k != "loss"}
    config, model = configs(inputs, replace(one, changes=changes), seed)
    rows = np.flatnonzero(train_rows)
    views = torch.stack([torch.from_numpy(inputs.view(k)[rows]) for k in range(VIEWS)])
    torch.manual_seed(seed)
    rng, head = np.random.default_rng(seed), SiameseNetwork(model)
    head.fit_scale(torch.from_numpy(inputs["depths"][rows]))
    patient = pd.factorize(inputs.tiles["patient_id"].to_numpy()[rows])[0]
    matrices = [p for p in head.parameters() if p.ndim > 1]
    rest = [p for p in head.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(matrices, weight_decay=config.weight_decay)
    optimiser.add_param_group({"params": rest, "weight_decay": 0.0})
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        some = rng.permutation(patient.max() + 1)[: config.slides_per_batch]
        batch = np.concatenate(
            [rng.permutation(np.flatnonzero(patient == p))[: config.tiles_per_slide // 2]
             for p in some]
        )  # fmt: skip
        first, second = np.argsort(rng.random((len(batch), VIEWS)), axis=1)[:, :2].T
        z = head(torch.cat([views[first, batch], views[second, batch]]))
        loss = GENERIC[one.changes["loss"]](z, torch.from_numpy(np.tile(patient[batch], 2)), config)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
        optimiser.step()
    return head.eval().encode(inputs["depths"][test])


def simclr(z: Tensor, patient: Tensor, config: TrainConfig) -> Tensor:
    """InfoNCE over all tiles of the batch (Chen et al. 2020), temperature 0.5."""
    n = len(z) // 2
    similarity = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e4)
    return F.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def instance_discrimination(z: Tensor, patient: Tensor, config: TrainConfig) -> Tensor:
    """Our loss, with a tile's other view as near and all other tiles of its slide as far."""
    n = len(z) // 2
    own = torch.eye(2 * n, dtype=torch.bool).roll(n, dims=1)
    same = (patient[:, None] == patient[None]) & ~own & ~torch.eye(2 * n, dtype=torch.bool)
    return contrastive_loss(z, own, same, config.margin).total


GENERIC = {"simclr": simclr, "contrastive": instance_discrimination}
KINDS = {
    "plain": plain, "centred": centred, "pca": pca, "scaled": scaled, "spatial": spatial,
    "own": own_views,
}  # fmt: skip


def descriptors(inputs: Inputs, name: str, test_fold: int, seed: int) -> Floats:
    """Descriptors of a fold's test tiles by a method that learned from the other folds."""
    path = inputs.work / "descriptors" / f"{name} fold {test_fold} seed {seed}.npy"
    if not path.exists():
        one, test = SETTINGS[name], inputs.folds == test_fold
        found = KINDS[one.kind](inputs, one, ~test, test, seed)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    stored: Floats = np.load(path)
    return stored


def scores(inputs: Inputs, name: str, seed: int, folds: Sequence[int]) -> dict[str, Score]:
    """All metrics of a method, pooled over folds."""
    near_um, far_um = near_far_um(inputs.tiles, TrainConfig.near_tiles, TrainConfig.far_tiles)
    labels, answers, patients, near, far, owners = ([] for _ in range(6))
    for test_fold in folds:
        tiles = inputs.tiles[inputs.folds == test_fold].reset_index(drop=True)
        tiles.attrs = inputs.tiles.attrs
        unit = unit_length(descriptors(inputs, name, test_fold, seed))
        patient, label = tiles["patient_id"].to_numpy(object), tiles["label"].to_numpy(np.int64)
        found, _ = neighbours(unit, unit, patient, patient, 10)
        labels.append(label)
        answers.append(label[found])
        patients.append(patient)
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
    labels, patients = inputs.tiles["label"].to_numpy(int), inputs.tiles["patient_id"].to_numpy(str)
    rows = []
    for features in ("last", "depths"):
        x, score = inputs[features], np.empty(len(labels))
        for test_fold in FOLDS:
            test = inputs.folds == test_fold
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
                len(labels), 0, "IDC, five folds", resamples=500)
        )  # fmt: skip
    return rows


def rows_of(inputs: Inputs, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Values and paired differences of methods, on all folds and on those no choice has seen."""
    rows = []
    for data, folds in (("IDC, five folds", tuple(FOLDS)), ("IDC, folds 0 and 1", UNSEEN)):
        found = {name: scores(inputs, name, seed, folds) for name in names}
        for name, measured in found.items():
            for metric, score in measured.items():
                low, high = score.interval() or (None, None)
                extra: dict[str, Any] = {"patients": len(score.patients)}
                rows.append(row(name, metric, score.value, low, high, score.n, seed, data, **extra))
                for versus in COMPARED:
                    if versus not in found or versus == name:
                        continue
                    value, ends = metrics.difference(score, found[versus][metric])
                    low, high = ends or (None, None)
                    extra = {"patients": len(score.patients), "versus": versus}
                    label = f"{name} - {versus}"
                    rows.append(row(label, metric, value, low, high, score.n, seed, data, **extra))
    return rows


def main() -> None:
    """Run the methods, one seed after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--imagenet-weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known = ", ".join(SETTINGS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", help=known)
    parser.add_argument("--work", type=Path, default=Path("out/experiments"))
    parser.add_argument("--out", type=Path, default=Path("data/results/experiments.json"))
    options = parser.parse_args()
    inputs = Inputs(options.archive, options.imagenet_weights, options.work)
    names = [name for name in SETTINGS if options.only is None or name in options.only]
    names = list(dict.fromkeys([*(n for n in COMPARED if n in SETTINGS), *names]))
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in tqdm(names, f"seed {seed}"):
            for test_fold in FOLDS:
                descriptors(inputs, name, test_fold, seed)
        rows += rows_of(inputs, names, seed)
    rows += probe_rows(inputs)
    again = {(r["method"], r["metric"], r["seed"], r["data"]) for r in rows}
    if options.out.exists():
        kept = [
            r for r in read_results(options.out)
            if (r["method"], r["metric"], r["seed"], r["data"]) not in again
        ]  # fmt: skip
        rows = kept + rows
    write_results(options.out, rows)
    print(summary(rows))


def summary(rows: Sequence[dict[str, Any]], data: str = "IDC, five folds") -> str:
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
