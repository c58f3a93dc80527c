"""``sslpath train``: a table of tiles to a siamese network."""

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import (
    FAILED,
    check_folder,
    command,
    count,
    fill_in,
    imagenet_encoder,
    imagenet_options,
    open_table,
    positive,
    refuse_ignored,
    say,
    table_options,
    tell_given,
    warn,
    whole,
)
from sslpath.errors import ConfigError, WeightsError, counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from sslpath.commands.shared import Commands
    from sslpath.model import ModelConfig, Trunk
    from sslpath.settings import TrainConfig
    from sslpath.sources import TileSource

TRAINING = (
    *("near_tiles", "far_tiles", "pairs", "margin", "steps", "lr"),
    *("slides_per_batch", "tiles_per_slide", "twins"),
)


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
    table_options(p)
    p.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder")
    p.add_argument(
        "--trunk",
        choices=("frozen", "finetune", "scratch"),
        help="frozen: ImageNet features once, then a small head, seconds on a CPU "
        "(default); finetune: from ImageNet; scratch: from nothing",
    )
    p.add_argument(
        "--preset",
        choices=("paper",),
        help="start from what is known of the paper's settings (ResNet-50 finetuned, explicit "
        "pairs, near 8 and far 30 tile widths, tiles of 224 px), some of it unverified; 42 is "
        "told for far, too. Steps, batch and rate are those of --trunk, what else is not known "
        "keeps our defaults, and options given here win",
    )
    p.add_argument(
        "--features",
        type=Path,
        metavar="DIR",
        help="frozen trunk: ImageNet features made by `sslpath embed --encoder "
        "imagenet`; without it they are computed into the run folder. Views beside them "
        "(`--views`) are learned from, too",
    )
    imagenet_options(p)
    p.add_argument(
        "--near-tiles", type=positive, help="near: at most so many tile widths (default 8)"
    )
    p.add_argument(
        "--far-tiles", type=positive, help="far: more than so many tile widths (default 30)"
    )
    p.add_argument(
        "--pairs", choices=("in-batch", "explicit"), help="how pairs are drawn (default in-batch)"
    )
    p.add_argument("--margin", type=positive, help="margin of the contrastive loss")
    p.add_argument(
        "--dropout",
        type=float,
        metavar="SHARE",
        help="of the head's hidden layer (default 0.3 on features of several depths without views, "
        "else 0). With 0, on IDC, the nearest tiles of tumour hold more tumour, and far tiles lie "
        "less far apart (chapter 8)",
    )
    p.add_argument("--descriptor-dim", type=count, help="length of descriptors (default 128)")
    p.add_argument(
        "--steps",
        type=count,
        help="training steps (default 150; 400 on features of several depths; 5000 unless frozen)",
    )
    p.add_argument(
        "--twins",
        type=float,
        metavar="SHARE",
        help="share of a batch that are tiles of it again, in another view (default 0.2 on views "
        "of several depths, which suits slides of several laboratories; else 0)",
    )
    p.add_argument("--lr", type=positive, help="peak learning rate")
    p.add_argument("--slides-per-batch", type=count, help="slides in a batch")
    p.add_argument("--tiles-per-slide", type=count, help="tiles of each slide in a batch")
    p.add_argument("--seed", type=whole, default=0, help="of everything random (default 0)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument("--workers", type=whole, default=0, help="processes that read tiles (default 0)")
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile a trunk that learns, and augmentation (torch.compile): slower to start; on "
        "one GPU a ResNet-50 then learned two fifths faster (page on speed)",
    )
    tell_given(p, "arch", "input_px", "workers")


CURVES = "curves.png"
ENCODER = ("arch", "imagenet_weights", "input_px", "depths")
# Options that have no effect, by the trunk, and with features that are there already.
IGNORED = {
    "scratch": ("features", "depths", "imagenet_weights"),
    "finetune": ("features", "depths"),
    "frozen": ("compile",),
    "features": (*ENCODER, "root", "workers"),
}


