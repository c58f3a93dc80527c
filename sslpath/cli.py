"""The command line: ``sslpath COMMAND``, each command one arrow of the flow, files in, files out.

Each command lives in a module of :mod:`sslpath.commands`.

Exit codes: 0 all done; 1 an error, explained on stderr; 2 wrong arguments; 3 finished, but some
slides or tiles could not be read (they are listed in a file); 130 interrupted.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sslpath import __version__
from sslpath.commands import data, demo, embed, evaluate, index, reproduce, search, tile, train
from sslpath.errors import SslpathError

FLOW = """\
Data flows one way, and each command does one step:

  slides --tile--> table of tiles --train--> siamese network
                                  --embed--> descriptors --evaluate--> results
                                                         --search----> gallery
                                                         --index-----> index, for millions

Try it all on synthetic slides:   sslpath demo
Your own slides:                  sslpath tile SLIDES/ --out tiles.parquet, then as above
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Example:
        >>> main(["data", "list"])  # doctest: +ELLIPSIS
        idc ...
        0
    """
    _escape_what_cannot_be_shown()
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        with _short_warnings():
            return int(options.run(options))
    except SslpathError as error:
        print(f"sslpath: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sslpath: interrupted; run the same command to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder where a file should be, a full disk, no permission
        where = f": {error.filename}" if error.filename is not None else ""
        print(f"sslpath: error: {error.strerror or error}{where}", file=sys.stderr)
        return 1


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings to a user as messages, without the line of code that gave them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **further: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"sslpath: warning: {message}", file=sys.stderr, flush=True)
        else:
            usual(message, category, *where, **further)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _escape_what_cannot_be_shown() -> None:
    """Let names that the terminal cannot show be printed as escapes, instead of ending the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # neither closed nor a notebook's
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="sslpath",
        description="Self-supervised similarity learning for digital pathology.",
        epilog=FLOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sslpath {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (tile, train, embed, evaluate, search, index, demo, data, reproduce):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
