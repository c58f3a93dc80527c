"""What the commands share: options, messages, exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.errors import ConfigError, counted
from sslpath.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.imagenet import Encoder
    from sslpath.sources import TileSource

    # argparse gives the type of `add_subparsers()` no public name.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
EXIT = "exit codes: 0 done, 1 error, 2 wrong arguments, 3 done but some inputs failed"
FAILED = 3
REPORTS = ("slide_id,path,error", "key,error")  # headings of lists of what failed


def say(text: str) -> None:
    """Print to the reader of the command line, once if torchrun runs the command several times."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"sslpath: {text}", file=sys.stderr, flush=True)


def command(
    commands: "Commands",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    about: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command: ``summary`` in the list of commands, ``about`` and ``example`` in its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=about,
        epilog=f"example:\n{example}\n{EXIT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def tell_given(p: argparse.ArgumentParser, *names: str) -> None:
    """Make options None unless they are given, so that :func:`refuse_ignored` can tell.

    :func:`fill_in` gives them their defaults.
    """
    p.set_defaults(defaults={name: p.get_default(name) for name in names}, **dict.fromkeys(names))


def refuse_ignored(options: argparse.Namespace, names: Iterable[str], choice: str) -> None:
    """Refuse options that are given and would be ignored.

    Args:
        options: The options; those of ``names`` are None or False unless they are given.
        names: Options that have no effect ...
        choice: ... with this choice, such as ``--encoder rgb``.

    Raises:
        ConfigError: If one of them is given.

    Example:
        >>> refuse_ignored(argparse.Namespace(seed=0, depths=False), ["seed", "depths"], "--run")
        Traceback (most recent call last):
        sslpath.errors.ConfigError: --seed has no effect with --run: leave it out.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if getattr(options, name) is not None and getattr(options, name) is not False
    ]
    if given:
        have, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise ConfigError(
            f"{' and '.join(given)} {have} no effect with {choice}: leave {them} out."
        )


def fill_in(options: argparse.Namespace) -> None:
    """Give options of :func:`tell_given` that are not given their defaults."""
    for name, value in options.defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def check_folder(path: Path) -> None:
    """Make sure that a folder of that name can be, before hours of work on what goes there.

    Raises:
        ConfigError: If there is a file in its place, or in that of a folder above it.
    """
    there = next((each for each in (path, *path.parents) if each.exists()), None)
    if there is not None and not there.is_dir():
        raise ConfigError(f"{path} cannot be a folder, as {there} is a file. Choose another name.")


def shown(text: str) -> str:
    r"""A name on one line: what cannot be seen, such as the end of a line, as an escape.

    Example:
        >>> print(shown("case\n1"))
        case\n1
    """
    return text if text.isprintable() else repr(text)[1:-1]


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """An argument that is a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return value


def whole(text: str) -> int:
    """An argument that is a whole number of 0 or more, such as a seed."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return value


def scheduler_option(p: argparse.ArgumentParser) -> None:
    """The option for work on many machines."""
    p.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let the workers of a Dask scheduler do it, on this machine or many, each taking one "
        "slide at a time; paths must be the same everywhere",
    )


def imagenet_options(p: argparse.ArgumentParser) -> None:
    """Options that name an ImageNet encoder."""
    p.add_argument(
        "--arch",
        default="resnet50",
        help="torchvision classifier used as encoder (default resnet50)",
    )
    p.add_argument(
        "--imagenet-weights",
        type=Path,
        metavar="FILE",
        help="local ImageNet weights of --arch (.safetensors or .pth); without it "
        "torchvision downloads its own",
    )
    p.add_argument(
        "--input-px", type=count, default=224, help="tiles are resized to this (default 224)"
    )
    p.add_argument(
        "--depths",
        action="store_true",
        help="features of every depth of the encoder, not of its last layer only: what a head "
        "learns best from; the ImageNet baseline is without",
    )


def imagenet_encoder(options: argparse.Namespace) -> "Encoder":
    """The ImageNet encoder that the options name, on the device that they name."""
    from sslpath.backbones import pick_device
    from sslpath.imagenet import load_imagenet

    device = pick_device(getattr(options, "device", "auto"))
    return load_imagenet(
        options.arch,
        options.imagenet_weights,
        options.input_px,
        depths=options.depths,
        device=device,
    )


def check_report(path: Path) -> None:
    """Refuse to write failures over a file that is no such list.

    Raises:
        ConfigError: If it is something else.
    """
    if path.is_dir() or (path.exists() and not _is_report(path)):
        raise ConfigError(
            f"{path} is there, and is not of sslpath, which would list there what fails. Move it, "
            "or choose another --out."
        )


def _is_report(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip() in REPORTS


def report(failures: "list[Any] | pd.DataFrame", path: Path, one: str, what: str) -> int:
    """Write failures, if there are any, say how many of what, and choose the exit code."""
    import pandas as pd

    frame = pd.DataFrame(failures)
    if frame.empty:
        if path.exists() and _is_report(path):
            path.unlink()
        return 0
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)
    warn(f"{counted(len(frame), one)} {what}; see {path}")
    return FAILED


def table_options(p: argparse.ArgumentParser) -> None:
    """The table of tiles, and where its slides are now."""
    p.add_argument("tiles", type=Path, help="table of tiles")
    p.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the slides or the zip are now, if they moved since `sslpath tile`",
    )


def open_table(options: argparse.Namespace) -> "tuple[pd.DataFrame, TileSource]":
    """The table of tiles that the options name, and the source of its pixels."""
    from sslpath.sources import open_source
    from sslpath.table import load_tiles

    tiles = load_tiles(options.tiles)
    return tiles, open_source(tiles, options.root)
