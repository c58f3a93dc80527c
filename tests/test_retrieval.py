"""The protocol: who may be found, which labels count, the same pairs for all, rows without NaN."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from sslpath import retrieval
from sslpath.datasets.idc import idc_tiles
from sslpath.descriptors import compute, read_descriptors, rgb_features, write_descriptors
from sslpath.errors import ConfigError, DescriptorError, TableError
from sslpath.results import markdown_table, write_results
from sslpath.retrieval import cost, evaluate, search, slide_pairs, tumour_share
from sslpath.sources import open_source
from sslpath.table import centres_um, make_table

WIDTH = 112.0  # um: a tile of 224 level-0 px at 0.5 um


def some_tiles(slides=6, side=12, patients=None, seed=0):
    """A square grid on each slide, with a disc of tumour somewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(side * side), side)
    parts = []
    for i in range(slides):
        cx, cy = rng.integers(2, side - 2, 2)
        disc = (x - cx) ** 2 + (y - cy) ** 2 <= (side / 4) ** 2
        parts.append(pd.DataFrame({"slide_id": f"s{i}", "x": x * 224, "y": y * 224, "label": disc}))
    table = pd.concat(parts, ignore_index=True)
    table["label"] = table["label"].astype("Int8")
    table["patient_id"] = table["slide_id"] if patients is None else table["slide_id"].map(patients)
    columns = {**{name: table[name] for name in table}, "size": 224, "slide_mpp": 0.5}
    return make_table(columns, mpp=0.5, tile_px=224, source={})


def some_descriptors(tiles, signal, seed=0, d=16):
    """Noise, plus a direction for tumour and a smooth field over the slide."""
    rng = np.random.default_rng(seed)
    labels = tiles["label"].fillna(0).to_numpy(float)
    place = centres_um(tiles) / 1000
    both = rng.normal(size=(len(tiles), d)) * 0.5 + 1
    both[:, 0] += signal * labels
    both[:, 1:3] += signal * place
    return both.astype(np.float32)


def evaluated(tiles, descriptors, **settings):
    rows = evaluate(
        tiles,
        descriptors,
        **{"near_um": 2 * WIDTH, "far_um": 7 * WIDTH, "resamples": 200} | settings,
    )
    for one in rows:
        numbers = [v for v in one.values() if isinstance(v, float)]
        assert all(math.isfinite(v) for v in numbers), one
    return rows


def value(rows, method, metric):
    (one,) = [r for r in rows if (r["method"], r["metric"]) == (method, metric)]
    return one["value"]


def test_each_method_has_each_metric_and_a_difference_to_imagenet():
    tiles = some_tiles()
    methods = {"spatial": some_descriptors(tiles, 3), "imagenet": some_descriptors(tiles, 1, 1)}
    rows = evaluated(tiles, methods, data="toy")
    names = ["tumour_top1", "tumour_p_at_10", "knn_auc", "mmv_at_5", "map_at_10"]
    ratios = ["addr_global", "addr_median"]
    got = {(r["method"], r["metric"]) for r in rows}
    want = {(m, n) for m in [*methods, "spatial - imagenet"] for n in names + ratios}
    want |= {("chance", n) for n in names}
    assert got == want
    for name in names + ratios:
        between = value(rows, "spatial", name) - value(rows, "imagenet", name)
        assert value(rows, "spatial - imagenet", name) == pytest.approx(between)
    for one in rows:
        assert one["low"] <= one["value"] <= one["high"] or one["method"] == "chance"
        assert (one["data"], one["patients"]) == ("toy", 6)


def test_retrieval_is_that_of_a_plain_loop_with_scikit_learn():
    tiles = some_tiles(patients={"s0": "p", "s1": "p", "s2": "q", "s3": "r", "s4": "r", "s5": "t"})
    tiles.loc[::7, "label"] = pd.NA
    features = some_descriptors(tiles, 1)
    rows = evaluated(tiles, {"a": features}, k=7)
    labels, patients = tiles["label"].to_numpy(object), tiles["patient_id"].to_numpy()
    known = tiles["label"].notna().to_numpy()
    top1, shares = [], []
    for i in np.flatnonzero(known & (tiles["label"] == 1).fillna(False).to_numpy()):
        others = np.flatnonzero(known & (patients != patients[i]))
        cosine = NearestNeighbors(n_neighbors=7, metric="cosine").fit(features[others])
        found = others[cosine.kneighbors(features[i : i + 1])[1][0]]
        top1.append(labels[found[0]] == 1)
        shares.append(np.mean(labels[found] == 1))
    assert value(rows, "a", "tumour_top1") == pytest.approx(np.mean(top1))
    assert value(rows, "a", "tumour_p_at_7") == pytest.approx(np.mean(shares))


