"""The protocol: who may be found, which labels count, the same pairs for all, rows without NaN."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
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


def test_random_answers_are_of_other_groups_and_of_all_of_them():
    groups = np.array(list("aabbbbcab"))
    found = retrieval._random_neighbours(groups, 400, np.random.default_rng(0))
    for i, group in enumerate(groups):
        assert set(found[i]) == set(np.flatnonzero(groups != group))


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
    assert value(rows, "rgb", "tumour_top1") > 2 * value(rows, "chance", "tumour_top1") - 0.1
    assert 0.75 < value(rows, "rgb", "knn_auc") < 0.95
    assert value(rows, "rgb", "addr_global") > 1.1
