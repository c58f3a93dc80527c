"""``sslpath embed``: tiles to descriptors."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sslpath.commands.shared import (
    FAILED,
    check_folder,
    command,
    count,
    fill_in,
    imagenet_encoder,
    imagenet_options,
    open_table,
    refuse_ignored,
    say,
    scheduler_option,
    table_options,
    tell_given,
    warn,
    whole,
)
from sslpath.errors import counted

if TYPE_CHECKING:
    from sslpath.commands.shared import Commands


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "embed",
        run,
        "tiles to descriptors",
        "Write one HDF5 file a slide with `features` and `coords`, as CLAM and TRIDENT do.\n"
        "Complete files of the same encoder are kept, so an interrupted call goes on.",
        "  sslpath embed tiles.parquet --run runs/a --out descriptors/spatial\n"
        "  sslpath embed tiles.parquet --encoder imagenet --out descriptors/imagenet\n",
    )
    table_options(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of descriptors")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, dest="run_dir", metavar="RUN", help="a trained network")
    which.add_argument(
        "--encoder",
        choices=("imagenet", "random", "rgb"),
        help="a baseline: ImageNet features, a random network, mean and spread of RGB",
    )
    p.add_argument(
        "--features",
        type=Path,
        metavar="DIR",
        help="with --run and a frozen trunk: ImageNet features already computed",
    )
    p.add_argument(
        "--views",
        type=whole,
        default=0,
        metavar="N",
        help="with --encoder imagenet: also features of N augmented views of each tile, into "
        "OUT/views; `sslpath train` then learns to see through stain, focus, compression and "
        "pixel size (4 are plenty; each costs as much as the features themselves)",
    )
    imagenet_options(p)
    p.add_argument("--batch", type=count, default=128)
    p.add_argument("--seed", type=whole, default=0, help="of the random network")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument(
        "--workers", type=whole, default=0, help="processes that read tiles ahead (default 0)"
    )
    scheduler_option(p)
    tell_given(p, "views", "arch", "input_px", "batch", "seed", "device", "workers")


ENCODER = ("arch", "imagenet_weights", "input_px", "depths")
READING = ("root", "batch", "workers", "scheduler")
# Options that have no effect, by what is to be embedded.
IGNORED = {
    "rgb": (*ENCODER, "features", "views", "seed", "device"),
    "random": ("imagenet_weights", "depths", "features", "views"),
    "imagenet": ("features", "seed"),
    "run of a trunk that learned": (*ENCODER, "features", "views", "seed"),
    "run of a frozen trunk": ("arch", "input_px", "depths", "views", "seed"),
    "features": (*ENCODER, "views", "seed", *READING),
}


def run(options: argparse.Namespace) -> int:
    """``sslpath embed``."""
    from sslpath import embed as to
    from sslpath.backbones import pick_device
    from sslpath.imagenet import random_encoder

    network = None
    if options.encoder is not None:
        refuse_ignored(options, IGNORED[options.encoder], f"--encoder {options.encoder}")
    else:
        network, _ = to.load_run(options.run_dir)
        if network.trunk is not None:
            kind, why = "run of a trunk that learned", "whose network takes pixels"
        elif options.features is None:
            kind, why = "run of a frozen trunk", "which knows its encoder"
        else:
            kind, why = "features", "and --features, which are there already"
        refuse_ignored(options, IGNORED[kind], f"--run {options.run_dir}, {why}")
    if options.scheduler is not None:
        refuse_ignored(options, ["workers"], "--scheduler, whose workers read")
    fill_in(options)
    views = [options.out / to.VIEWS / str(k) for k in range(options.views)]
    for folder in (options.out, *views):
        check_folder(folder)
    tiles, source = open_table(options)
    device, reading = (
        pick_device(options.device),
        {"batch": options.batch, "workers": options.workers, "scheduler": options.scheduler},
    )
    if network is not None:
        encoder = None
        if network.trunk is None and options.features is None:
            # The run knows which encoder its head needs; only the weights have to be named.
            options.arch = network.config.encoder.get("arch", options.arch)
            options.input_px = network.config.encoder.get("input_px", options.input_px)
            options.depths = bool(network.config.encoder.get("blocks"))
            encoder = imagenet_encoder(options)
        failed = to.embed_run(
            tiles,
            source,
            options.run_dir,
            options.out,
            features=options.features,
            encoder=encoder,
            device=device,
            **reading,
        )
    elif options.encoder == "rgb":
        failed = to.embed_rgb(tiles, source, options.out, **reading)
    else:
        encoder = (
            random_encoder(options.arch, options.seed, options.input_px, device=device)
            if options.encoder == "random"
            else imagenet_encoder(options)
        )
        failed = to.embed_encoder(tiles, source, encoder, options.out, **reading)
        for k, where in enumerate(views):
            say(f"augmented view {k + 1} of {options.views}, into {where}")
            to.embed_views(tiles, source, encoder, where, seed=k, **reading)
    say(f"{options.out}: descriptors of {counted(len(tiles) - len(failed), 'tile')}")
    if len(failed):
        warn(f"{counted(len(failed), 'tile')} failed; see {options.out / 'failed.csv'}")
        return FAILED
    return 0