def test_chance_is_the_share_of_tumour_among_other_patients():
    tiles = some_tiles(slides=8, side=20)
    rows = evaluated(tiles, {})
    labels, slides = tiles["label"].to_numpy(int), tiles["slide_id"]
    expected = np.mean([labels[slides != s].mean() for s in slides[labels == 1]])
    assert value(rows, "chance", "tumour_p_at_10") == pytest.approx(expected, abs=0.01)
    assert value(rows, "chance", "knn_auc") == pytest.approx(0.5, abs=0.04)
    assert value(rows, "chance", "mmv_at_5") == pytest.approx(0.5, abs=0.02)


@given(
    groups=st.lists(st.sampled_from("abcde"), min_size=2, max_size=40).filter(
        lambda groups: len(set(groups)) > 1
    ),
    k=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_random_answers_are_different_tiles_of_other_groups_and_all_of_these_if_k_is_large(
    groups, k, seed
):
    groups = np.array(groups)
    found = retrieval._random_neighbours(groups, k, np.random.default_rng(seed))
    assert found.shape == (len(groups), k)
    for i, group in enumerate(groups):
        others = set(np.flatnonzero(groups != group))
        answers = found[i][found[i] >= 0].tolist()
        assert len(set(answers)) == len(answers) == min(k, len(others))
        assert set(answers) <= others
        assert (found[i][len(answers) :] == -1).all()


@pytest.mark.parametrize("k", [2, 4, 6])
def test_each_other_tile_is_as_likely_a_random_answer_at_each_rank(k):
    """Also where two draws of one tile are likely, and where there are fewer tiles than k."""
    groups, draws = np.array(list("aabbbbcab")), 4000
    times = np.zeros((len(groups), len(groups), k))
    rng = np.random.default_rng(0)
    for _ in range(draws):
        found = retrieval._random_neighbours(groups, k, rng)
        for rank in range(k):
            there = found[:, rank] >= 0
            times[np.flatnonzero(there), found[there, rank], rank] += 1
    for i, group in enumerate(groups):
        others = groups != group
        p = 1 / others.sum()
        ranks = min(k, others.sum())
        assert not times[i, ~others].any()
        near = 5 * math.sqrt(draws * p * (1 - p))
        assert np.abs(times[i, others, :ranks] - draws * p).max() < near


def test_chance_stays_chance_when_k_exceeds_the_number_of_tiles():
    tiles = some_tiles(slides=3, side=6)
    rows = evaluated(tiles, {}, k=5000)
    labels, slides = tiles["label"].to_numpy(int), tiles["slide_id"].to_numpy()
    of_others = np.mean([labels[slides != s].mean() for s in slides[labels == 1]])
    assert value(rows, "chance", "tumour_p_at_5000") == pytest.approx(of_others)  # all of them
    # Average precision of a random order is a little above the prevalence, whichever is asked for.
    assert 0.4 < value(rows, "chance", "map_at_5000") < 0.7


def brute_force(tiles, unit, k, group):
    """Every labelled metric by plain loops and scikit-learn."""
    tiles = tiles.assign(at=np.arange(len(tiles)))[tiles["label"].notna().to_numpy()]
    labels, at = tiles["label"].to_numpy(int), tiles["at"].to_numpy()
    groups = tiles[f"{group}_id"].to_numpy()
    unit = unit[at].astype(np.float64)
    top1, precision, share, vote, ap = [], [], [], [], []
    for i, label in enumerate(labels):
        others = np.flatnonzero(groups != groups[i])
        distance = np.linalg.norm(unit[others] - unit[i], axis=1)
        ranked = labels[others[np.lexsort((others, distance))]]
        found = ranked[:k]
        share.append(found.mean())
        five = ranked[: min(5, k)].mean()
        vote.append(ranked[0] if five == 0.5 else int(five > 0.5))
        if label:
            top1.append(ranked[0])
            precision.append(found.mean())
        same, relevant = found == label, int((ranked == label).sum())
        if relevant:
            hits = [same[: j + 1].mean() for j in np.flatnonzero(same)]
            ap.append((label, sum(hits) / min(k, relevant)))
            if k >= len(ranked):
                order = np.arange(len(ranked), 0, -1)
                assert ap[-1][1] == pytest.approx(average_precision_score(same, order))
    means = [np.mean([a for kind, a in ap if kind == of]) for of in (0, 1) if (of in dict(ap))]
    return {
        "tumour_top1": np.mean(top1),
        f"tumour_p_at_{k}": np.mean(precision),
        "knn_auc": roc_auc_score(labels, share),
        f"mmv_at_{min(5, k)}": balanced_accuracy_score(labels, vote),
        f"map_at_{k}": np.mean(means) if len(means) == 2 else None,
    }


@st.composite
def small_tables(draw):
    """A few patients with one to three slides of one to nine tiles, some of them unlabelled."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    slides = draw(st.integers(1, 5))
    patients = draw(st.integers(1, slides))
    prevalence, unknown = draw(st.sampled_from([0.05, 0.5, 0.95])), draw(st.sampled_from([0, 0.3]))
    parts = []
    for i in range(slides):
        places = rng.permutation(16)[: rng.integers(1, 10)]
        label = pd.array(rng.random(len(places)) < prevalence, "Int8")
        label[rng.random(len(places)) < unknown] = pd.NA
        parts.append(pd.DataFrame({
            "slide_id": f"s{i}", "patient_id": f"p{i % patients}", "label": label,
            "x": places % 4 * 224, "y": places // 4 * 224,
        }))  # fmt: skip
    table = pd.concat(parts, ignore_index=True)
    columns = {**{name: table[name] for name in table}, "size": 224, "slide_mpp": 0.5}
    return make_table(columns, mpp=0.5, tile_px=224, source={})


def odd_descriptors(kind, n, seed):
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(n, 4))
    return {
        "noise": made.astype(np.float32),
        "half": made.astype(np.float16),
        "double": made,
        "whole numbers": rng.integers(-2, 3, (n, 3)),
        "tiny": (made * 1e-30).astype(np.float32),
        "huge": (made * 1e30).astype(np.float32),
        "beyond squares": made * 10.0 ** rng.integers(-290, 290, (n, 1)),
        "zeros among others": made * (rng.random((n, 1)) < 0.5),
        "zeros": np.zeros((n, 3)),
        "few different": made[rng.integers(0, min(3, n), n)],
        "one number": made[:, :1],
    }[kind]


KINDS = ["noise", "half", "double", "whole numbers", "tiny", "huge", "beyond squares"]
KINDS += ["zeros among others", "zeros", "few different", "one number"]


@given(
    tiles=small_tables(), kind=st.sampled_from(KINDS), k=st.integers(1, 120),
    group=st.sampled_from(["patient", "slide"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_metric_leaves_its_range_and_each_is_that_of_brute_force(tiles, kind, k, group, seed):
    descriptors = odd_descriptors(kind, len(tiles), seed)
    methods = {"a": descriptors, "imagenet": odd_descriptors("noise", len(tiles), seed + 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what cannot be measured is left out
        rows = evaluated(
            tiles, methods, k=k, group=group, seed=seed, near_um=1.5 * WIDTH, far_um=2 * WIDTH,
            resamples=40, pairs_per_slide=20,
        )  # fmt: skip
    for one in rows:
        numbers = [one["value"], *(v for v in (one["low"], one["high"]) if v is not None)]
        if one["metric"].startswith("addr"):
            assert "versus" in one or min(numbers) >= 0
        elif "versus" in one:
            assert -1 <= min(numbers) <= max(numbers) <= 1
        else:
            assert 0 <= min(numbers) <= max(numbers) <= 1
        assert one["low"] is None or one["low"] <= one["high"]
    measured = {r["metric"]: r["value"] for r in rows if r["method"] == "a"}
    if "knn_auc" in measured:
        want = brute_force(tiles, retrieval.unit_length(descriptors), k, group)
        for metric, value_ in want.items():
            assert measured.get(metric) == (None if value_ is None else pytest.approx(value_))


def test_a_metric_that_the_labels_do_not_allow_is_left_out_and_named():
    """All tumour in one patient: nobody else's tumour could be found."""
    tiles = some_tiles(slides=2)
    tiles["label"] = pd.array(tiles["slide_id"] == "s0", "Int8")
    with pytest.warns(UserWarning, match="map_at_10 is not measured"):
        rows = evaluated(tiles, {"a": some_descriptors(tiles, 1)})
    assert {r["metric"] for r in rows} >= {"tumour_top1", "knn_auc", "mmv_at_5", "addr_global"}
    assert "map_at_10" not in {r["metric"] for r in rows}
    assert value(rows, "a", "tumour_top1") == 0


@pytest.mark.parametrize(
    "name",
    [
        "chance",
        "",
        " ",
        "a ",
        "\ta",
        "a - b",
        "a|b",
        "a/b",
        "..\\b",
        "$x$",
        "a\nb",
        "a\x00",
        "\x1b[1m",
    ],
)
def test_a_name_that_tables_or_files_could_not_tell_apart_is_refused(name):
    tiles = some_tiles(slides=2)
    with pytest.raises(ConfigError, match="cannot be the name of a method"):
        evaluated(tiles, {name: some_descriptors(tiles, 1)})


@pytest.mark.parametrize("name", ["Chance", "near 8, seed 1", "a-b", "雪", "a+b (n=3)", "rgb"])
def test_any_other_name_is_kept_in_the_rows(name):
    tiles = some_tiles(slides=2)
    rows = evaluated(tiles, {name: some_descriptors(tiles, 1)})
    assert {r["method"] for r in rows} == {"chance", name}


def test_settings_that_make_no_sense_are_named():
    tiles = some_tiles(slides=2)
    methods = {"a": some_descriptors(tiles, 1)}
    for wrong, says in (
        ({"versus": "spatail"}, "no method 'spatail'; there are a"),
        ({"k": 0}, "k = 0"),
        ({"k": -3}, "k = -3"),
        ({"near_um": 5.0, "far_um": 4.0}, "near <= far"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluated(tiles, methods, **wrong)


def test_a_tile_listed_twice_is_refused_wherever_descriptors_meet_the_table():
    tiles = some_tiles(slides=2)
    twice = pd.concat([tiles, tiles.iloc[[3, 4]]], ignore_index=True)
    twice.attrs = tiles.attrs
    features = some_descriptors(twice, 1)
    for use in (
        lambda: evaluated(twice, {"a": features}),
        lambda: search(features[0], features, twice),
        lambda: tumour_share(twice, features),
    ):
        with pytest.raises(TableError, match=r"lists 2 tiles more than once, such as s0:672,0"):
            use()
    # Two slides may be one and the same picture: nothing says that they are.
    evaluated(tiles, {"a": some_descriptors(tiles, 1)})


def test_labels_and_patients_that_mean_nothing_are_named():
    tiles = some_tiles(slides=2)
    features = some_descriptors(tiles, 1)
    odd = tiles.copy()
    odd.loc[0, "label"] = 2
    with pytest.raises(TableError, match="the table has 2"):
        evaluated(odd, {"a": features})
    odd = tiles.copy()
    odd.loc[[0, 1], "patient_id"] = pd.NA
    with pytest.raises(TableError, match="2 tiles without patient_id"):
        evaluated(odd, {"a": features})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_descriptors_that_are_no_numbers_are_named_even_without_labels(bad):
    tiles = some_tiles(slides=2)
    tiles["label"] = pd.array([pd.NA] * len(tiles), "Int8")
    features = some_descriptors(tiles, 1)
    features[5, 1] = bad
    warnings.simplefilter("ignore", UserWarning)  # nothing is labelled; pytest undoes this
    with pytest.raises(DescriptorError, match="'b' hold NaN or infinity"):
        evaluated(tiles, {"a": some_descriptors(tiles, 1), "b": features})


def test_more_answers_than_memory_holds_are_refused_before_they_are_computed():
    n = 60_000
    tiles = make_table(
        {"slide_id": np.arange(n) % 50, "x": np.arange(n), "y": 0, "size": 1, "slide_mpp": 0.5,
         "label": np.arange(n) % 2}, mpp=0.5, tile_px=1, source={},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"58,800 answers for each of 60,000 tiles.*smaller k"):
        evaluated(tiles, {"a": np.ones((n, 2))}, k=10**9)


def test_a_descriptor_of_the_patient_alone_finds_no_tumour_beyond_chance():
    """Only leaving the patient out tells such a descriptor from a good one."""
    tiles = some_tiles(slides=8, side=16)
    slides = pd.factorize(tiles["slide_id"])[0]
    mark = np.eye(8)[slides] * 5 + np.random.default_rng(0).normal(size=(len(tiles), 8)) * 0.1
    rows = evaluated(tiles, {"stain": mark})
    assert value(rows, "stain", "tumour_p_at_10") == pytest.approx(
        value(rows, "chance", "tumour_p_at_10"), abs=0.05
    )


def test_leaving_out_the_slide_still_finds_the_patients_other_slides():
    tiles = some_tiles(slides=4, patients={"s0": "p", "s1": "p", "s2": "q", "s3": "q"})
    # What is tumour in one patient looks like the rest in the other.
    first = (tiles["patient_id"] == "p").to_numpy()
    direction = np.where(first, tiles["label"].to_numpy(int), 1 - tiles["label"].to_numpy(int))
    features = np.column_stack([np.eye(2)[direction], 0.3 * first])
    by = {
        group: value(evaluated(tiles, {"a": features}, group=group), "a", "tumour_top1")
        for group in ("slide", "patient")
    }
    assert by == {"slide": 1, "patient": 0}


def test_the_distance_ratio_uses_unlabelled_tiles_and_warns_that_retrieval_is_not_measured():
    tiles = some_tiles()
    tiles["label"] = pd.array([pd.NA] * len(tiles), dtype="Int8")
    with pytest.warns(UserWarning, match="no tile is labelled tumour"):
        rows = evaluated(tiles, {"a": some_descriptors(tiles, 2)})
    assert {r["metric"] for r in rows} == {"addr_global", "addr_median"}
    assert all(r["value"] > 1 for r in rows)


def test_one_patient_alone_or_no_tumour_leaves_retrieval_out():
    tiles = some_tiles(slides=2, patients={"s0": "p", "s1": "p"})
    with pytest.warns(UserWarning, match="single patient"):
        rows = evaluated(tiles, {"a": some_descriptors(tiles, 2)})
    assert {r["low"] for r in rows} == {None}
    tiles = some_tiles(slides=2)
    tiles["label"] = tiles["label"] * 0
    with pytest.warns(UserWarning, match="tumour"):
        rows = evaluated(tiles, {"a": some_descriptors(tiles, 2)})
    assert {r["metric"] for r in rows} == {"addr_global", "addr_median"}


def test_a_patient_with_only_tumour_and_one_with_fewer_tiles_than_k_are_fine():
    tiles = some_tiles(slides=3)
    tiles.loc[tiles["slide_id"] == "s0", "label"] = 1
    few = tiles[(tiles["slide_id"] != "s1") | (tiles.index % 40 == 0)].reset_index(drop=True)
    few.attrs = tiles.attrs
    few = few[(few["slide_id"] != "s2") | (few.index % 50 == 0)].reset_index(drop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = evaluated(few, {"a": some_descriptors(few, 2)})
    assert value(rows, "a", "tumour_p_at_10") > 0


def test_slides_without_far_pairs_are_left_out_of_the_ratio_and_counted():
    tiles = some_tiles(slides=3)
    keep = (tiles["slide_id"] != "s1") | ((tiles["x"] < 900) & (tiles["y"] < 900))
    attrs, tiles = tiles.attrs, tiles[keep].reset_index(drop=True)
    tiles.attrs = attrs
    (one,) = [
        r
        for r in evaluated(tiles, {"a": some_descriptors(tiles, 2)})
        if r["metric"] == "addr_median"
    ]
    assert (one["slides"], one["slides_without_pairs"], one["n"]) == (2, 1, 2)
    with pytest.warns(UserWarning, match="no slide has tiles"):
        rows = evaluated(tiles, {"a": some_descriptors(tiles, 2)}, far_um=1e6)
    assert not [r for r in rows if r["metric"].startswith("addr")]


def test_pairs_are_near_and_far_as_asked_on_one_slide_equally_many_and_seeded():
    tiles = some_tiles(slides=4).sample(frac=0.7, random_state=0)  # gaps, any order, odd index
    pairs, lacking = slide_pairs(tiles, 2 * WIDTH, 7 * WIDTH, seed=5, pairs_per_slide=50)
    assert (pairs.shape, lacking) == ((200, 3), 0)
    slide, xy = tiles["slide_id"].to_numpy(), centres_um(tiles)
    assert (slide[pairs] == slide[pairs[:, :1]]).all()
    near = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
    far = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 2]], axis=1)
    assert (near > 0).all()
    assert near.max() <= 2 * WIDTH + 1e-6
    assert far.min() > 7 * WIDTH - 1e-6
    again, _ = slide_pairs(tiles, 2 * WIDTH, 7 * WIDTH, seed=5, pairs_per_slide=50)
    np.testing.assert_array_equal(pairs, again)
    with pytest.raises(ConfigError):
        slide_pairs(tiles, 7 * WIDTH, 2 * WIDTH, seed=0)


def test_the_ratio_is_one_for_noise_and_that_of_brute_force_for_a_field():
    tiles = some_tiles(slides=5)
    noise = np.random.default_rng(0).normal(size=(len(tiles), 64))
    field = some_descriptors(tiles, 3)
    rows = evaluated(tiles, {"noise": noise, "field": field}, pairs_per_slide=4000)
    assert value(rows, "noise", "addr_global") == pytest.approx(1, abs=0.01)
    xy, unit = centres_um(tiles), retrieval.unit_length(field)
    near, far = [], []
    for _, index in tiles.groupby("slide_id").groups.items():
        for i in index:
            d = np.linalg.norm(xy[index] - xy[i], axis=1)
            apart = np.linalg.norm(unit[index] - unit[i], axis=1)
            is_near, is_far = (d > 0) & (d <= 2 * WIDTH), d > 7 * WIDTH
            if is_near.any() and is_far.any():  # each anchor counts the same, as when sampled
                near.append(apart[is_near].mean())
                far.append(apart[is_far].mean())
    want = np.mean(far) / np.mean(near)
    assert value(rows, "field", "addr_global") == pytest.approx(want, rel=0.02)


def test_collapsed_descriptors_are_warned_of_and_others_still_measured():
    tiles = some_tiles(slides=3)
    methods = {"dead": np.ones((len(tiles), 8)), "alive": some_descriptors(tiles, 2)}
    with pytest.warns(UserWarning, match="'dead' is not measured"):
        rows = evaluated(tiles, methods)
    assert ("dead", "addr_global") not in {(r["method"], r["metric"]) for r in rows}
    assert value(rows, "alive", "addr_global") > 1


def test_the_same_seed_gives_the_same_results_file(tmp_path):
    tiles = some_tiles()
    methods = {"a": some_descriptors(tiles, 2), "imagenet": some_descriptors(tiles, 1)}
    for name in ("one", "two"):
        write_results(tmp_path / name, evaluated(tiles, methods, seed=3))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "NaN" not in (tmp_path / "one").read_text()


def test_scaling_a_descriptor_changes_no_result():
    tiles = some_tiles()
    features = some_descriptors(tiles, 2)
    lengths = np.random.default_rng(0).uniform(0.1, 10, (len(tiles), 1))
    one, other = (evaluated(tiles, {"a": f}) for f in (features, features * lengths))
    for a, b in zip(one, other, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-3)


def test_descriptors_of_other_tiles_are_refused():
    tiles = some_tiles(slides=2)
    with pytest.raises(DescriptorError, match="read_descriptors"):
        evaluated(tiles, {"a": np.ones((5, 3))})
    with pytest.raises(ConfigError, match="patient"):
        evaluated(tiles, {"a": some_descriptors(tiles, 1)}, group="hospital")


def test_search_leaves_out_who_is_excluded():
    tiles = some_tiles(slides=3)
    features = some_descriptors(tiles, 2)
    found, distances = search(features[0], features, tiles, k=4)
    assert found.shape == distances.shape == (4,)
    assert found[0] == 0
    assert distances[0] == pytest.approx(0, abs=1e-6)
    found, _ = search(features[0], features, tiles, k=4, exclude="s0")
    assert "s0" not in set(tiles["slide_id"].iloc[found])
    many, _ = search(features[[0, 200]], features, tiles, k=4, exclude=["s0", "s1"])
    np.testing.assert_array_equal(many[0], found)
    assert "s1" not in set(tiles["slide_id"].iloc[many[1]])
    by_slide, _ = search(features[0], features, tiles, k=4, exclude="s0", group="slide")
    np.testing.assert_array_equal(by_slide, found)


def test_the_heat_map_scores_are_the_shares_that_the_auc_ranks_by():
    tiles = some_tiles(slides=4)
    tiles.loc[tiles["slide_id"] == "s2", "label"] = pd.NA  # a slide without ground truth
    features = some_descriptors(tiles, 2)
    scores = tumour_share(tiles, features, k=10)
    assert scores.shape == (len(tiles),)
    known = tiles["label"].notna().to_numpy()
    labels = tiles["label"].to_numpy(object)
    mean_of_tumour = scores[known & (tiles["label"] == 1).fillna(False).to_numpy()].mean()
    rows = evaluated(tiles, {"a": features})
    assert mean_of_tumour == pytest.approx(value(rows, "a", "tumour_p_at_10"))
    one = tumour_share(tiles, features, k=10, slide_id="s2")
    np.testing.assert_allclose(one, scores[(tiles["slide_id"] == "s2").to_numpy()])
    assert len(labels) > len(one) > 0
    with pytest.raises(TableError, match="nowhere"):
        tumour_share(tiles, features, slide_id="nowhere")
    alone = some_tiles(slides=1)
    with pytest.raises(TableError, match="another patient"):
        tumour_share(alone, some_descriptors(alone, 1))


def test_cost_counts_bytes_in_memory_and_on_disk_and_measures_a_positive_time(tmp_path):
    features = np.random.default_rng(0).normal(size=(500, 128))
    write_descriptors(tmp_path, "a", features, np.arange(1000).reshape(500, 2))
    size, stored, took = cost("a", features, folder=tmp_path, data="toy")
    assert (size["metric"], size["value"]) == ("bytes_per_tile", 512)
    assert stored["metric"] == "stored_bytes_per_tile"
    assert 512 + 16 <= stored["value"] < 600
    assert 0 < took["least"] <= took["value"] <= took["most"]
    assert took["low"] is None  # a range of times is no 95 % interval
    assert took["hardware"]
    assert "query_us" in markdown_table(json.loads(json.dumps([size, stored, took])))
    with pytest.raises(DescriptorError, match="No descriptors"):
        cost("a", features, folder=tmp_path / "empty")


def test_the_order_of_the_table_changes_no_retrieval_result():
    tiles = some_tiles(patients={f"s{i}": f"p{i // 2}" for i in range(6)})
    tiles.loc[::9, "label"] = pd.NA
    features = some_descriptors(tiles, 1)
    order = np.random.default_rng(1).permutation(len(tiles))
    one = evaluated(tiles, {"a": features})
    other = evaluated(tiles.iloc[order], {"a": features[order]})
    for a, b in zip(one, other, strict=True):
        if a["method"] != "chance" and not a["metric"].startswith("addr"):
            assert (a["metric"], a["n"]) == (b["metric"], b["n"])
            assert a["value"] == pytest.approx(b["value"])
            assert a["low"] == pytest.approx(b["low"])


def test_on_real_breast_tiles_even_colour_finds_tumour_beyond_chance(shared, tmp_path):
    tiles = idc_tiles(shared / "real/idc/IDC_regular_ps50_idx5_sample.zip", progress=False)
    some = tiles["patient_id"].isin(sorted(set(tiles["patient_id"]))[:60])
    attrs, tiles = tiles.attrs, tiles[some].reset_index(drop=True)
    tiles.attrs = attrs
    failed = compute(
        tiles, rgb_features, open_source(tiles), tmp_path, attrs={"arch": "rgb"}, progress=False
    )
    assert failed.empty
    rows = evaluated(
        tiles, {"rgb": read_descriptors(tmp_path, tiles)}, near_um=8 * 200, far_um=30 * 200
    )
    assert value(rows, "rgb", "tumour_top1") > value(rows, "chance", "tumour_top1") + 0.15
    assert 0.75 < value(rows, "rgb", "knn_auc") < 0.95
    assert value(rows, "rgb", "addr_global") > 1.1