def run(options: argparse.Namespace) -> int:
    """``sslpath train``."""
    from sslpath.backbones import pick_device
    from sslpath.figure_style import check_picture
    from sslpath.ranks import refuse_head_of_many
    from sslpath.training import train

    config, model = _settings(options)
    _refuse_ignored(options, model.trunk)
    fill_in(options)
    # All that can be known now, before hours of work on features.
    refuse_head_of_many(model.trunk)
    check_folder(options.out)
    check_picture(options.out / CURVES)
    pick_device(options.device)
    tiles, source = open_table(options)
    _check_pairs(tiles, config)
    features, encoder, code = None, None, 0
    views: list[NDArray[np.float32]] = []
    if model.trunk == "frozen":
        tiles, (features, *views), config, model, code = _frozen(
            options, tiles, source, config, model
        )
    elif model.trunk == "finetune":
        encoder = imagenet_encoder(options)
    _say_pairs(tiles, config.near_tiles, config.far_tiles)
    network = train(
        tiles,
        config,
        model,
        options.out,
        features=features,
        views=views,
        source=source if features is None else None,
        encoder=encoder,
        device=options.device,
        workers=options.workers,
        compiled=options.compile,
    )
    if os.environ.get("RANK", "0") == "0":  # of torchrun
        _curves(options.out)
    n = sum(parameter.numel() for parameter in network.parameters())
    say(f"{options.out}: {n:,} parameters; next, sslpath embed {options.tiles} --run {options.out}")
    return code


def _settings(options: argparse.Namespace) -> "tuple[TrainConfig, ModelConfig]":
    """The preset or the trunk's defaults, with what was given on the command line on top."""
    from sslpath.model import ModelConfig
    from sslpath.settings import default_config, paper_preset

    if options.preset == "paper":
        config, model = paper_preset(options.trunk or "finetune")
    else:
        trunk: Trunk = options.trunk or "frozen"
        config, model = default_config(trunk), ModelConfig(trunk=trunk)
    model = replace(
        model,
        arch=options.arch or model.arch,
        input_px=options.input_px or model.input_px,
        feature_dim=0,  # as long as the trunk's
    )
    given = {name: value for name in TRAINING if (value := getattr(options, name)) is not None}
    if options.descriptor_dim is not None:
        model = replace(model, descriptor_dim=options.descriptor_dim)
    if options.dropout is not None:
        model = replace(model, dropout=options.dropout)
    return replace(config, seed=options.seed, **given), model


def _refuse_ignored(options: argparse.Namespace, trunk: str) -> None:
    chosen = f"the trunk {trunk}"
    if options.trunk is None:
        chosen += " of the preset" if options.preset else ", which is the default"
    refuse_ignored(options, IGNORED[trunk], chosen)
    if options.features is not None:
        refuse_ignored(options, IGNORED["features"], "--features, which are there already")


def _check_pairs(tiles: "pd.DataFrame", config: "TrainConfig") -> None:
    """Refuse a table without pairs to learn from."""
    from sslpath.batches import Batches
    from sslpath.training import training_rows

    part = tiles.iloc[training_rows(tiles)]
    part.attrs = tiles.attrs
    Batches(part, config, None)


