"""``sslpath reproduce``: the paper's experiment, from the bucket to the table."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import FAILED, command, count, positive, say, whole
from sslpath.commands.tile import parts_of
from sslpath.errors import ConfigError, counted

if TYPE_CHECKING:
    from sslpath.commands.shared import Commands
    from sslpath.model import ModelConfig
    from sslpath.settings import TrainConfig

# Options that are handed on to `sslpath train`, if they are given.
TRAINING = ("near_tiles", "far_tiles", "steps", "slides_per_batch", "tiles_per_slide", "lr")
MPP, TILE_PX = 0.5, 224


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "reproduce",
        run,
        "the paper's experiment, from download to table",
        "Run the paper's experiment on Camelyon16: download, tile, ImageNet features, train,\n"
        "descriptors, evaluate, and the table of the paper's results beside this run's. Each step\n"
        "is a command of sslpath, which is printed; called again, the command goes on where it\n"
        "stopped. Before the start a plan says what it takes, from rates measured here.\n"
        "--config paper learns with all that is known of the paper's settings and needs a GPU;\n"
        "--config head learns a head on ImageNet features, on a CPU if need be.",
        "  sslpath reproduce camelyon16 --data c16 --out runs/c16 --config head --limit 12\n"
        "  sslpath reproduce camelyon16 --data c16 --out runs/paper --config paper --workers 8\n",
    )
    p.add_argument("what", choices=("camelyon16",), help="the experiment")
    p.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="where the slides are, or go"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything else")
    p.add_argument("--config", choices=("paper", "head"), default="paper", help="default: paper")
    p.add_argument("--plan", action="store_true", help="make the plan, and stop")
    p.add_argument("--limit", type=count, help="at most so many slides are fetched")
    p.add_argument(
        "--no-download", dest="download", action="store_false", help="use the slides that are there"
    )
    p.add_argument("--url", help="a mirror of the bucket (default: the public one)")
    p.add_argument("--mpp", type=positive, default=MPP, help=f"um per pixel (default {MPP})")
    p.add_argument("--tile-px", type=count, default=TILE_PX, help=f"default {TILE_PX}")
    p.add_argument("--max-tiles", type=count, help="at most so many tiles a slide (default: all)")
    p.add_argument("--arch", default="resnet50", help="default resnet50")
    p.add_argument("--input-px", type=count, default=TILE_PX, help=f"default {TILE_PX}")
    p.add_argument(
        "--imagenet-weights",
        type=Path,
        metavar="FILE",
        help="local ImageNet weights of --arch; without it torchvision downloads its own",
    )
    for name, kind in zip(
        TRAINING, (positive, positive, count, count, count, positive), strict=True
    ):
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, help="as of `sslpath train`")
    p.add_argument("--seed", type=whole, default=0, help="of everything random (default 0)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument("--workers", type=count, default=2, help="processes that read (default 2)")
    p.add_argument("--strict", action="store_true", help="stop at the first slide that fails")


def run(options: argparse.Namespace) -> int:
    """``sslpath reproduce``."""
    from sslpath.datasets.camelyon16 import find_camelyon16
    from sslpath.plan import make_plan
    from sslpath.slides import Slide

    training, model = _settings(options)
    codes = [0]
    if options.download:
        codes.append(_call(_download(options)))
    slides = [Slide(one.path, slide_id=one.slide_id) for one in find_camelyon16(options.data)]
    cut = {"mpp": options.mpp, "tile_px": options.tile_px, "max_tiles": options.max_tiles}
    say(f"\n{make_plan(slides, training, model, device=options.device, **cut)}")
    if options.plan:
        return max(codes)

    _claim(options)
    table = options.out / "tiles.parquet"
    broken = _broken(table, {slide.slide_id for slide in slides})
    if broken is None:
        codes.append(_call(_tile(options, table)))
    else:
        say(f"\n{table} is there; unreadable: {counted(broken, 'slide')}.")
        codes.append(FAILED if broken else 0)
    codes += [_call(line) for line in _to_results(options, training, table)]
    _write_table(options, training, model, len(slides))
    return max(codes)


def _call(words: list[Any]) -> int:
    """Run a command of sslpath, as its user would.

    Raises:
        ConfigError: If it fails.
    """
    from sslpath.cli import main

    line = [str(word) for word in words]
    say(f"\n$ sslpath {shlex.join(line)}")
    code = main(line)
    if code not in (0, FAILED):
        raise ConfigError(
            f"`sslpath {line[0]}` failed, see above. When that is mended, the same command goes on "
            "from there."
        )
    return code


def _option(name: str, value: Any) -> list[Any]:
    """An option of a command; nothing if it is not given."""
    return [] if value is None else [f"--{name.replace('_', '-')}", value]


def _download(options: argparse.Namespace) -> list[Any]:
    line = ["data", "camelyon16", "--out", options.data]
    line += _option("limit", options.limit) + _option("url", options.url)
    return line + ["--strict"] * options.strict


def _tile(options: argparse.Namespace, table: Path) -> list[Any]:
    line = ["tile", options.data, "--camelyon16", "--mpp", options.mpp]
    line += ["--tile-px", options.tile_px, *_option("max_tiles", options.max_tiles)]
    line += ["--workers", options.workers, *["--strict"] * options.strict]
    return [*line, "--out", table]


def _to_results(
    options: argparse.Namespace, training: "TrainConfig", table: Path
) -> list[list[Any]]:
    """The commands from the table of tiles to the results."""
    from sslpath.paper_table import DATA

    imagenet, run_dir, spatial = (options.out / name for name in ("imagenet", "run", "spatial"))
    weights = ["--arch", options.arch, "--input-px", options.input_px]
    weights += _option("imagenet_weights", options.imagenet_weights)
    device, workers = ["--device", options.device], ["--workers", options.workers]
    known = ["--features", imagenet] if options.config == "head" else []
    train = known or ["--preset", "paper", *weights]
    for name in TRAINING:
        train = train + _option(name, getattr(options, name))
    # With features that are there already nothing is left to read.
    on = device if known else [*device, *workers]
    distances = ["--near-tiles", training.near_tiles, "--far-tiles", training.far_tiles]
    return [
        ["embed", table, "--encoder", "imagenet", *weights, *device, *workers, "--out", imagenet],
        ["train", table, *train, "--seed", options.seed, *on, "--out", run_dir],
        ["embed", table, "--run", run_dir, *known, *on, "--out", spatial],
        [
            *("evaluate", table, "--descriptors", f"spatial={spatial}", f"imagenet={imagenet}"),
            *(*distances, "--seed", options.seed, "--data", DATA.value),
            *("--out", options.out / "results.json", "--figures", options.out / "figures"),
        ],
    ]


def _write_table(
    options: argparse.Namespace, training: "TrainConfig", model: "ModelConfig", slides: int
) -> None:
    """Write and print the paper's results beside this run's."""
    from sslpath.files import atomic_path
    from sslpath.paper_table import paper_table, settings_of
    from sslpath.results import read_results

    ours = settings_of(training, model, options.tile_px, f"Camelyon16, {slides} slides")
    text = paper_table(read_results(options.out / "results.json"), ours)
    with atomic_path(options.out / "paper.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    say(f"\n{text}\n\n{options.out / 'paper.md'}: the paper's results beside this run's")


def _settings(options: argparse.Namespace) -> "tuple[TrainConfig, ModelConfig]":
    """What `sslpath train` will use, for the plan and the table."""
    from dataclasses import replace

    from sslpath.model import ModelConfig
    from sslpath.settings import default_config, paper_preset

    if options.config == "paper":
        training, model = paper_preset()
        size = {"input_px": options.input_px, "feature_dim": 0}  # as long as the trunk's
        model = replace(model, arch=options.arch, **size)
    else:
        training = default_config("frozen")
        model = ModelConfig(arch=options.arch, input_px=options.input_px)
    given = {name: value for name in TRAINING if (value := getattr(options, name)) is not None}
    return replace(training, seed=options.seed, **given), model


def _claim(options: argparse.Namespace) -> None:
    """Write down what decides the result, or compare with what an earlier call wrote.

    Raises:
        ConfigError: If that was something else.
    """
    from sslpath.files import write_json

    names = ("config", "mpp", "tile_px", "max_tiles", "arch", "input_px", "seed", *TRAINING)
    mine = {name: getattr(options, name) for name in names}
    path = options.out / "settings.json"
    if not path.exists():
        write_json(path, mine)
        return
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is there, and is not of `sslpath reproduce` ({error}). Choose another --out."
        ) from error
    other = [name for name in mine if mine[name] != earlier.get(name)]
    if other:
        was = ", ".join(f"{name} {earlier.get(name)}" for name in other)
        raise ConfigError(
            f"{options.out} holds a run with {was}. Choose another --out, or the same settings."
        )


def _broken(path: Path, slides: set[str]) -> int | None:
    """How many of the slides the table lacks as they could not be read; None without the table."""
    import pandas as pd

    from sslpath.table import load_tiles

    if not path.exists() or parts_of(path).exists():  # the latter: stopped just before its end
        return None
    failed = path.with_suffix(".failed.csv")
    broken = set(pd.read_csv(failed)["slide_id"]) if failed.exists() else set()
    return len(broken) if set(load_tiles(path)["slide_id"]) | broken == slides else None
