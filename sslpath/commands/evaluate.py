"""``sslpath evaluate``: descriptors to a table of results."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import command, count, positive, say, warn
from sslpath.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.commands.shared import Commands


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "evaluate",
        run,
        "descriptors to a table of results",
        "Compare descriptors on the test split: tumour retrieval with the query's patient left\n"
        "out, kNN AUC, and the ratio of descriptor distances of far and near tiles (ADDR), with\n"
        "95 % intervals by bootstrap over patients. Writes results.json and prints the table.",
        "  sslpath evaluate tiles.parquet --descriptors spatial=d/spatial imagenet=d/imagenet \\\n"
        "      --out results.json --figures figures/\n",
    )
    p.add_argument("tiles", type=Path, help="table of tiles, with labels")
    p.add_argument(
        "--descriptors",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="folders of descriptors by method",
    )
    p.add_argument("--out", type=Path, required=True, help="results.json to write")
    p.add_argument("--split", default="test", help="rows to use (default test; `all` for all)")
    p.add_argument(
        "--group",
        choices=("patient", "slide"),
        default="patient",
        help="what is left out of a query's neighbours (default patient)",
    )
    p.add_argument(
        "--near-tiles", type=positive, default=8.0, help="ADDR: near (default 8 tile widths)"
    )
    p.add_argument(
        "--far-tiles", type=positive, default=30.0, help="ADDR: far (default 30 tile widths)"
    )
    p.add_argument("--k", type=count, default=10, help="neighbours (default 10)")
    p.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap and of ADDR's pairs; recorded"
    )
    p.add_argument(
        "--no-baselines",
        dest="baselines",
        action="store_false",
        help="do not add the random network and RGB, which are computed when not given",
    )
    p.add_argument("--data", help="name of the data in the results (default: the table's stem)")
    p.add_argument("--figures", type=Path, metavar="DIR", help="save pictures here")


def run(options: argparse.Namespace) -> int:
    """``sslpath evaluate``."""
    from sslpath.report import compare, pictures, tables
    from sslpath.results import write_results
    from sslpath.sources import open_source
    from sslpath.table import load_tiles

    tiles = load_tiles(options.tiles)
    folders = dict(_named(text) for text in options.descriptors)
    if options.split != "all":
        tiles = tiles[tiles["split"] == options.split]
        if tiles.empty:
            raise ConfigError(f"{options.tiles} has no tiles of the split {options.split!r}.")
    source = open_source(tiles)
    if options.baselines:
        folders = add_baselines(tiles, folders, options.out.parent / "baselines")
    tiles, descriptors, rows = compare(
        tiles,
        folders,
        near_tiles=options.near_tiles,
        far_tiles=options.far_tiles,
        k=options.k,
        seed=options.seed,
        group=options.group,
        data=options.data or options.tiles.stem,
    )
    write_results(options.out, rows)
    say(tables(rows))
    if options.figures is not None:
        pictures(
            tiles,
            descriptors,
            rows,
            source,
            options.figures,
            near_tiles=options.near_tiles,
            far_tiles=options.far_tiles,
            k=options.k,
            seed=options.seed,
        )
        say(f"pictures in {options.figures}")
    return 0


def add_baselines(tiles: "pd.DataFrame", folders: dict[str, Path], where: Path) -> dict[str, Path]:
    """Add the baselines that every table has and that need no weights: random and RGB.

    The random network has the architecture and input size of the ImageNet one beside it.
    """
    from sslpath.embed import embed_encoder, embed_rgb, features_provenance
    from sslpath.imagenet import random_encoder
    from sslpath.sources import open_source

    source = open_source(tiles)
    folders = dict(folders)
    if "random" not in folders:
        about: dict[str, Any] = {"arch": "resnet18", "input_px": 224}
        if "imagenet" in folders:
            about = features_provenance(folders["imagenet"], tiles)
        say(f"random network ({about['arch']}, {about['input_px']} px), in {where / 'random'}")
        encoder = random_encoder(about["arch"], 0, about["input_px"])
        embed_encoder(tiles, source, encoder, where / "random")
        folders["random"] = where / "random"
    if "rgb" not in folders:
        say(f"mean and spread of RGB, in {where / 'rgb'}")
        embed_rgb(tiles, source, where / "rgb")
        folders["rgb"] = where / "rgb"
    if "imagenet" not in folders:
        warn("no `imagenet` among --descriptors: nothing to beat")
    return folders


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ConfigError(f"--descriptors takes NAME=DIR, such as spatial=d/spatial, not {text!r}.")
    return name, Path(folder)
