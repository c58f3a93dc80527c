"""``sslpath train``: a table of tiles to a siamese network."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import (
    command,
    count,
    imagenet_encoder,
    imagenet_options,
    positive,
    report,
    say,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from sslpath.commands.shared import Commands


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "train",
        run,
        "table of tiles to a siamese network",
        "Learn a descriptor from near and far tiles of the train split; no labels are used.\n"
        "The run folder gets config.json, log.jsonl, curves.png and checkpoint.safetensors.\n"
        "A run that was interrupted goes on where it stopped when called again.",
        "  sslpath train tiles.parquet --arch mobilenet_v2 --imagenet-weights FILE --out runs/a\n"
        "  sslpath train tiles.parquet --trunk scratch --arch resnet18 --steps 2000 --out runs/b\n",
    )
    p.add_argument("tiles", type=Path, help="table of tiles")
    p.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder")
    p.add_argument(
        "--trunk",
        choices=("frozen", "finetune", "scratch"),
        default="frozen",
        help="frozen: ImageNet features once, then a small head, seconds on a CPU "
        "(default); finetune: from ImageNet; scratch: from nothing",
    )
    p.add_argument(
        "--features",
        type=Path,
        metavar="DIR",
        help="frozen trunk: ImageNet features made by `sslpath embed --encoder "
        "imagenet`; without it they are computed into RUN/features",
    )
    imagenet_options(p)
    p.add_argument(
        "--near-tiles", type=positive, help="near: at most so many tile widths (default 8)"
    )
    p.add_argument(
        "--far-tiles", type=positive, help="far: at least so many tile widths (default 30)"
    )
    p.add_argument(
        "--pairs", choices=("in-batch", "explicit"), help="how pairs are drawn (default in-batch)"
    )
    p.add_argument("--margin", type=positive, help="margin of the contrastive loss")
    p.add_argument(
        "--descriptor-dim", type=count, default=128, help="length of descriptors (default 128)"
    )
    p.add_argument("--steps", type=count, help="training steps")
    p.add_argument("--lr", type=positive, help="peak learning rate")
    p.add_argument("--slides-per-batch", type=count)
    p.add_argument("--tiles-per-slide", type=count)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument("--workers", type=int, default=0, help="processes that read tiles (default 0)")


def run(options: argparse.Namespace) -> int:
    """``sslpath train``."""
    from sslpath.model import ModelConfig
    from sslpath.sources import open_source
    from sslpath.table import load_tiles
    from sslpath.training import TrainConfig
    from sslpath.training import train as run_training

    tiles = load_tiles(options.tiles)
    source = open_source(tiles)
    names = ("near_tiles", "far_tiles", "pairs", "margin", "steps", "lr", "slides_per_batch",
             "tiles_per_slide")  # fmt: skip
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = TrainConfig(seed=options.seed, **given)
    model: dict[str, Any] = {"trunk": options.trunk, "descriptor_dim": options.descriptor_dim}
    features, encoder = None, None
    if options.trunk == "frozen":
        tiles, features, about = _frozen_features(options, tiles)
        model |= {"arch": about["arch"], "input_px": about["input_px"], "encoder": about}
        model["feature_dim"] = features.shape[1]
    else:
        model |= {"arch": options.arch, "input_px": options.input_px}
        encoder = imagenet_encoder(options) if options.trunk == "finetune" else None
    _say_pairs(tiles, config.near_tiles, config.far_tiles)
    network = run_training(
        tiles,
        config,
        ModelConfig(**model),
        options.out,
        features=features,
        source=None if features is not None else source,
        encoder=encoder,
        device=options.device,
        workers=options.workers,
    )
    _curves(options.out)
    n = sum(parameter.numel() for parameter in network.parameters())
    say(f"{options.out}: {n:,} parameters; next, sslpath embed {options.tiles} --run {options.out}")
    return 0


def _frozen_features(
    options: argparse.Namespace, tiles: "pd.DataFrame"
) -> "tuple[pd.DataFrame, NDArray[np.float32], dict[str, Any]]":
    """The tiles that have ImageNet features, their features, and what made them."""
    from sslpath.descriptors import read_descriptors
    from sslpath.embed import embed_encoder, features_provenance
    from sslpath.sources import open_source

    folder = options.features
    if folder is None:
        folder = options.out / "features"
        say(f"ImageNet features go to {folder}; share them between runs with --features.")
        failed = embed_encoder(tiles, open_source(tiles), imagenet_encoder(options), folder)
        report(failed, folder / "failed.csv", "tiles could not be read")
    features, found = read_descriptors(folder, tiles, missing="drop")
    about = {
        key: value
        for key, value in features_provenance(folder, tiles).items()
        if key not in ("mpp", "tile_px")
    }
    return tiles[found], features, about


def _say_pairs(tiles: "pd.DataFrame", near_tiles: float, far_tiles: float) -> None:
    """Print how many anchors have partners, and how noisy the pairs are where labels tell."""
    import numpy as np

    from sslpath.pairs import diagnose, near_far_um

    rows = tiles[tiles["split"] == "train"] if (tiles["split"] == "train").any() else tiles
    near_um, far_um = near_far_um(tiles, near_tiles, far_tiles)
    found = diagnose(rows, near_um=near_um, far_um=far_um, rng=np.random.default_rng(0))
    say(str(found))


def _curves(run: Path) -> None:
    from sslpath.figures import save, training_curves
    from sslpath.runs import read_log

    save(training_curves(read_log(run)), run / "curves.png")
