"""Results with their origin: each value knows its data, seed, interval, commit and hardware.

``results.json`` is a list of rows, one value each. It never holds NaN: a value that is undefined
is no result, and an interval that cannot be had (a single patient, say) is null.
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sslpath
from sslpath.errors import DataError
from sslpath.files import check_writable_file, write_json

REQUIRED = ("method", "metric", "value", "low", "high", "n", "seed", "data", "commit", "hardware")
VERSIONS = ("numpy", "torch", "torchvision", "openslide-python")


def row(
    method: str,
    metric: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int = 0,
    seed: int = 0,
    data: str = "",
    **extra: Any,
) -> dict[str, Any]:
    """One result: a value with its interval and where it comes from.

    Args:
        method: ``spatial``, ``imagenet``, ``random``, ``rgb``, ...
        metric: Such as ``tumour_top1``; see :mod:`sslpath.metrics`.
        value: The value.
        low: Lower end of the 95 % interval, or None.
        high: Upper end.
        n: How many queries, pairs or repeats the value rests on.
        seed: The seed of whatever was drawn.
        data: The data set.
        extra: More columns, such as ``k=10`` or ``dim=128``.

    Raises:
        DataError: If a number is NaN or infinite.

    Example:
        >>> row("rgb", "knn_auc", 0.71, 0.65, 0.77, n=512, data="phantoms", k=10)["k"]
        10
    """
    made = {
        "method": method,
        "metric": metric,
        "value": float(value),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": int(n),
        "seed": int(seed),
        "data": data,
        **extra,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    _check(made, "this row")
    return made


def write_results(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as ``results.json``, all or nothing.

    Raises:
        DataError: If a row lacks a column, or holds NaN.
    """
    rows = list(rows)
    for i, one in enumerate(rows):
        _check(one, f"row {i} for {path}")
    write_json(path, rows)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read ``results.json``.

    Raises:
        DataError: If the file is missing, damaged, or something else.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"No results at {path}; make them with `sslpath evaluate`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {path} as results ({error}); make it again.") from error
    if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
        raise DataError(f"{path} is not a list of results; make it with `sslpath evaluate`.")
    for i, one in enumerate(rows):
        _check(one, f"row {i} of {path}")
    return rows


def check_results_file(path: str | Path) -> None:
    """Refuse a file that results cannot be written to, or that holds something else.

    Raises:
        ConfigError: If it cannot be written.
        DataError: If it is there and holds no results.
    """
    check_writable_file(path)
    if not Path(path).exists() or Path(path).stat().st_size == 0:
        return
    try:
        read_results(path)
    except DataError as error:
        raise DataError(
            f"{path} is there and holds no results of sslpath: it is not overwritten. Choose "
            "another file, or move it away if it is not needed."
        ) from error


def _check(one: dict[str, Any], where: str) -> None:
    missing = [key for key in REQUIRED if key not in one]
    if missing:
        raise DataError(f"Not a result: {where} lacks {missing}. Make rows with results.row().")
    names = [key for key in ("method", "metric", "data") if not isinstance(one[key], str)]
    if names:
        raise DataError(f"Not a result: {names} of {where} is no text. Make rows with row().")
    what = f"{where} ({one['method']}, {one['metric']})"
    if not isinstance(one["value"], int | float):
        raise DataError(f"Not a result: the value of {what} is {one['value']!r}, not a number.")
    ends = [key for key in ("low", "high") if not isinstance(one[key], int | float | None)]
    if ends:
        raise DataError(f"Not a result: {ends} of {what} is neither a number nor null.")
    bad = [k for k, v in one.items() if isinstance(v, float) and not math.isfinite(v)]
    if bad:
        raise DataError(
            f"Not a result: {bad} of {what} is NaN or infinite. "
            "Leave an undefined value out; an interval that cannot be had is None."
        )


@cache
def commit() -> str:
    """``git describe`` of the checkout that this package runs from, else its version."""
    package = Path(sslpath.__file__).resolve().parent
    if (package.parent / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--tags"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return f"v{sslpath.__version__}"


@cache
def hardware() -> str:
    """Processor, cores this process may use, and GPU, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count()
    gpu = "no GPU"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        names = done.stdout.strip().splitlines() if done.returncode == 0 else []
        gpu = " + ".join(names) or gpu
    return f"{model}, {cores} cores, {gpu}"


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that decide a number."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def markdown_table(
    rows: Iterable[dict[str, Any]], metrics: Sequence[str] | None = None, digits: int = 2
) -> str:
    """A Markdown table for the README: a line a method, a column a metric, ``0.81 [0.77, 0.85]``.

    Rows of different data stand in tables of their own. What was not measured stays empty.

    Args:
        rows: From :func:`row` or :func:`read_results`.
        metrics: Which columns, in which order; all, in the order of the rows, by default.
        digits: Digits after the point.

    Raises:
        DataError: If a cell has two values, such as one for each of two k.

    Example:
        >>> print(markdown_table([row("rgb", "knn_auc", 0.714, 0.6, 0.8), row("x", "knn_auc", 1)]))
        | method | knn_auc |
        | --- | --- |
        | rgb | 0.71 [0.60, 0.80] |
        | x | 1.00 |
    """
    rows = list(rows)
    tables = []
    for data in dict.fromkeys(one["data"] for one in rows):
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for one in (one for one in rows if one["data"] == data):
            key = (str(one["method"]), one["metric"])
            if key in cells:
                raise DataError(f"{key} of {data!r} is there twice: pass rows of one setting only.")
            cells[key] = one
        measured = dict.fromkeys(metric for _, metric in cells)
        names = [name for name in metrics or measured if name in measured]
        lines = [f"| method | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
        for method in dict.fromkeys(label for label, _ in cells):
            values = [_cell(cells.get((method, name)), digits) for name in names]
            if any(values):
                lines.append(f"| {method} | {' | '.join(values)} |")
        tables.append((f"{data}\n\n" if data else "") + "\n".join(lines))
    return "\n\n".join(tables)


def _cell(one: dict[str, Any] | None, digits: int) -> str:
    if one is None:
        return ""
    text = f"{one['value']:.{digits}f}"
    if one["low"] is None or one["high"] is None:
        return text
    return f"{text} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
