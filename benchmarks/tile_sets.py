"""The tiles that methods compete on, in folds that share no patient, and features of them.

IDC: real tissue, five folds of patients. Phantoms: three folds, each of two laboratories and a
scanner that no other fold has, so that a method meets stain and camera of the test slides there
for the first time.
"""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sslpath.augment import ELSEWHERE, Augmentation, augment_pixels
from sslpath.datasets.idc import idc_tiles
from sslpath.datasets.phantom import make_phantom, phantom_specs
from sslpath.demo import FAR_TILES, MPP, NEAR_TILES, TILE_PX
from sslpath.descriptors import rgb_features
from sslpath.files import atomic_path
from sslpath.imagenet import Encoder, load_imagenet
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import fold
from sslpath.tiling import tile_slides

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
PHANTOM_SEED = 2  # other slides than the demo's (0) and those that settings were chosen on (1)
PHANTOM_SLIDES, PHANTOM_TILES = 30, 240  # tiles a slide


@dataclass(frozen=True)
class TileSet:
    """Tiles in folds.

    Attributes:
        tiles: The table of tiles.
        folds: The fold of each row; no patient is in two.
        results: Names under which results are recorded, and the folds that each rests on.
        near_tiles: Near pairs are at most so many tile widths apart.
        far_tiles: Far pairs are farther apart than this.
    """

    tiles: pd.DataFrame
    folds: NDArray[np.int64]
    results: dict[str, tuple[int, ...]] = field(default_factory=dict)
    near_tiles: float = TrainConfig.near_tiles
    far_tiles: float = TrainConfig.far_tiles


def idc(archive: Path) -> TileSet:
    """Five folds of IDC's patients; settings were chosen with folds 2, 3 and 4 alone."""
    tiles = idc_tiles(archive, progress=False)
    folds = tiles["patient_id"].map(fold).to_numpy(np.int64)
    return TileSet(tiles, folds, {"IDC, five folds": (0, 1, 2, 3, 4), "IDC, folds 0 and 1": (0, 1)})


def phantoms(
    folder: Path, slides: int = PHANTOM_SLIDES, seed: int = PHANTOM_SEED, workers: int = 1
) -> TileSet:
    """Three folds of phantom slides, each with two laboratories and a scanner of its own."""
    fold_of, specs = zip(*phantom_folds(slides, seed), strict=True)
    make, jobs = partial(_phantom, folder), (range(slides), specs)
    if workers > 1:
        # Not forked: libvips has threads, and threads do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(tqdm(pool.map(make, *jobs), "phantoms in parallel", total=slides))
    made = [Slide(path) for path in tqdm(map(make, *jobs), "phantoms", total=slides)]
    folds = {slide.slide_id: fold for slide, fold in zip(made, fold_of, strict=True)}
    tiles, _ = tile_slides(
        made, mpp=MPP, tile_px=TILE_PX, annotations_dir=folder, max_tiles=PHANTOM_TILES,
        on_error="raise", progress=False,
    )  # fmt: skip
    name = "phantoms, stain and scanner held out"
    if seed != PHANTOM_SEED:
        name += f", of seed {seed}"
    if slides != PHANTOM_SLIDES:
        name += f", {slides} slides"
    of = tiles["slide_id"].map(folds).to_numpy(np.int64)
    return TileSet(tiles, of, {name: (0, 1, 2)}, NEAR_TILES, FAR_TILES)


def phantom_folds(slides: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """The fold of each phantom slide and what it is drawn from: no two folds look alike."""
    return [
        (i % 3, {**vars(spec), "laboratory": 2 * (i % 3) + i // 3 % 2, "scanner": i % 3})
        for i, spec in enumerate(phantom_specs(slides, seed))
    ]


def _phantom(folder: Path, i: int, spec: dict[str, Any]) -> Path:
    return make_phantom(folder, f"phantom_{i:03d}", **spec)


class Inputs:
    """A set of tiles, and features of them that are computed once and kept.

    Args:
        tile_set: The tiles.
        weights: MobileNetV2's.
        work: Where features are kept.
        input_px: Side to which tiles are resized.
    """

    def __init__(self, tile_set: TileSet, weights: Path, work: Path, input_px: int = 224) -> None:
        self.set, self.tiles, self.folds = tile_set, tile_set.tiles, tile_set.folds
        self.work, self.weights, self.input_px = work, weights, input_px
        work.mkdir(parents=True, exist_ok=True)
        self._encoders: dict[int, Encoder] = {}

    @property
    def encoder(self) -> Encoder:
        """MobileNetV2 with features of every depth; its last 1280 are those of the last layer."""
        return self.encoder_for("depths")

    def encoder_for(self, features: str) -> Encoder:
        """The encoder of these features, whose names may begin with its input, as ``112 px``."""
        told = re.match(r"(\d+) px ", features)
        px = int(told[1]) if told else self.input_px
        if px not in self._encoders:
            self._encoders[px] = load_imagenet("mobilenet_v2", self.weights, px, depths=True)
        return self._encoders[px]

    def __getitem__(self, name: str) -> Floats:
        """Features ``rgb``, ``last``, ``depths``, ``grey last``, ``112 px depths`` and the like."""
        if name == "rgb":
            return self._kept("rgb", rgb_features)
        change = without_colour if "grey" in name else None
        every = self.depths(name.removesuffix("last").removesuffix("depths") + "depths", change)
        return every[:, -1280:] if name.endswith("last") else every

    def depths(self, name: str, change: Callable[[Pixels], Pixels] | None = None) -> Floats:
        """Features of all depths of the tiles, changed in some way or not."""
        return self._kept(
            name, lambda x: self.encoder_for(name).encode(x if change is None else change(x))
        )

    def views(self, kind: str) -> list[Floats]:
        """The same of augmented views of each tile; ``elsewhere`` means other scanners, too."""
        settings, count = VIEWS[kind]
        found = []
        for k in range(count):
            made = partial(
                augment_pixels, generator=torch.Generator().manual_seed(1000 + k), settings=settings
            )
            found.append(self.depths(f"{kind} {k}", made))
        return found

    def _kept(self, name: str, compute: Callable[[Pixels], Floats]) -> Floats:
        path = self.work / f"features {name}.npy"
        if not path.exists():
            source, parts = open_source(self.tiles), []
            for start in tqdm(range(0, len(self.tiles), 128), f"features: {name}"):
                parts.append(compute(source.read(self.tiles.iloc[start : start + 128])))
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(parts))
        features: Floats = np.load(path)
        return features


VIEWS = {"view": (Augmentation(), 5), "elsewhere": (ELSEWHERE, 4)}  # and how many of each tile


def without_colour(pixels: Pixels) -> Pixels:
    """The tiles in grey, every one with the same mean and spread: neither stain nor density."""
    grey = pixels.astype(np.float32).mean(axis=3, keepdims=True)
    spread = grey.std(axis=(1, 2), keepdims=True)
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) / np.maximum(spread, 1.0)
    return np.repeat((170 + 30 * grey).clip(0, 255).astype(np.uint8), 3, axis=3)
