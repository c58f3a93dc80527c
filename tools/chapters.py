"""Chapters of the book: exercise stubs, solved copies, their execution, and recorded times.

    python tools/chapters.py stubs            # write the stubs of exercises into the chapters
    python tools/chapters.py run out/book     # execute solved copies of all chapters there
    python tools/chapters.py times            # record the times of that run, and write them into
                                              # the chapters

Exercises are written once, solved, in ``book/solutions/NN-name.py``. A chapter holds the stub: the
solution with what lies between ``# solution`` and ``# end`` taken out. Before chapters are
executed, each stub is followed by its check, which must fail, then by the solution and the check,
which must pass: one execution proves both.

No execution fails because it was slow: the machine may be slow or busy. The time budget holds for
the recorded times of a quiet run, where a test checks it.
What this module does not do: lay out pages, which is Jupyter Book's work.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
TIMES = ROOT / "data" / "results" / "chapters.json"
CHAPTER_S, BOOK_S = 60, 480  # budgets of the recorded times, on two cores
HANG_S = 3600  # ends a cell that hangs; a slow machine never gets there
SLOW, SHORT_S = 2.0, 5.0  # worth a warning: so many times the expected time; shorter times vary
COPIED = ("_config.yml", "_toc.yml", "book", "sslpath", "tools", "README.md", "CHANGELOG.md",
          "CONTRIBUTING.md", "CITATION.cff", "LICENSE")  # fmt: skip
MEASURED = "times.json"  # of the last execution, in the folder that it was in
BEGIN, END = "# solution", "# end"
TODO = "# your code here"
TIME = re.compile(r"(<!-- time -->).*?(<!-- /time -->)", re.DOTALL)


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook as it is committed: a newline at the end, nothing executed."""
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def read_solutions(chapter: Path) -> dict[str, str]:
    """The solved exercises of a chapter by their number, such as ``3.1``; empty without a file."""
    path = chapter.parent / "solutions" / f"{chapter.stem}.py"
    if not path.exists():
        return {}
    parts = re.split(r"^# %% (\S+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {number: code.strip("\n") for number, code in zip(parts[1::2], parts[2::2], strict=True)}


def stub(solution: str) -> str:
    r"""The solution with its marked lines taken out.

    Example:
        >>> print(stub("def side(n):\n    # solution\n    return n / 2\n    # end"))
        def side(n):
            ...  # your code here
    """
    lines: list[str] = []
    inside = False
    for line in solution.splitlines():
        if line.strip() == BEGIN:
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            # A function needs a body; at the top level dots would be printed below the cell.
            lines.append(f"{indent}...  {TODO}" if indent else TODO)
        elif line.strip() == END:
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def unmarked(solution: str) -> str:
    """The solution as a reader sees it."""
    return "\n".join(s for s in solution.splitlines() if s.strip() not in (BEGIN, END))


def number_of(cell: NotebookNode) -> str:
    """The number of the exercise whose stub this cell is."""
    return cell.source.split("\n", 1)[0].removeprefix("# Exercise ").strip()


def with_stubs(notebook: NotebookNode, solutions: dict[str, str]) -> NotebookNode:
    """The chapter with the stub of each exercise in the cells tagged ``exercise``."""
    for cell in notebook.cells:
        if "exercise" in tags(cell):
            number = number_of(cell)
            if number not in solutions:
                raise SystemExit(f"Exercise {number!r} has no solution; there are {[*solutions]}.")
            cell.source = f"# Exercise {number}\n{stub(solutions[number])}"
    return notebook


def solved(notebook: NotebookNode, solutions: dict[str, str]) -> NotebookNode:
    """The chapter as it is executed for the book: stubs proved to fail, solutions to pass."""
    cells: list[NotebookNode] = []
    waiting = ""
    for cell in notebook.cells:
        if "check" in tags(cell) and waiting:
            cells += [_probe(cell), _solution(waiting, solutions[waiting])]
            waiting = ""
        cells.append(cell)
        if "exercise" in tags(cell):
            waiting = number_of(cell)
    if waiting:
        raise SystemExit(f"Exercise {waiting} has no check after it.")
    notebook.cells = cells
    return notebook


def _probe(check: NotebookNode) -> NotebookNode:
    """Run a check on the stub; it must fail. Left out of the page."""
    mode = "import os\nos.environ['SSLPATH_CHECKS'] = "
    source = f"{mode}'fail'\n{check.source}\nos.environ['SSLPATH_CHECKS'] = 'pass'"
    return nbformat.v4.new_code_cell(source, metadata={"tags": ["remove-cell", "probe"]})


def _solution(number: str, solution: str) -> NotebookNode:
    show = {"code_prompt_show": f"Show a solution of {number}", "code_prompt_hide": "Hide it"}
    metadata = {"tags": ["hide-input", "solution"], "mystnb": show}
    return nbformat.v4.new_code_cell(unmarked(solution), metadata=metadata)


def notebooks(book: Path) -> list[Path]:
    """The chapters and appendices that are notebooks, in their order."""
    return sorted(book.glob("*.ipynb"))


def stubs(only: Sequence[str] = ()) -> None:
    """Write the stubs of exercises into the chapters."""
    for path in chosen(notebooks(BOOK), only):
        write(with_stubs(read(path), read_solutions(path)), path)


def chosen(chapters: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """The chapters whose names begin with one of ``only``; all of them if that is empty."""
    return [p for p in chapters if not only or any(p.stem.startswith(name) for name in only)]


def copy(root: Path, target: Path) -> None:
    """Copy what a build needs, with solved chapters."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build")
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skip)
        elif source.exists():
            shutil.copy(source, target / name)
    for path in notebooks(target / "book"):
        write(solved(read(path), read_solutions(path)), path)


def execute(folder: Path, chapters: Sequence[Path]) -> bool:
    """Execute chapters in place, one after the other; returns whether all went through."""
    report = folder / "nbmake.xml"
    command: list[str | Path] = [
        sys.executable, "-m", "pytest", "--nbmake", "--overwrite", f"--nbmake-timeout={HANG_S}",
        "--nbmake-kernel=python3", f"--junitxml={report}", "--rootdir", folder, "-p",
        "no:cacheprovider", "-c", os.devnull, "-q", *chapters,
    ]  # fmt: skip
    # PyTorch's threads wait by spinning: beside one other busy process, training takes three times
    # as long. Passive waiting costs little and keeps measured times steady.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "SSLPATH_CHECKS": "pass"}
    # A kernel that has started processes may be ended before it removes its temporary folder.
    with tempfile.TemporaryDirectory() as scratch:
        environment["TMPDIR"] = scratch
        return subprocess.run(command, env=environment, check=False).returncode == 0


def measured(folder: Path, chapters: Sequence[Path]) -> dict[str, float]:
    """Seconds that each chapter took, from the report of the execution."""
    tree = ElementTree.parse(folder / "nbmake.xml")
    # nbmake names its tests by the path, with dots in place of slashes or not, by version.
    cases = {
        f"{case.get('classname', '')} {case.get('name', '')} {case.get('file', '')}": case
        for case in tree.iter("testcase")
    }
    return {
        path.stem: sum(
            float(case.get("time", 0)) for key, case in cases.items() if path.stem in key
        )
        for path in chapters
    }


def slowest(path: Path) -> float:
    """Seconds of the slowest cell of an executed chapter."""

    def seconds(cell: NotebookNode) -> float:
        when = cell.metadata.get("execution", {})
        ends = [when.get("iopub.execute_input"), when.get("shell.execute_reply")]
        if None in ends:
            return 0.0
        from datetime import datetime

        first, last = (datetime.fromisoformat(end.replace("Z", "+00:00")) for end in ends)
        return (last - first).total_seconds()

    return max((seconds(cell) for cell in read(path).cells), default=0.0)


def recorded() -> dict[str, float]:
    """Seconds that each chapter took in the recorded run; empty without a record."""
    if not TIMES.exists():
        return {}
    return {one["data"]: one["value"] for one in json.loads(TIMES.read_text(encoding="utf-8"))}


def slowness(seconds: dict[str, float], record: dict[str, float]) -> float:
    """How many times the recorded seconds a chapter took: the median over the chapters.

    The median, so that a single chapter that has become slow does not pass for a slow machine.
    """
    ratios = [took / max(record[name], SHORT_S) for name, took in seconds.items() if name in record]
    return statistics.median(ratios) if ratios else 1.0


def slower(seconds: dict[str, float], record: dict[str, float]) -> Iterator[str]:
    """Warnings about chapters that took much longer than their record and the others suggest."""
    slow = slowness(seconds, record)
    for name in [name for name in seconds if name in record]:
        took, expected = seconds[name], slow * max(record[name], SHORT_S)
        if took > SLOW * expected:
            yield (
                f"Warning: {name} took {took:.0f} s; about {expected:.0f} s were expected from its "
                "record and from the other chapters. Has it become slower?"
            )


def over_budget(seconds: dict[str, float]) -> Iterator[str]:
    """What takes longer than it may."""
    for name, took in seconds.items():
        if took > CHAPTER_S:
            yield f"{name} took {took:.0f} s; a chapter has {CHAPTER_S} s."
    total = sum(seconds.values())
    if total > BOOK_S:
        yield f"The chapters took {total:.0f} s in all; the book has {BOOK_S} s."


def run(target: Path, only: Sequence[str] = ()) -> int:
    """Execute solved copies of the chapters in ``target``; print how long each took.

    Returns:
        0 if every cell went through, else 1; times play no part.
    """
    copy(ROOT, target)
    executed = chosen(notebooks(target / "book"), only)
    if not executed:
        raise SystemExit(f"The name of no chapter begins with {' or '.join(only)}.")
    start = time.perf_counter()
    prepare = "from sslpath.book import phantom_tiles; phantom_tiles()"
    subprocess.run([sys.executable, "-c", prepare], check=True)
    prepared = time.perf_counter() - start
    good = execute(target, executed)
    seconds, record = measured(target, executed), recorded()
    print(f"\n{'chapter':32} {'seconds':>8} {'recorded':>9} {'slowest cell':>13}")
    print(f"{'(phantom slides, made once)':32} {prepared:8.1f}")
    for path in executed:
        was = f"{record[path.stem]:.1f}" if path.stem in record else "none"
        print(f"{path.stem:32} {seconds[path.stem]:8.1f} {was:>9} {slowest(path):13.1f}")
    before = [record.get(name, 0.0) for name in seconds]
    print(f"{'the book':32} {sum(seconds.values()):8.1f} {sum(before):9.1f}")
    print(f"The median chapter took {slowness(seconds, record):.1f} times its recorded time.")
    for warning in slower(seconds, record):
        print(warning)
    if good:  # a chapter that stopped early has no time to record
        (target / MEASURED).write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


def header(notebook: NotebookNode, text: str) -> NotebookNode:
    """The chapter with ``text`` as its measured time."""
    cell = notebook.cells[0]
    cell.source = TIME.sub(rf"\g<1>{text}\g<2>", cell.source)
    return notebook


def time_text(row: dict[str, Any]) -> str:
    """What the header of a chapter says of its time."""
    return f"{row['value']:.0f} s on two CPU cores, without a GPU"


def times(target: Path) -> None:
    """Record the times of the last execution in ``data/results`` and in the chapters."""
    from sslpath.results import read_results, row, write_results

    if not (target / MEASURED).exists():
        raise SystemExit(f"No times in {target}: execute the chapters there first, without errors.")
    seconds = json.loads((target / MEASURED).read_text(encoding="utf-8"))
    slow = slowness(seconds, recorded())
    print(f"The median chapter took {slow:.1f} times its recorded time, which is now replaced.")
    print("Keep the new times only if the machine had nothing else to do.")
    # Chapters that were not executed keep their record; chapters that are gone lose it.
    kept = {path.stem for path in notebooks(BOOK)} - seconds.keys()
    before = read_results(TIMES) if TIMES.exists() else []
    new = [row("book", "seconds", round(took, 1), n=1, data=name) for name, took in seconds.items()]
    rows = sorted([*new, *(one for one in before if one["data"] in kept)], key=lambda r: r["data"])
    write_results(TIMES, rows)
    for one in new:
        path = BOOK / f"{one['data']}.ipynb"
        write(header(read(path), time_text(one)), path)
    for problem in over_budget(recorded()):
        print(f"Warning: {problem} A test will fail until it is shorter.")


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("stubs", "write the stubs of exercises into the chapters"),
        ("run", "execute solved copies"),
        ("times", "record the measured times"),
    ):
        p = commands.add_parser(name, help=text)
        if name != "stubs":
            p.add_argument("target", type=Path, nargs="?", default=ROOT / "out" / "book")
        if name != "times":
            p.add_argument("--only", nargs="*", default=[], help="first letters of chapters")
    options = parser.parse_args()
    if options.command == "run":
        return run(options.target.resolve(), options.only)
    if options.command == "times":
        times(options.target.resolve())
    else:
        stubs(options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