def _frozen(
    options: argparse.Namespace,
    tiles: "pd.DataFrame",
    source: "TileSource",
    config: "TrainConfig",
    model: "ModelConfig",
) -> "tuple[pd.DataFrame, list[NDArray[np.float32]], TrainConfig, ModelConfig, int]":
    """The tiles that have ImageNet features, these and their views, settings, exit code."""
    from sslpath.descriptor_files import features_provenance
    from sslpath.embed import embed_encoder, view_folders
    from sslpath.files import only_one
    from sslpath.imagenet import check_provenance
    from sslpath.runs import check

    folder, encoder, code = options.features, None, 0
    if folder is None:
        encoder = imagenet_encoder(options)
        # Named by what makes them, so that another encoder never overwrites a run's features.
        about = encoder.provenance
        name = f"features-{about['arch']}-{about['sha256'][:8]}-{about['input_px']}px"
        name += "-depths" if "blocks" in about else ""
        folder = options.out / name
    else:
        about = _provenance(folder, tiles)
    views = view_folders(folder)
    for view in views:
        check_provenance(about, features_provenance(view, tiles), f"The view in {view}")
    if (options.twins or 0) > 0 and not views:
        raise ConfigError(
            f"Twins are views of a tile, and {folder} has none: leave out --twins, or make some "
            "with `sslpath embed --views`."
        )
    config, model = _suited(options, config, model, about, views=len(views) > 0)
    if encoder is not None:
        model = replace(model, feature_dim=encoder.dim)
        with only_one(options.out):
            check(options.out, {"training": asdict(config), "model": asdict(model)})
        say(f"ImageNet features go to {folder}; share them between runs with --features.")
        failed = embed_encoder(tiles, source, encoder, folder, workers=options.workers)
        if len(failed):
            warn(f"unreadable: {counted(len(failed), 'tile')}; see {folder / 'failed.csv'}")
            code = FAILED
    tiles, features = _read(tiles, folder, views, depths="blocks" in about)
    return tiles, features, config, replace(model, feature_dim=features[0].shape[1]), code


def _suited(
    options: argparse.Namespace,
    config: "TrainConfig",
    model: "ModelConfig",
    about: dict[str, Any],
    *,
    views: bool,
) -> "tuple[TrainConfig, ModelConfig]":
    """The settings of a head on these features; what was given on the command line stays."""
    from sslpath.settings import default_config, default_dropout

    model = replace(model, arch=about["arch"], input_px=about["input_px"], encoder=about)
    if "blocks" in about:
        suited = default_config("frozen", depths=True, views=views)
        twins = suited.twins if options.twins is None else options.twins
        config = replace(config, steps=options.steps or suited.steps, twins=twins)
        if options.dropout is None:
            model = replace(model, dropout=default_dropout(depths=True, views=views))
    return config, model


def _provenance(folder: Path, tiles: "pd.DataFrame") -> dict[str, Any]:
    """The ImageNet encoder that has made the features in a folder."""
    from sslpath.descriptor_files import features_provenance
    from sslpath.imagenet import IDENTITY

    about = features_provenance(folder, tiles)
    lacking = [key for key in IDENTITY if key not in about]
    if lacking:
        raise WeightsError(
            f"The descriptors in {folder} do not say their encoder's {' and '.join(lacking)}: they "
            "are no features of an ImageNet encoder. Make some with `sslpath embed --encoder "
            "imagenet`."
        )
    return {key: value for key, value in about.items() if key not in ("mpp", "tile_px")}


def _read(
    tiles: "pd.DataFrame", folder: Path, views: list[Path], *, depths: bool
) -> "tuple[pd.DataFrame, list[NDArray[np.float32]]]":
    """The tiles that have features, these and their views."""
    import numpy as np

    from sslpath.descriptors import read_descriptors
    from sslpath.embed import VIEWS

    folders = [folder, *views]
    read = [read_descriptors(each, tiles, missing="drop") for each in folders]
    found = np.logical_and.reduce([has for _, has in read])
    # Copied only where a tile is missing: views of a large data set fill the memory.
    features = [x if found[has].all() else x[found[has]] for x, has in read]
    if len(folders) > 1:
        say(f"{len(folders) - 1} augmented views of each tile in {folder / VIEWS} are used, too")
    elif depths:
        say(
            "Features of all depths gained nothing on phantoms of other stains and scanners unless "
            "views were learned from. If such slides are to come, run `sslpath embed` with "
            f"--views 4 into {folder} first."
        )
    if not found.all():
        warn(f"left out {(~found).sum()} of {counted(len(found), 'tile')}, without features")
    return tiles[found], features


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

    save(training_curves(read_log(run)), run / CURVES)
