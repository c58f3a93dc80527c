"""Checks of the chapters as they are written: numbers, structure, exercises, cells.

    python tools/prose.py [FOLDER]      # `book` by default; prints what is wrong, exit code 1

A result in prose must be computed (glued from a cell) or cited: a bare number that looks like one
is refused. Settings with a unit of length, size or time in pixels, um or bytes are no results.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from chapters import ROOT, notebooks, read, read_solutions, stub, tags
from nbformat import NotebookNode

LONGEST_CELL = 25  # lines of code; more belongs into the package
UNIT = r"(?!\s?(?:µm|um|mm|nm|cm|px|pixels?|GB|GiB|MB|MiB|TB|KB|kB|bit|bytes?)\b)"
METRIC = re.compile(
    rf"""(?<![\w.-])\d+\.\d+(?!\.?\w){UNIT}                       # 0.76
    | (?<![\w.])\d+(?:\.\d+)?\s?(?:%|percent\b|per\ cent\b)       # 76 %
    | (?<![\w.])\d+(?:\.\d+)?\s?(?:-?fold\b|times\s(?:as|more|less|fewer|faster|slower|smaller|
      larger|shorter|better|longer)\b|×(?!\s?\d))                 # 3 times as
    | (?<![\w.])\d+(?:\.\d+)?\s?(?:s|ms|seconds?|minutes?|min|hours?|h)\b  # 4 s
    """,
    re.VERBOSE,
)
HIDDEN = re.compile(
    r"""^(`{3,}|~{3,}).*?^\1\s*$      # fenced code and directives
    | <!--\ time\ -->.*?<!--\ /time\ -->
    | \bExercise\ \d+\.\d+ | CC\ BY\ 4\.0 | \b9[59]\s?%\ (?:confidence\ )?intervals?
    | <!--.*?--> | <[^>]+>
    | \$\$.*?\$\$ | \$[^$\n]+\$
    | (?:\{[\w:-]+\})?`[^`]+`         # code and roles
    | \]\([^)]*\) | https?://\S+
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n\s*\n|\n(?=\s*[-*|#\d])")
PARTS = ("## Summary", "## Exercises", "## Further reading")
OPENING = ("**You will learn**", "**You need**", "**Time**")
COLAB = """\
# In a fresh Colab this fetches the package that the chapter belongs to; elsewhere it does nothing.
import importlib.util
import sys

if importlib.util.find_spec("sslpath") is None:
    !git clone --quiet --depth 1 --branch v0.1.0 https://github.com/sslpath/sslpath \\
        || git clone --quiet --depth 1 https://github.com/sslpath/sslpath
    %pip install --quiet -e sslpath
    sys.path.insert(0, "sslpath")"""


def bare_metrics(markdown: str) -> list[str]:
    """Numbers that look like results and are neither computed nor cited, each in its sentence.

    Example:
        >>> bare_metrics("ImageNet reaches 0.61. A pixel spans 0.5 µm, a `lr` of `0.001`.")
        ['0.61 in: ImageNet reaches 0.61.']
        >>> bare_metrics("About 1.5 is reported {cite:p}`someone`; ours is {glue:text}`addr:.2f`.")
        []
    """
    # A citation is kept as a mark, so that its sentence is known to have one.
    text = re.sub(r"\{cite[\w:]*\}`[^`]+`", " CITED ", markdown)
    text = HIDDEN.sub(" ", text)
    found = []
    for sentence in SENTENCE.split(text):
        if "CITED" in sentence:
            continue
        where = " ".join(sentence.split())
        found += [
            f"{match.group().strip()} in: {where[:90]}" for match in METRIC.finditer(sentence)
        ]
    return found


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a chapter, or any other page."""
    if path.suffix == ".md":
        for found in bare_metrics(path.read_text(encoding="utf-8")):
            yield f"bare number {found}"
        return
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for found in bare_metrics(cell.source):
                yield f"bare number {found}"
    yield from _clean(notebook)
    if re.match(r"\d\d-", path.name):
        yield from _structure(notebook)
        yield from _exercises(notebook, read_solutions(path))


def _clean(notebook: NotebookNode) -> Iterator[str]:
    if notebook.metadata.get("allow_errors") or notebook.metadata.get("execution", {}).get(
        "allow_errors"
    ):
        yield "allow_errors lets a broken chapter pass: remove it"
    if set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"stray metadata {sorted(notebook.metadata)}"
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.outputs or cell.execution_count:
            yield f"cell {i} has outputs: clear them before committing"
        if {"raises-exception", "skip-execution"} & set(tags(cell)):
            yield f"cell {i}: neither raises-exception nor skip-execution is allowed"
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > LONGEST_CELL and not {"exercise", "check"} & set(tags(cell)):
            yield f"cell {i} has {len(lines)} lines; the most is {LONGEST_CELL}"
        picture = cell.metadata.get("mystnb", {})
        if "figure" in picture and not picture.get("image", {}).get("alt"):
            yield f"cell {i} is a figure without alt text"


def _structure(notebook: NotebookNode) -> Iterator[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in OPENING:
        if part not in notebook.cells[0].source:
            yield f"the opening lacks {part}"
    if "<!-- time -->" not in notebook.cells[0].source:
        yield "the opening has no place for the measured time: <!-- time --><!-- /time -->"
    for part in PARTS:
        if f"\n{part}\n" not in f"\n{text}\n":
            yield f"there is no section {part!r}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not code or code[0].source != COLAB or "remove-cell" not in tags(code[0]):
        yield "the first code cell is not the one that fetches the package in Colab"


def _exercises(notebook: NotebookNode, solutions: dict[str, str]) -> Iterator[str]:
    stubs = [cell for cell in notebook.cells if "exercise" in tags(cell)]
    checks = [cell for cell in notebook.cells if "check" in tags(cell)]
    if len(stubs) < 3 or len(stubs) != len(checks) or len(stubs) != len(solutions):
        yield (
            f"{len(stubs)} stubs, {len(checks)} checks and {len(solutions)} solutions: "
            "there must be three or more, and as many of each"
        )
    for cell in stubs:
        number, _, body = cell.source.partition("\n")
        solution = solutions.get(number.removeprefix("# Exercise ").strip())
        if solution is None or body != stub(solution):
            yield f"{number}: the stub is not that of the solution; python tools/chapters.py stubs"
    for cell in checks:
        if not cell.source.startswith('with check("') and '\nwith check("' not in cell.source:
            yield f"a check does not begin with `with check(...)`: {cell.source[:60]!r}"
        asserts = [
            node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)
        ]
        if not asserts or any(node.msg is None for node in asserts):
            yield f"a check asserts nothing, or without a message: {cell.source[:60]!r}"


def main() -> int:
    """Check all pages of a folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "book"
    bad = 0
    for path in [*notebooks(folder), *sorted(folder.glob("*.md"))]:
        try:
            found = list(problems(path))
        except (json.JSONDecodeError, nbformat.reader.NotJSONError) as error:
            found = [f"cannot be read: {error}"]
        for problem in found:
            print(f"{path}: {problem}")
        bad += len(found)
    print(
        f"{bad} problems in {folder}" if bad else f"{folder}: prose, structure and cells are fine"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
