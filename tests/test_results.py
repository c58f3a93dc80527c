"""Results say where they come from, hold no NaN, and read as a table."""

import json
import math
import subprocess
import sys

import pytest

import sslpath
from sslpath.errors import DataError
from sslpath.results import (
    REQUIRED,
    commit,
    hardware,
    markdown_table,
    read_results,
    row,
    write_results,
)


def test_a_row_says_method_value_interval_and_origin():
    one = row("spatial", "knn_auc", 0.8, 0.7, 0.9, n=10, seed=3, data="toy", k=10)
    assert set(REQUIRED) <= set(one)
    assert one["k"] == 10
    assert one["commit"]
    assert "cores" in one["hardware"]
    assert one["versions"]["numpy"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_in_every_number_of_a_row(bad):
    with pytest.raises(DataError, match="value"):
        row("a", "b", bad)
    with pytest.raises(DataError, match="low"):
        row("a", "b", 1, bad, 2)
    with pytest.raises(DataError, match="near_um"):
        row("a", "b", 1, near_um=bad)


def test_results_survive_the_disk(tmp_path):
    rows = [row("a", "m", 0.5, None, None), row("b", "m", 1, 0.5, 2, data="é", versus="a")]
    write_results(tmp_path / "new" / "results.json", rows)
    assert read_results(tmp_path / "new" / "results.json") == rows


def test_a_bad_row_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [row("a", "m", 1)])
    before = path.read_bytes()
    with pytest.raises(DataError, match="row 1"):
        write_results(path, [row("a", "m", 1), {"method": "b"}])
    with pytest.raises(DataError, match="NaN"):
        write_results(path, [{**row("a", "m", 1), "value": math.nan}])
    with pytest.raises(DataError, match="not a number"):
        write_results(path, [{**row("a", "m", 1), "value": None}])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "Cannot read"),
        ('{"a": 1}', "not a list"),
        ("[1]", "not a list"),
        ('[{"method": "a"}]', "lacks"),
        ("", "Cannot read"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="sslpath evaluate"):
        read_results(tmp_path / "none.json")


def test_the_commit_is_gits_or_the_version():
    described = subprocess.run(
        ["git", "-C", sslpath.__path__[0], "describe", "--always", "--dirty", "--tags"],
        capture_output=True,
        text=True,
        check=False,
    )
    if described.returncode == 0:
        assert commit().removesuffix("-dirty") == described.stdout.strip().removesuffix("-dirty")
    else:
        assert commit() == f"v{sslpath.__version__}"


def test_hardware_is_known_without_importing_torch():
    code = (
        "import sys; from sslpath import results; results.hardware(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert hardware().count(",") >= 2


def test_the_table_has_a_line_a_method_and_a_column_a_metric():
    rows = [
        row("spatial", "auc", 0.8, 0.7, 0.9),
        row("spatial", "top1", 0.5),
        row("imagenet", "auc", 0.6, 0.5, 0.7),
        row("spatial - imagenet", "auc", 0.2, 0.1, 0.3, versus="imagenet"),
    ]
    assert markdown_table(rows).splitlines() == [
        "| method | auc | top1 |",
        "| --- | --- | --- |",
        "| spatial | 0.80 [0.70, 0.90] | 0.50 |",
        "| imagenet | 0.60 [0.50, 0.70] |  |",
        "| spatial - imagenet | 0.20 [0.10, 0.30] |  |",
    ]
    assert markdown_table(rows, metrics=["top1"], digits=1).splitlines()[2:] == [
        "| spatial | 0.5 |"
    ]


def test_data_sets_stand_in_tables_of_their_own_with_their_own_columns():
    table = markdown_table([row("a", "m", 1, data="one"), row("a", "n", 2, data="two")])
    one, two = table.split("two\n\n")
    assert one.startswith("one\n\n| method | m |\n")
    assert two.startswith("| method | n |\n")
    assert markdown_table([]) == ""


def test_one_result_measured_twice_is_not_silently_one_of_the_two():
    rows = [row("a", "m", 1, k=5), row("a", "m", 2, k=10)]
    with pytest.raises(DataError, match="twice"):
        markdown_table(rows)
    assert json.loads(json.dumps(rows)) == rows
