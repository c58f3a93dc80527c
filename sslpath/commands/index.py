"""``sslpath index``: descriptors to an index on disk, for more of them than memory holds."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sslpath.commands.shared import check_folder, command, count, say, whole

if TYPE_CHECKING:
    from sslpath.commands.shared import Commands


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "index",
        run,
        "descriptors to an index on disk, for millions of tiles",
        "Build an index (FAISS) that `sslpath search --index` reads from disk: for more\n"
        "descriptors than memory holds, or an answer at once from millions. What it finds is\n"
        "approximate; without an index the search is exact. Needs FAISS: pip install faiss-cpu.",
        "  sslpath index tiles.parquet --descriptors d/spatial --out d/index\n"
        "  sslpath search phantom_003:2000,1500 tiles.parquet --descriptors d/spatial \\\n"
        "      --index d/index\n",
    )
    p.add_argument("tiles", type=Path, help="table of tiles")
    p.add_argument("--descriptors", type=Path, required=True, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the index")
    p.add_argument(
        "--code",
        choices=("flat", "bytes", "quarter"),
        default="bytes",
        help="how a descriptor is kept: float32, one byte a number (default), or one byte for "
        "four numbers, which finds fewer of the true neighbours",
    )
    p.add_argument(
        "--shard-tiles", type=count, default=1_000_000,
        help="descriptors held in memory at a time (default 1,000,000: 1.4 GB at 128 numbers)",
    )  # fmt: skip
    p.add_argument("--seed", type=whole, default=0, help="of the sample that lists are made from")


def run(options: argparse.Namespace) -> int:
    """``sslpath index``."""
    from sslpath.index import build_index
    from sslpath.table import load_tiles

    check_folder(options.out)
    tiles = load_tiles(options.tiles)
    index = build_index(
        tiles,
        options.descriptors,
        options.out,
        code=options.code,
        shard_tiles=options.shard_tiles,
        seed=options.seed,
    )
    about = index.about
    say(f"{about['kept']:,} descriptors on {about['cells']:,} lists in {options.out}")
    return 0
