"""``sslpath demo``: everything, on synthetic slides."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sslpath.commands.shared import command, count, whole

if TYPE_CHECKING:
    from sslpath.commands.shared import Commands


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "demo",
        run,
        "everything, on synthetic slides",
        "Make the phantom slides, tile them, learn the descriptor from near and far tiles,\n"
        "compare it with ImageNet features, a random network and RGB; leave pictures and\n"
        "results.json. A few minutes on two cores; nothing is downloaded.",
        "  sslpath demo --out out/demo\n",
    )
    p.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (default out/demo)")
    p.add_argument("--slides", type=count, default=20, help="phantom slides (default 20)")
    p.add_argument(
        "--seed", type=whole, default=0, help="of training; the slides are always the same"
    )
    p.add_argument("--workers", type=count, default=2)
    p.add_argument(
        "--imagenet-weights",
        type=Path,
        metavar="FILE",
        help="mobilenet_v2 weights, to compute the ImageNet features instead of using "
        "those that come with sslpath",
    )


def run(options: argparse.Namespace) -> int:
    """``sslpath demo``."""
    from sslpath.demo import run_demo

    run_demo(
        options.out,
        slides=options.slides,
        seed=options.seed,
        workers=options.workers,
        imagenet_weights=options.imagenet_weights,
    )
    return 0
