"""``sslpath evaluate``: descriptors to a table of results."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import (
    command,
    count,
    open_table,
    positive,
    say,
    table_options,
    warn,
    whole,
)
from sslpath.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.commands.shared import Commands
    from sslpath.sources import TileSource

BASELINES = ("random", "rgb")


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
    table_options(p)
    p.add_argument(
        "--descriptors",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="folders of descriptors by method; a folder given as `random` or `rgb` stands in for "
        "that baseline",
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
        "--seed", type=whole, default=0, help="seed of the bootstrap and ADDR's pairs; recorded"
    )
    p.add_argument(
        "--no-baselines",
        dest="baselines",
        action="store_false",
        help="do not add the random network and RGB, which are otherwise computed if not given",
    )
    p.add_argument("--data", help="name of the data in the results (default: the table's stem)")
    p.add_argument("--figures", type=Path, metavar="DIR", help="save pictures here")


def run(options: argparse.Namespace) -> int:
    """``sslpath evaluate``."""
    from sslpath.descriptor_files import provenance_or_nothing
    from sslpath.pairs import near_far_um
    from sslpath.report import check_pictures, compare, pictures, tables
    from sslpath.results import check_results_file, write_results
    from sslpath.retrieval import check_each_once, check_methods

    folders = _folders(options.descriptors)
    check_methods(folders)
    where = options.out.parent / "baselines"
    wanted = [name for name in BASELINES if options.baselines and name not in folders]
    _check_folders(folders, {name: where / name for name in wanted})
    tiles, source = open_table(options)
    check_each_once(tiles)
    near_far_um(tiles, options.near_tiles, options.far_tiles)
    if options.split != "all":
        splits = sorted(set(tiles["split"]))
        tiles = tiles[tiles["split"] == options.split]
        if tiles.empty:
            raise ConfigError(
                f"{options.tiles} has no tiles of the split {options.split!r}; it has "
                f"{', '.join(map(repr, splits)) or 'no tiles'}. `--split all` takes every tile."
            )
    check_results_file(options.out)
    if options.figures is not None:
        check_pictures(options.figures, [*folders, *wanted])
    # All that can be wrong with the words is known by now: what follows takes time.
    if options.baselines:
        folders = add_baselines(tiles, source, folders, where)
    settings = {
        "near_tiles": options.near_tiles,
        "far_tiles": options.far_tiles,
        "k": options.k,
        "seed": options.seed,
        "group": options.group,
    }
    made_by = {name: provenance_or_nothing(folder, tiles) for name, folder in folders.items()}
    tiles, descriptors, rows = compare(
        tiles, folders, data=options.data or options.tiles.stem, **settings
    )
    for row in rows:
        row["split"] = options.split
        if "train_seed" in (about := made_by.get(row["method"], {})):
            row["train_seed"] = about["train_seed"]
    write_results(options.out, rows)
    say(tables(rows))
    if options.figures is not None:
        pictures(tiles, descriptors, rows, source, options.figures, **settings)
        say(f"pictures in {options.figures}")
    return 0


def add_baselines(
    tiles: "pd.DataFrame", source: "TileSource", folders: dict[str, Path], where: Path
) -> dict[str, Path]:
    """Add the baselines that every table has and that need no weights: random and RGB.

    The random network has the architecture of the ImageNet one beside it, and sees the tiles at
    their own size: enlarging them would only cost time.
    """
    from sslpath.backbones import pick_device
    from sslpath.descriptor_files import provenance_or_nothing
    from sslpath.embed import embed_encoder, embed_rgb
    from sslpath.imagenet import random_encoder

    folders = dict(folders)
    if "random" not in folders:
        about = provenance_or_nothing(folders["imagenet"], tiles) if "imagenet" in folders else {}
        arch, input_px = _like(about)
        input_px = min(int(tiles.attrs["tile_px"]), input_px)
        folders["random"] = where / "random"
        say(f"random network ({arch}, {input_px} px), in {folders['random']}")
        encoder = random_encoder(arch, 0, input_px, device=pick_device())
        embed_encoder(tiles, source, encoder, folders["random"])
    if "rgb" not in folders:
        folders["rgb"] = where / "rgb"
        say(f"mean and spread of RGB, in {folders['rgb']}")
        embed_rgb(tiles, source, folders["rgb"])
    if "imagenet" not in folders:
        warn("no `imagenet` among --descriptors: no ImageNet baseline to beat")
    return folders


def _like(about: "dict[str, Any]") -> tuple[str, int]:
    """Architecture and input of a network like the one that made features, if it is known here."""
    from sslpath.backbones import architecture

    arch, input_px = about.get("arch"), about.get("input_px")
    try:
        architecture(str(arch))
    except ConfigError:
        return "resnet18", 224
    return str(arch), input_px if isinstance(input_px, int) and input_px > 0 else 224


def _folders(texts: list[str]) -> dict[str, Path]:
    """Folders by method, from NAME=DIR."""
    folders: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ConfigError(
                f"--descriptors takes NAME=DIR, such as spatial=d/spatial, not {text!r}."
            )
        if name in folders:
            raise ConfigError(
                f"--descriptors names {name!r} twice, for {folders[name]} and {folder}: give each "
                "folder a name of its own."
            )
        folders[name] = Path(folder)
    return folders


def _check_folders(folders: dict[str, Path], baselines: dict[str, Path]) -> None:
    """Refuse folders that are not there, or that two methods share."""
    seen: dict[Path, str] = {}
    for name, folder in [*folders.items(), *baselines.items()]:
        if name in folders and not folder.is_dir():
            raise ConfigError(f"The folder {folder} for descriptors of {name!r} does not exist.")
        other = seen.setdefault(folder.resolve(), name)
        if other != name:
            raise ConfigError(
                f"{other!r} and {name!r} share one folder, {folder}: each method needs its own"
                + (
                    ", and this is where the baseline goes. Choose another --out."
                    if name in baselines
                    else "."
                )
            )
