"""Chapters of the book: exercise stubs, solved copies, execution within a budget, measured times.

    python tools/chapters.py stubs            # write the stubs of exercises into the chapters
    python tools/chapters.py run out/book     # execute solved copies of all chapters there
    python tools/chapters.py times            # write the times just measured into the chapters

Exercises are written once, solved, in ``book/solutions/NN-name.py``. A chapter holds the stub: the
solution with what lies between ``# solution`` and ``# end`` taken out. Before chapters are
executed, each stub is followed by its check, which must fail, then by the solution and the check,
which must pass: one execution proves both.
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
CHAPTER_S, BOOK_S, CELL_S = 60, 480, 90  # budgets on two cores
COPIED = ("_config.yml", "_toc.yml", "book", "sslpath", "tools", "README.md", "CHANGELOG.md",
          "CONTRIBUTING.md", "CITATION.cff", "LICENSE")  # fmt: skip
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


def execute(folder: Path, chapters: Sequence[Path], cell_s: int = CELL_S) -> bool:
    """Execute chapters in place, one after the other; returns whether all went through."""
    report = folder / "nbmake.xml"
    command: list[str | Path] = [
        sys.executable, "-m", "pytest", "--nbmake", "--overwrite", f"--nbmake-timeout={cell_s}",
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


def slowness(seconds: dict[str, float], recorded: dict[str, float]) -> float:
    """How many times slower than where the times were recorded this machine is; at least 1.

    It is the median over the chapters, so that one that has become slow does not hide itself.
    """
    ratios = [took / recorded[name] for name, took in seconds.items() if recorded.get(name, 0) > 5]
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


def over_budget(seconds: dict[str, float], slow: float = 1.0) -> Iterator[str]:
    """What takes longer than it may, on a machine that is so many times slower than others."""
    for name, took in seconds.items():
        if took > CHAPTER_S * slow:
            yield f"{name} took {took:.0f} s; a chapter has {CHAPTER_S * slow:.0f} s."
    total = sum(seconds.values())
    if total > BOOK_S * slow:
        yield f"The chapters took {total:.0f} s in all; the book has {BOOK_S * slow:.0f} s."


def run(target: Path, only: Sequence[str] = ()) -> int:
    """Execute solved copies of the chapters in ``target``; print the budget table."""
    copy(ROOT, target)
    chapters = notebooks(target / "book")
    executed = chosen(chapters, only)
    start = time.perf_counter()
    prepare = "from sslpath.book import phantom_tiles; phantom_tiles()"
    subprocess.run([sys.executable, "-c", prepare], check=True)
    prepared = time.perf_counter() - start
    good = execute(target, executed)
    seconds = measured(target, executed)
    print(f"\n{'chapter':32} {'seconds':>8} {'budget':>7} {'slowest cell':>13}")
    print(f"{'(phantom slides, made once)':32} {prepared:8.1f}")
    for path in executed:
        took = seconds[path.stem]
        print(f"{path.stem:32} {took:8.1f} {CHAPTER_S:7d} {slowest(path):13.1f}")
    print(f"{'the book':32} {sum(seconds.values()):8.1f} {BOOK_S:7d}")
    recorded = {one["data"]: one["value"] for one in json.loads(TIMES.read_text(encoding="utf-8"))}
    slow = slowness(seconds, recorded)
    print(f"This machine takes {slow:.1f} times as long as the recorded one: so much more it may.")
    problems = list(over_budget(seconds, slow))
    print("\n".join(problems))
    (target / "times.json").write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")
    return 0 if good and not problems else 1


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
    from sslpath.results import row, write_results

    seconds = json.loads((target / "times.json").read_text(encoding="utf-8"))
    rows = [
        row("book", "seconds", round(took, 1), n=1, data=name) for name, took in seconds.items()
    ]
    write_results(TIMES, rows)
    for one in rows:
        path = BOOK / f"{one['data']}.ipynb"
        write(header(read(path), time_text(one)), path)


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
