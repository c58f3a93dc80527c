"""The book's machinery: what must turn CI red does, and what readers run runs."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import brand
import chapters
import nbformat
import numpy as np
import pages
import prose
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image, ImageColor
from scipy import ndimage

import sslpath
from sslpath import book
from sslpath.demo import FAR_TILES, NEAR_TILES
from sslpath.errors import ConfigError, DataError
from sslpath.figure_style import PALETTE
from sslpath.results import read_results, row, write_results

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


def notebook(*cells):
    """A notebook of code cells (str) and ready cells."""
    made = [nbformat.v4.new_code_cell(c) if isinstance(c, str) else c for c in cells]
    kernel = {"name": "python3", "display_name": "Python 3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=made, metadata=metadata)


def planted(folder, name, *cells):
    path = folder / f"{name}.ipynb"
    chapters.write(notebook(*cells), path)
    return path


# What must turn CI red


def test_a_failing_cell_turns_the_execution_red(tmp_path):
    good = planted(tmp_path, "good", "assert 1 + 1 == 2")
    assert chapters.execute(tmp_path, [good])
    bad = planted(tmp_path, "bad", "1 / 0")
    assert not chapters.execute(tmp_path, [good, bad])


def test_a_check_that_passes_on_the_stub_turns_the_execution_red(tmp_path):
    stub = nbformat.v4.new_code_cell("# Exercise 1.1", metadata={"tags": ["exercise"]})
    toothless = 'from sslpath.book import check\nwith check("1.1"):\n    assert True, "never"'
    sound = 'from sslpath.book import check\nwith check("1.1"):\n    assert f(2) == 4, "f(2) is 4"'
    solution = "def f(x):\n    # solution\n    return 2 * x\n    # end"
    for source, passes in ((sound, True), (toothless, False)):
        check = nbformat.v4.new_code_cell(source, metadata={"tags": ["check"]})
        made = chapters.with_stubs(notebook(stub, check), {"1.1": solution})
        path = tmp_path / f"{passes}.ipynb"
        chapters.write(chapters.solved(made, {"1.1": solution}), path)
        assert chapters.execute(tmp_path, [path]) is passes


def test_a_solution_that_is_wrong_turns_the_execution_red(tmp_path):
    stub = nbformat.v4.new_code_cell("# Exercise 1.1", metadata={"tags": ["exercise"]})
    source = 'from sslpath.book import check\nwith check("1.1"):\n    assert f(2) == 4, "f(2) is 4"'
    check = nbformat.v4.new_code_cell(source, metadata={"tags": ["check"]})
    wrong = {"1.1": "def f(x):\n    # solution\n    return 3 * x\n    # end"}
    path = tmp_path / "wrong.ipynb"
    chapters.write(chapters.solved(chapters.with_stubs(notebook(stub, check), wrong), wrong), path)
    assert not chapters.execute(tmp_path, [path])


def test_the_recorded_times_are_within_the_budget():
    assert list(chapters.over_budget(chapters.recorded())) == []


def test_a_chapter_and_a_book_over_the_budget_are_named():
    assert not list(chapters.over_budget({"a": 59.0, "b": 2.0}))
    assert "a took 61 s" in next(chapters.over_budget({"a": 61.0}))
    assert "in all" in next(chapters.over_budget({f"{i}": 59.0 for i in range(9)}))


def test_a_slow_machine_is_told_from_a_slow_chapter():
    record = {"a": 20.0, "b": 30.0, "c": 40.0, "d": 1.0}
    took = {name: 7 * value for name, value in record.items()}
    assert chapters.slowness(took, record) == 7
    assert not list(chapters.slower(took, record))
    (warning,) = chapters.slower({**took, "a": 300.0}, record)
    assert "a took 300 s; about 140 s were expected" in warning
    assert not list(chapters.slower({"new": 500.0, "other": 2.0}, record))
    assert chapters.slowness({"new": 500.0}, record) == 1


def planted_repository(root, record):
    """A checkout with the tool itself and chapters that do nothing, and their recorded times."""
    for folder in ("book", "tools", "sslpath", "data/results"):
        (root / folder).mkdir(parents=True)
    (root / "tools" / "chapters.py").write_text(Path(chapters.__file__).read_text())
    (root / "sslpath" / "__init__.py").touch()
    (root / "sslpath" / "book.py").write_text("def phantom_tiles(): ...")
    rows = [row("book", "seconds", took, data=name) for name, took in record.items()]
    write_results(root / "data" / "results" / "chapters.json", rows)
    return root


def tool(root, *words):
    command = [PYTHON, root / "tools" / "chapters.py", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_a_chapter_that_takes_far_longer_than_recorded_is_warned_of_and_fails_nothing(tmp_path):
    root = planted_repository(tmp_path, {"01-a": 500.0, "02-b": 500.0, "03-c": 0.1, "gone": 9.0})
    for name in ("01-a", "02-b", "03-c", "04-new"):
        planted(root / "book", name, "1 + 1")
    source = (root / "tools" / "chapters.py").read_text()
    without_budget = source.replace("CHAPTER_S, BOOK_S = 60, 480", "CHAPTER_S, BOOK_S = 0, 0")
    assert without_budget != source
    (root / "tools" / "chapters.py").write_text(without_budget)
    done = tool(root, "run", root / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    (warning,) = re.findall("^Warning: .*", done.stdout, re.MULTILINE)
    assert warning.startswith("Warning: 03-c took")


def test_recording_one_chapter_keeps_the_times_of_the_others(tmp_path):
    record = {"01-a": 70.0, "02-b": 12.0, "gone": 9.0}
    root = planted_repository(tmp_path, record)
    for name in ("01-a", "02-b", "03-new"):
        cells = nbformat.v4.new_markdown_cell("<!-- time --><!-- /time -->")
        planted(root / "book", name, cells)
    assert tool(root, "times", root / "out").returncode == 1  # nothing was executed
    (root / "out").mkdir()
    (root / "out" / "times.json").write_text('{"03-new": 3.04}')
    package = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [PYTHON, root / "tools" / "chapters.py", "times", root / "out"]
    said = subprocess.run(words, env=package, capture_output=True, text=True, check=True).stdout
    assert "Warning: 01-a took 70 s; a chapter has 60 s." in said
    found = read_results(root / "data" / "results" / "chapters.json")
    assert {one["data"]: one["value"] for one in found} == {"01-a": 70, "02-b": 12, "03-new": 3}
    opening = chapters.read(root / "book" / "03-new.ipynb").cells[0].source
    assert "3 s on two CPU cores" in opening


def test_times_of_chapters_that_stopped_early_are_not_recorded(tmp_path):
    root = planted_repository(tmp_path, {})
    planted(root / "book", "01-a", "1 / 0")
    assert tool(root, "run", root / "out").returncode == 1
    assert "execute the chapters there first" in tool(root, "times", root / "out").stderr


def run_prose(folder):
    return subprocess.run(
        [PYTHON, ROOT / "tools" / "prose.py", folder], capture_output=True, text=True, check=False
    )


def test_a_bare_metric_in_prose_turns_lint_red(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("ImageNet reaches {glue:text}`p:.2f`, at 0.5 µm a pixel.\n")
    assert run_prose(tmp_path).returncode == 0
    page.write_text("ImageNet reaches 0.61.\n")
    done = run_prose(tmp_path)
    assert done.returncode == 1
    assert "bare number 0.61" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "P@10 is 0.76.", "An accuracy of 93 %.", "It is 16 times smaller.", "It took 4.5 s.",
        "| spatial | 0.70 |", "A 5-fold gain.", "About 20 minutes.", "**0.8**", "from .7 to 0.9",
    ],
)  # fmt: skip
def test_numbers_that_look_like_results_are_bare(text):
    assert prose.bare_metrics(text)


@pytest.mark.parametrize(
    "text",
    [
        "One pixel spans 0.25 µm.", "`lr=0.001` is the rate.", "$0.5 < m$", "```\n0.61\n```",
        "A 95 % interval.", "### Exercise 3.1: write it", "About 1.5 is reported {cite:p}`x`.",
        "Files of 9.8 MB, 20 slides, 128 numbers.", "{glue:text}`gain:.0%` better", "224 px",
        "**Time** <!-- time -->23 s on two cores<!-- /time -->.", "See https://x.org/1.23/.",
    ],
)  # fmt: skip
def test_settings_code_and_citations_are_not_bare(text):
    assert prose.bare_metrics(text) == []


def test_notebooks_that_could_hide_an_error_turn_lint_red(tmp_path):
    allow = notebook("1 / 0")
    allow.metadata["execution"] = {"allow_errors": True}
    chapters.write(allow, tmp_path / "allow.ipynb")
    tagged = nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})
    planted(tmp_path, "tagged", tagged)
    done = nbformat.v4.new_code_cell("1", execution_count=3)
    planted(tmp_path, "executed", done)
    planted(tmp_path, "long", "\n".join("x = 1" for _ in range(prose.LONGEST_CELL + 1)))
    figure = nbformat.v4.new_code_cell("1", metadata={"mystnb": {"figure": {"caption": "c"}}})
    planted(tmp_path, "figure", figure)
    told = run_prose(tmp_path).stdout
    for words in ("allow_errors", "raises-exception", "has outputs", "lines", "without alt text"):
        assert words in told


def test_a_chapter_without_its_parts_turns_lint_red(tmp_path):
    title = nbformat.v4.new_markdown_cell("# Title")
    path = planted(tmp_path, "01-title", title, "x = 1")
    told = "\n".join(prose.problems(path))
    for words in ("**You will learn**", "measured time", "## Exercises", "Colab", "0 stubs"):
        assert words in told


PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def test_a_figure_without_alt_text_turns_the_built_book_red(tmp_path):
    def picture(alt):
        cell = nbformat.v4.new_code_cell("plot()", execution_count=1)
        if alt:
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": PNG})]
        return cell

    title = nbformat.v4.new_markdown_cell("# A page")
    planted(tmp_path, "index", title, picture("A grey square on white, as large as a pixel."))
    planted(tmp_path, "planted", title, picture(""))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: planted\n")
    (tmp_path / "_config.yml").write_text("execute: {execute_notebooks: 'off'}\n")
    build = [
        Path(PYTHON).with_name("jupyter-book"),
        "build",
        tmp_path,
        "-W",
        "--keep-going",
        "--all",
    ]
    subprocess.run(build, check=True, capture_output=True)
    site = tmp_path / "_build" / "html"
    assert not [p for p in pages.problems(site / "index.html") if "alt text" in p]
    assert [p for p in pages.problems(site / "planted.html") if "alt text" in p]
    check = [PYTHON, ROOT / "tools" / "pages.py", site]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1


def test_make_test_runs_these_checks():
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^(\w+):([^\n]*\n(?:\t[^\n]*\n)+)", made, re.MULTILINE))
    assert "tools/prose.py" in recipes["lint"]
    assert "tools/chapters.py run" in recipes["notebooks"]
    assert "-W --keep-going" in recipes["book"]
    assert "tools/pages.py" in recipes["book"]
    assert "notebooks" in recipes["book"].splitlines()[0]
    assert "book" in recipes["pages"].splitlines()[0]
    assert {"lint", "types", "unit", "pages"} <= set(recipes["test"].split())
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# Exercises


@given(
    st.lists(st.sampled_from(["x = 1", "    y = 2", "# solution", "# end", "return z"]), max_size=9)
)
def test_a_stub_never_shows_what_lies_between_the_marks(lines):
    inside, hidden = False, 0
    for line in lines:
        if line == "# solution":
            inside = True
        elif line == "# end":
            inside = False
        else:
            hidden += inside
    made = chapters.stub("\n".join(lines)).splitlines()
    kept = [line for line in made if chapters.TODO not in line]
    assert len(kept) == len([x for x in lines if x not in ("# solution", "# end")]) - hidden


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book" / "solutions").glob("*.py")), ids=lambda path: path.stem
)
def test_each_chapter_has_a_stub_and_a_check_for_each_solution(path):
    found = chapters.read_solutions(ROOT / "book" / f"{path.stem}.ipynb")
    assert len(found) >= 3
    for number, solution in found.items():
        assert chapters.TODO in chapters.stub(solution), f"{number} leaves nothing to do"
        compile(chapters.stub(solution), str(path), "exec")


def test_a_check_tells_what_is_not_yet_right(capsys, monkeypatch):
    monkeypatch.delenv("SSLPATH_CHECKS", raising=False)
    with book.check("1.1"):
        assert 2 == 2, "never seen"
    with book.check("1.2"):
        assert 2 == 3, "two is not three"
    with book.check("1.3"):
        raise TypeError("unsupported operand\nand more")
    said = capsys.readouterr().out
    assert said == (
        "✓ Exercise 1.1\n✗ Exercise 1.2, not yet: two is not three\n"
        "✗ Exercise 1.3, not yet: TypeError: unsupported operand\n"
    )


def test_a_check_raises_in_the_books_own_tests(monkeypatch):
    monkeypatch.setenv("SSLPATH_CHECKS", "pass")
    with pytest.raises(AssertionError, match="two is not three"), book.check("1.2"):
        assert 2 == 3, "two is not three"
    monkeypatch.setenv("SSLPATH_CHECKS", "fail")
    with pytest.raises(AssertionError, match="unsolved stub"), book.check("1.2"):
        pass


def test_a_check_never_swallows_an_interruption(monkeypatch):
    monkeypatch.delenv("SSLPATH_CHECKS", raising=False)
    with pytest.raises(KeyboardInterrupt), book.check("1.2"):
        raise KeyboardInterrupt


# Data of the chapters


def test_unknown_data_or_profile_are_named_with_the_choices(monkeypatch):
    monkeypatch.setenv("SSLPATH_DATA", "tcga")
    with pytest.raises(ConfigError, match="choose one of phantom, idc, camelyon16"):
        book.open_data()
    with pytest.raises(ConfigError, match="choose one of small, full"):
        book.open_data("phantom", "huge")


def test_camelyon16_that_is_not_prepared_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("SSLPATH_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"sslpath tile.*sslpath embed"):
        book.open_data("camelyon16")


def test_the_switch_opens_real_tissue(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("SSLPATH_CACHE", str(tmp_path))
    monkeypatch.setenv("SSLPATH_DATA", "idc")
    weights = shared / "weights" / "mobilenet_v2_imagenet.safetensors"
    monkeypatch.setenv("SSLPATH_IMAGENET_WEIGHTS", str(weights))
    monkeypatch.setitem(book.PROFILES, "small", book.Profile("small", 5, 100, (0,), 3))
    (tmp_path / "idc").mkdir()
    archive = shared / "real" / "idc" / "IDC_regular_ps50_idx5_sample.zip"
    (tmp_path / "idc" / "IDC_regular_ps50_idx5.zip").symlink_to(archive)
    data = book.open_data()
    assert data.name == "idc"
    assert data.tiles["patient_id"].nunique() == 5
    assert data.features.shape == (len(data.tiles), 1280)
    assert data.train.any()
    assert not (data.train & data.test).any()
    assert data.run.startswith("5 IDC slides")
    network = data.fit(slides_per_batch=4, tiles_per_slide=8)
    assert network.encode(data.features).shape == (len(data.tiles), 128)


def test_settings_go_where_they_belong():
    data = book.BookData(
        "phantom", book.PROFILES["small"], None, None, np.zeros((2, 8), np.float32),
        {"arch": "mobilenet_v2", "input_px": 224}, 2, 30,
    )  # fmt: skip
    training, model = data.configs(near_tiles=4, descriptor_dim=16)
    assert (training.near_tiles, training.far_tiles) == (4, 30)
    assert (model.descriptor_dim, model.feature_dim) == (16, 8)
    with pytest.raises(ConfigError, match="No setting is called 'near'"):
        data.configs(near=4)


# Launching


def test_the_repository_has_one_address_everywhere():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    address = config["repository"]["url"]
    assert config["repository"]["branch"] == "main"
    from sslpath.paper_map import SOURCE

    assert SOURCE.startswith(address)
    assert f" {address}\n" in prose.COLAB
    for name in ("README.md", "CITATION.cff"):
        for found in re.findall(
            r"https://github\.com/[\w-]+/sslpath", (ROOT / name).read_text(encoding="utf-8")
        ):
            assert found == address, name


def test_colab_fetches_the_version_that_the_chapter_belongs_to():
    assert f"--branch v{sslpath.__version__} " in prose.COLAB


def test_the_first_cell_makes_the_package_importable_where_it_is_missing(tmp_path):
    """As in a fresh Colab, with this checkout in the place of the public repository."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    tag = ["git", "-C", source, "tag", f"v{sslpath.__version__}"]
    subprocess.run(tag, check=False, capture_output=True)  # it may have the tag
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    colab = tmp_path / "colab"
    colab.mkdir()
    script = f"""
import os, sys
sys.meta_path = [f for f in sys.meta_path if "sslpath" not in str(f).lower()]
sys.path = [p for p in sys.path if p and os.path.abspath(p) != {str(ROOT)!r}]
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell({prose.COLAB!r}).raise_error()
shell.run_cell("import sslpath, sslpath.book; print(sslpath.__file__)").raise_error()
"""
    environment = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": address["url"],
        "PIP_DRY_RUN": "1",  # this environment stays as it is
        "PIP_NO_DEPS": "1",
    }
    command = [PYTHON, "-c", script]
    done = subprocess.run(
        command, cwd=colab, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(colab / "sslpath" / "sslpath" / "__init__.py") in done.stdout


CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base", "openslide-bin": "openslide"}


def test_binder_has_all_that_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[\[>=<]", one)[0] for one in project["dependencies"]}
    binder = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))
    *of_conda, of_pip = binder["dependencies"]
    have = {re.split(r"[>=<]", one)[0] for one in (*of_conda, *of_pip["pip"])}
    assert {CONDA.get(name, name) for name in needed} <= have
    assert "jupyterlab-myst" in have
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_the_workflow_runs_the_gate_and_publishes_its_pages():
    text = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = jobs["test"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    assert any(step.get("with", {}).get("path") == "out/book/_build/html" for step in steps)
    assert jobs["publish"]["needs"] == "test"


def test_every_chapter_of_the_contents_is_there_and_measured():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters_of = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    files = [
        one["file"] for chapter in chapters_of for one in [chapter, *chapter.get("sections", [])]
    ]
    for name in files:
        assert any((ROOT / f"{name}{suffix}").exists() for suffix in (".ipynb", ".md")), name
    measured = {row["data"]: row for row in json.loads(chapters.TIMES.read_text())}
    executed = {path.stem for path in chapters.notebooks(ROOT / "book")}
    assert set(measured) == executed
    for path in chapters.notebooks(ROOT / "book"):
        if re.match(r"\d\d-", path.name):
            opening = chapters.read(path).cells[0].source
            assert f"<!-- time -->{chapters.time_text(measured[path.stem])}<!--" in opening


def test_every_public_module_is_in_the_reference():
    text = "\n".join(path.read_text() for path in (ROOT / "book").glob("api-*.md"))
    listed = set(re.findall(r"automodule:: sslpath\.([\w.]+)", text))
    inside = {
        ".".join(path.relative_to(ROOT / "sslpath").with_suffix("").parts)
        for path in (ROOT / "sslpath").rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "commands"
    }
    private = {"__main__", "cli", "handles", "jpeg_colours", "tiff_blocks", "tiff_tags"}
    private |= {m for m in inside if "phantom_" in m}
    assert listed >= inside - private


def imported(source):
    """Lines of code to the names that they import from the package: (module, name)."""
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslpath"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda p: p.stem)
def test_what_a_chapter_imports_from_the_package_is_there(path):
    cells = nbformat.read(path, as_version=4).cells
    for module, name in imported("\n".join(c.source for c in cells if c.cell_type == "code")):
        here = importlib.import_module(module)
        inside = hasattr(here, "__path__") and importlib.util.find_spec(f"{module}.{name}")
        assert hasattr(here, name) or inside, f"{path.name} imports {name} from {module}"


def test_what_chapters_quote_from_the_package_is_there() -> None:
    quoted = 0
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        for file, options in re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", text, re.DOTALL):
            source = (path.parent / file).read_text()
            for kind, wanted in re.findall(r":(start-at|end-at|pyobject): (.+)", options):
                name = wanted.strip('"')
                found = f"def {name.split('.')[-1]}(" if kind == "pyobject" else name
                found_class = f"class {name}"
                assert found in source or found_class in source, f"{path.name}: {wanted} in {file}"
                quoted += 1
    assert quoted > 10


# What the pages claim


def recorded(method, metric, data="IDC, five folds"):
    """Rows of the experiments: a method or a difference in one metric, on some data."""
    rows = json.loads((ROOT / "data/results/experiments.json").read_text(encoding="utf-8"))
    found = [r for r in rows if (r["method"], r["metric"], r["data"]) == (method, metric, data)]
    assert found, (method, metric, data)
    return found


@pytest.mark.parametrize("data", ["IDC, five folds", "IDC, folds 0 and 1"])
def test_on_idc_a_wider_near_distance_finds_more_tumour_and_costs_auc_and_addr(data):
    for wide in ("near 12", "near 30"):
        assert all(r["low"] > 0 for r in recorded(f"{wide} - spatial", "tumour_p_at_10", data))
    assert all(r["high"] < 0 for r in recorded("near 2 - spatial", "tumour_p_at_10", data))
    for price in ("knn_auc", "addr_global"):
        assert all(r["high"] < 0 for r in recorded("near 30 - spatial", price, data))


def test_on_idc_centring_and_pca_find_less_tumour_than_plain_imagenet_features():
    for method in ("imagenet centred", "imagenet PCA"):
        assert all(r["high"] < 0 for r in recorded(f"{method} - imagenet", "tumour_p_at_10"))
    ours = recorded("spatial, last layer - imagenet", "tumour_p_at_10")
    assert all(r["low"] > 0 for r in ours)


def test_the_results_page_shows_the_gpu_that_a_network_learned_on(capsys):
    page = chapters.read(ROOT / "book" / "a2-results.ipynb")
    space = {}
    for cell in page.cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
    (row,) = recorded("from scratch, 224 px", "tumour_p_at_10", "IDC, folds 0 and 1")
    gpu = row["described_on"]["hardware"]
    assert "H200" in gpu
    assert gpu in capsys.readouterr().out


def frames(picture, colour):
    """Corners (y, x) of the frames of a colour in a gallery, row by row."""
    near = np.abs(picture - ImageColor.getrgb(PALETTE[colour])).max(axis=2) < 40
    found = ndimage.find_objects(ndimage.label(near)[0])
    return [(y.start, x.start) for y, x in found if min(y.stop - y.start, x.stop - x.start) > 100]


def test_the_first_page_counts_what_its_gallery_shows():
    picture = np.asarray(Image.open(ROOT / "book/_static/demo.png").convert("RGB")).astype(int)
    right, wrong = frames(picture, "blue"), frames(picture, "orange")
    lines = sorted({y for y, _ in right + wrong})  # spatial and imagenet in turn
    assert len(lines) == 6
    assert len(right) + len(wrong) == 36
    each = [sum(y == line for y, _ in right) for line in lines]
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    spatial, imagenet = ("{}, {} and {}".format(*each[method::2]) for method in (0, 1))
    assert f"{spatial} of the answers of the spatial descriptor" in text
    assert f"{imagenet} of the answers of ImageNet features" in text
    assert sum(each[::2]) == sum(each[1::2])
    assert f"{sum(each[::2])} of 18 answers labelled tumour each" in text


def test_the_cover_keeps_to_the_near_and_far_distances_of_the_book():
    grid = 112.0 * np.stack(np.meshgrid(np.arange(40), np.arange(16)), -1).reshape(-1, 2)
    anchor = grid[3 * 40 + 4]
    near, far = brand.cover_places(anchor, grid, 112)
    assert np.linalg.norm(near - anchor, axis=1).tolist() == [NEAR_TILES * 112] * 3
    assert len(far) == 5
    assert (np.linalg.norm(far - anchor, axis=1) > FAR_TILES * 112).all()
