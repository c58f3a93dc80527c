"""The table "paper / our run" says what is known and how, and invents nothing."""

import re

import pytest

from sslpath.datasets.phantom_features import DATA
from sslpath.errors import DataError
from sslpath.paper_table import (
    METHODS,
    METRICS,
    NOT_REPORTED,
    REPORTED,
    idc_settings,
    paper_table,
)
from sslpath.results import read_results, row
from sslpath.settings import PAPER, TrainConfig


def cells(table, begins):
    [line] = [line for line in table.splitlines() if line.startswith(f"| {begins}")]
    return [
        cell.strip() for cell in line.replace("\N{NO-BREAK SPACE}", " ").strip("|").split(" | ")
    ]


def two_seeds(method="spatial", metric="tumour_p_at_10", **extra):
    return [
        row(method, metric, 0.6, 0.5, 0.7, 10, 0, "d", **extra),
        row(method, metric, 0.8, 0.7, 0.9, 12, 3, "d", **extra),
    ]


def test_mean_spread_interval_and_seeds_are_those_of_the_rows():
    table = paper_table(two_seeds())
    _, _, value, n, seeds, interval, data, commit, hardware = cells(table, "tumour P@10")
    assert value == "0.700 ± 0.141"  # the standard deviation with n - 1
    assert (n, seeds, interval, data) == ("10 to 12", "2", "[0.600, 0.800]", "d")
    assert commit == two_seeds()[0]["commit"]
    assert hardware == two_seeds()[0]["hardware"]


def test_a_single_seed_has_no_spread_and_no_interval_stays_empty():
    table = paper_table([row("imagenet", "knn_auc", 0.9, n=5, data="d")])
    assert cells(table, "kNN AUC")[2:6] == ["0.900", "5", "1", ""]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_known_of_the_paper_is_not_reported(method, metric):
    paper = cells(paper_table(two_seeds(method, metric)), METRICS[metric])[1]
    known = REPORTED.get((method, metric))
    if known is None:
        assert paper == NOT_REPORTED
    else:
        assert paper.endswith(f"({known.standing})")
        assert known.standing in ("stated", "second hand")


def test_the_only_number_of_the_paper_is_the_second_hand_ratio():
    numbers = {key: re.findall(r"\d", known.value) for key, known in REPORTED.items()}
    assert [key for key, found in numbers.items() if found] == [("spatial", "addr_global")]
    assert REPORTED["spatial", "addr_global"].standing == "second hand"


def test_data_sets_have_rows_of_their_own():
    other = [one | {"data": "e"} for one in two_seeds()]
    lines = paper_table(two_seeds() + other).splitlines()
    assert sum(line.startswith("| tumour P@10: ours |") for line in lines) == 2


def test_a_seed_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match="twice"):
        paper_table(two_seeds() + two_seeds())


def test_rows_of_other_metrics_alone_are_refused():
    with pytest.raises(DataError, match="No row"):
        paper_table(two_seeds(metric="query_us"))


def test_a_bar_in_a_name_does_not_break_the_table():
    table = paper_table([one | {"data": "a|b"} for one in two_seeds()])
    assert len(set(re.findall(r"a\\\|b", table))) == 1


def test_settings_that_agree_are_not_listed_as_different():
    table = paper_table(two_seeds())
    same = table.splitlines()[-1]
    assert "descriptor dim 128 (stated)" in same
    assert not any(line.startswith("| descriptor dim |") for line in table.splitlines())
    assert cells(table, "tile px")[1:] == ["224 (unverified)", "50"]


def test_settings_that_nobody_gave_are_unknown():
    table = paper_table(two_seeds(), {"loss": "another"})
    assert cells(table, "loss")[1:] == ["contrastive (second hand)", "another"]
    assert cells(table, "arch")[2] == "unknown"


def test_the_settings_are_those_of_the_paper_by_name_and_of_the_defaults_by_value():
    assert set(idc_settings()) == set(PAPER) | {"data"}
    assert idc_settings()["near_tiles"] == TrainConfig().near_tiles


def test_the_recorded_run_fills_the_table():
    table = paper_table(read_results(DATA / "results" / "idc.json"))
    lines = table.split("\n\n")[0].splitlines()
    assert len(lines) == 2 + len(METHODS) * len(METRICS)
    assert {line.count(" | ") for line in lines} == {8}
    assert all("nan" not in line for line in lines)
