"""The demo: everything from slides to retrieval, on synthetic slides, in a few minutes.

It reads like the README: each step is one call of the package, and the command line offers the
same steps on your own slides.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sslpath.datasets.phantom import make_phantoms
from sslpath.datasets.phantom_features import DATA, shipped_features
from sslpath.descriptors import read_descriptors
from sslpath.pairs import diagnose, near_far_um
from sslpath.results import write_results
from sslpath.slides import Slide
from sslpath.table import save_tiles, split_by_patient
from sslpath.tiling import tile_slides

SLIDES, FEWEST = 20, 6
MPP, TILE_PX = 0.5, 112  # 56 um a tile
MAX_TILES = 400  # a slide; keeps the shipped features small
# Near is a quarter of the usual 8 tile widths, as that found most tumour on another set of phantoms
# (seed 1). On tissue (IDC) wider near distances find more: see chapter 8.
NEAR_TILES, FAR_TILES = 2.0, 30.0


def phantom_folder() -> Path:
    """Where phantom slides are kept between calls: in the checkout, or in the user's cache.

    The environment variable ``SSLPATH_CACHE`` names another place.
    """
    if "SSLPATH_CACHE" in os.environ:
        return Path(os.environ["SSLPATH_CACHE"]) / "phantom"
    if (DATA / "results").is_dir():  # a folder `data` beside an installed package is another's
        return DATA / "cache" / "phantom"
    return Path.home() / ".cache" / "sslpath" / "phantom"


def demo_tiles(
    folder: str | Path | None = None,
    *,
    slides: int = SLIDES,
    workers: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Make the demo's phantom slides, unless they are there, and tile them.

    Args:
        folder: Where the slides are kept; :func:`phantom_folder` by default.
        slides: How many; the first of them are always the same.
        workers: Processes; a script that asks for more than one needs the usual
            ``if __name__ == "__main__":``.
        progress: Show bars.

    Returns:
        Table of tiles of 112 px at 0.5 um, at most 400 a slide, split by patient, labelled from
        the ground truth.
    """
    folder = Path(folder or phantom_folder())
    paths = make_phantoms(folder, slides, workers=workers, progress=progress)
    tiles, _ = tile_slides(
        [Slide(path) for path in paths],
        mpp=MPP,
        tile_px=TILE_PX,
        annotations_dir=folder,
        max_tiles=MAX_TILES,
        workers=workers,
        on_error="raise",
        progress=progress,
    )
    return split_by_patient(tiles)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    print(f"\n== {title}")
    start = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - start:.0f} s")


def run_demo(
    out: str | Path,
    *,
    slides: int = SLIDES,
    seed: int = 0,
    workers: int = 2,
    imagenet_weights: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Run everything; returns the rows of ``results.json``.

    Args:
        out: Folder for tables, descriptors, the run, pictures and ``results.json``.
        slides: Phantom slides.
        seed: Of training, bootstrap and the random network.
        workers: Processes; a script that asks for more than one needs the usual
            ``if __name__ == "__main__":``.
        imagenet_weights: MobileNetV2's, to compute features instead of using the shipped ones.
    """
    # Here, not above: these load PyTorch, and whoever only wants the slides need not wait for it.
    from sslpath.embed import embed_encoder, embed_rgb, embed_run, store
    from sslpath.figures import save, training_curves
    from sslpath.imagenet import load_imagenet, random_encoder
    from sslpath.model import ModelConfig
    from sslpath.report import compare, pictures, tables
    from sslpath.runs import read_log
    from sslpath.sources import open_source
    from sslpath.training import TrainConfig, train

    out = Path(out)
    folders = {
        name: out / "descriptors" / name for name in ("spatial", "imagenet", "random", "rgb")
    }

    with step(f"1/6  phantom slides and their tiles ({phantom_folder()})"):
        tiles = demo_tiles(slides=slides, workers=workers)
        source = open_source(tiles)

    with step("2/6  ImageNet features of the tiles"):
        if imagenet_weights is None:
            features, found, about = shipped_features(tiles, source)
            tiles = tiles[found].reset_index(drop=True)
            store(tiles, features, folders["imagenet"], about)
            print(
                f"shipped with sslpath: {about['arch']}, {about['weights']}; the slides match them"
            )
        else:
            encoder = load_imagenet("mobilenet_v2", imagenet_weights)
            about = encoder.provenance
            embed_encoder(tiles, source, encoder, folders["imagenet"])
            features = read_descriptors(folders["imagenet"], tiles)
        save_tiles(tiles, out / "tiles.parquet")

    with step("3/6  the siamese network learns from near and far tiles, without labels"):
        near_um, far_um = near_far_um(tiles, NEAR_TILES, FAR_TILES)
        known = tiles[tiles["split"] == "train"]
        rng = np.random.default_rng(seed)
        print(str(diagnose(known, near_um=near_um, far_um=far_um, rng=rng)))
        model = ModelConfig(
            arch=about["arch"],
            feature_dim=features.shape[1],
            input_px=about["input_px"],
            encoder=about,
        )
        config = TrainConfig(near_tiles=NEAR_TILES, far_tiles=FAR_TILES, seed=seed)
        # Named by its settings, so that a demo with others never meets this one's network.
        settings = repr((config, model, slides)).encode()
        run = out / f"run-{hashlib.sha256(settings).hexdigest()[:8]}"
        train(tiles, config, model, run, features=features, device="cpu")

    with step("4/6  descriptors: ours, a random network, mean and spread of RGB"):
        embed_run(tiles, source, run, folders["spatial"], features=folders["imagenet"])
        test = tiles[tiles["split"] == "test"]
        # Tiles as they are: enlarging them fourfold, as for ImageNet, would take minutes.
        untrained = random_encoder(about["arch"], seed, TILE_PX)
        embed_encoder(test, source, untrained, folders["random"])
        embed_rgb(test, source, folders["rgb"])

    with step("5/6  retrieval among the test slides, the query's own slide left out"):
        test, descriptors, rows = compare(
            test,
            folders,
            near_tiles=NEAR_TILES,
            far_tiles=FAR_TILES,
            seed=seed,
            data=f"phantom, {test['slide_id'].nunique()} test slides",
        )
        write_results(out / "results.json", rows)

    with step("6/6  pictures"):
        pictures(
            test,
            descriptors,
            rows,
            source,
            out,
            near_tiles=NEAR_TILES,
            far_tiles=FAR_TILES,
            seed=seed,
        )
        save(training_curves(read_log(run)), out / "curves.png")
    print("")
    print(tables(rows))
    print(f"\nresults: {out / 'results.json'}\npictures: {out}/*.png")
    return rows
