"""Metrics against scikit-learn and torchmetrics; intervals against simulation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision

from sslpath import metrics
from sslpath.errors import TableError

seeds = st.integers(0, 2**32 - 1)


def some_answers(seed, q=60, k=10, patients=8, short=False):
    """Labels, found, patients, with a signal; both labels occur."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, q)
    labels[:2] = [0, 1]
    found = (rng.random((q, k)) < 0.3 + 0.3 * labels[:, None]).astype(int)
    if short:
        found[np.arange(k) >= rng.integers(1, k + 1, q)[:, None]] = -1
    return labels, found, rng.choice([f"p{i}" for i in range(patients)], q)


@pytest.mark.parametrize("seed", [0, 1])
def test_precision_at_k_is_that_of_torchmetrics_over_tumour_queries(seed):
    labels, found, patients = some_answers(seed)
    tumour = found[labels == 1]
    q, k = tumour.shape
    want = RetrievalPrecision(top_k=k)(
        torch.linspace(1, 0.1, k).repeat(q),
        torch.tensor(tumour.ravel()),
        indexes=torch.arange(q).repeat_interleave(k),
    )
    assert metrics.precision_at_k(labels, found, patients).value == pytest.approx(float(want))


@given(seed=seeds)
@settings(max_examples=30)
def test_top1_and_precision_follow_their_definitions_with_short_lists(seed):
    labels, found, patients = some_answers(seed, short=True)
    top1, shares = [], []
    for i in np.flatnonzero(labels == 1):
        answers = [a for a in found[i] if a >= 0]
        top1.append(answers[0] == 1)
        shares.append(answers.count(1) / len(answers))
    assert metrics.tumour_top1(labels, found, patients).value == pytest.approx(np.mean(top1))
    assert metrics.precision_at_k(labels, found, patients).value == pytest.approx(np.mean(shares))


@given(seed=seeds)
@settings(max_examples=30)
def test_knn_auc_is_sklearns_auc_of_the_share_of_tumour(seed):
    labels, found, patients = some_answers(seed, short=True)
    score = metrics.knn_auc(labels, found, patients)
    share = (found == 1).sum(1) / (found >= 0).sum(1)
    assert score.value == pytest.approx(roc_auc_score(labels, share))
    np.testing.assert_allclose(metrics.share_of_tumour(found), share)


@given(seed=seeds)
@settings(max_examples=20)
def test_a_resampled_auc_is_sklearns_auc_weighted_by_patient(seed):
    labels, found, patients = some_answers(seed, patients=12)
    score = metrics.knn_auc(labels, found, patients)
    counts = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)[: len(score.patients)]
    weights = counts[np.searchsorted(score.patients, patients)]
    drawn = weights > 0
    if len(set(labels[drawn])) == 2:
        share = (found == 1).mean(axis=1)
        want = roc_auc_score(labels[drawn], share[drawn], sample_weight=weights[drawn])
        assert score.finish(counts @ score.totals) == pytest.approx(want)


@given(seed=seeds)
@settings(max_examples=30)
def test_majority_vote_is_sklearns_balanced_accuracy(seed):
    labels, found, patients = some_answers(seed, k=5)
    vote = (found.sum(axis=1) >= 3).astype(int)
    score = metrics.mmv_at_k(labels, found, patients)
    assert score.value == pytest.approx(balanced_accuracy_score(labels, vote))


def test_an_even_vote_is_decided_by_the_nearest():
    labels, patients = np.array([1, 0]), np.array(["a", "b"])
    assert metrics.mmv_at_k(labels, np.array([[1, 0], [0, 1]]), patients).value == 1
    assert metrics.mmv_at_k(labels, np.array([[0, 1], [1, 0]]), patients).value == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_a_full_ranking_average_precision_is_sklearns_and_torchmetrics(seed):
    labels, found, patients = some_answers(seed, q=20, k=25)
    same = found == labels[:, None]
    relevant = same.sum(axis=1)
    closeness = np.linspace(1, 0.1, 25)
    by_label = {0: [], 1: []}
    for i in range(20):
        if relevant[i]:
            by_label[labels[i]].append(average_precision_score(same[i], closeness))
    score = metrics.map_at_k(labels, found, patients, relevant)
    want = np.mean([np.mean(by_label[0]), np.mean(by_label[1])])
    assert score.value == pytest.approx(want)
    queries = np.flatnonzero(labels == 1)
    by_torch = RetrievalMAP(empty_target_action="skip")(
        torch.tensor(closeness).repeat(len(queries)),
        torch.tensor(same[queries].ravel()),
        indexes=torch.arange(len(queries)).repeat_interleave(25),
    )
    assert np.mean(by_label[1]) == pytest.approx(float(by_torch), abs=1e-6)


def test_average_precision_divides_by_k_or_by_all_there_is_to_find():
    patients = np.array(["a", "b"])
    labels = np.array([1, 0])
    found = np.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    cut = metrics.map_at_k(labels, found, patients, np.array([100, 100]))
    assert cut.value == pytest.approx(((1 + 2 / 3) / 4 + 1) / 2)
    all_found = metrics.map_at_k(labels, found, patients, np.array([2, 100]))
    assert all_found.value == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_perfect_answers_score_one_and_opposite_answers_zero():
    labels, patients = np.array([1, 1, 0, 0]), np.array(["a", "b", "a", "b"])
    right = np.repeat(labels[:, None], 5, axis=1)
    four = np.full(4, 9)
    for found, want in ((right, 1), (1 - right, 0)):
        assert metrics.tumour_top1(labels, found, patients).value == want
        assert metrics.precision_at_k(labels, found, patients).value == want
        assert metrics.mmv_at_k(labels, found, patients).value == want
        assert metrics.map_at_k(labels, found, patients, four).value == want
        assert metrics.knn_auc(labels, found, patients).value == want


def test_queries_without_neighbours_are_left_out():
    labels = np.array([1, 1, 0])
    found = np.array([[1, 1], [-1, -1], [0, -1]])
    patients = np.array(["a", "b", "c"])
    assert metrics.precision_at_k(labels, found, patients).n == 1
    assert metrics.knn_auc(labels, found, patients).n == 2
    assert metrics.mmv_at_k(labels, found, patients).value == 1


@pytest.mark.parametrize("kind", [0, 1])
def test_labels_of_one_kind_are_a_clear_error(kind):
    labels, found = np.full(4, kind), np.full((4, 3), kind)
    patients = np.array(list("abcd"))
    with pytest.raises(TableError, match="tumour"):
        metrics.knn_auc(labels, found, patients)
    for two_sided in (metrics.mmv_at_k, lambda *a: metrics.map_at_k(*a, np.full(4, 3))):
        with pytest.raises(TableError, match="label"):
            two_sided(labels, found, patients)
    if kind == 0:
        with pytest.raises(TableError, match="label"):
            metrics.tumour_top1(labels, found, patients)


@given(seed=seeds)
@settings(max_examples=30)
def test_distance_ratios_follow_their_definitions(seed):
    rng = np.random.default_rng(seed)
    slides = rng.choice(["s1", "s2", "s3", "s4"], 200)
    patients = np.where(np.isin(slides, ["s1", "s2"]), "p", slides)
    near, far = rng.random(200) + 0.1, rng.random(200) + 0.5
    whole = metrics.addr_global(near, far, patients)
    assert whole.value == pytest.approx(far.mean() / near.mean())
    ratios = [far[slides == s].mean() / near[slides == s].mean() for s in np.unique(slides)]
    median = metrics.addr_median(near, far, patients, slides)
    assert median.value == pytest.approx(np.median(ratios))
    assert median.n == len(ratios)


@given(counts=st.lists(st.integers(0, 3), min_size=5, max_size=5).filter(any))
def test_a_resampled_median_counts_a_slide_as_often_as_its_patient_was_drawn(counts):
    ratio = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
    names = np.array(list("abcde"))
    score = metrics.addr_median(np.ones(5), ratio, names, names)
    got = score.finish(np.array(counts, float) @ score.totals)
    assert got == pytest.approx(np.median(np.repeat(ratio, counts)))


def test_a_slide_whose_near_tiles_coincide_is_left_out_of_the_median():
    names = np.array(["a", "b"])
    score = metrics.addr_median(np.array([0.0, 1.0]), np.array([1.0, 3.0]), names, names)
    assert (score.value, score.n, list(score.patients)) == (3, 1, ["b"])
    with pytest.raises(TableError, match="one descriptor"):
        metrics.addr_median(np.zeros(2), np.ones(2), names, names)


def test_the_bootstrap_is_that_of_a_loop_over_patients():
    labels, found, patients = some_answers(3)
    score = metrics.precision_at_k(labels, found, patients)
    values = score.resampled(4000, seed=1)
    rng = np.random.default_rng(2)
    share, mine = (found == 1).mean(1)[labels == 1], patients[labels == 1]
    loop = []
    for _ in range(4000):
        drawn = rng.choice(np.unique(mine), len(np.unique(mine)))
        loop.append(np.concatenate([share[mine == p] for p in drawn]).mean())
    assert values.mean() == pytest.approx(np.mean(loop), abs=0.003)
    assert values.std() == pytest.approx(np.std(loop), rel=0.06)


def test_resamples_of_so_many_patients_that_they_come_in_blocks_are_drawn_as_one():
    labels, found, _ = some_answers(5, q=20_000)
    score = metrics.knn_auc(labels, found, np.arange(20_000))
    values = score.resampled(500, seed=4)
    counts = np.random.default_rng(4).multinomial(20_000, np.full(20_000, 1 / 20_000), size=500)
    np.testing.assert_allclose(values, score.finish(counts @ score.totals))


def test_95_percent_intervals_cover_the_truth_in_about_95_percent_of_studies():
    """40 patients with effects of their own, 30 tiles each; the truth is known by symmetry."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 30)
    covered = {"mean": 0, "auc": 0}
    studies = 300
    for i in range(studies):
        labels = rng.integers(0, 2, len(patients))
        chance = np.clip(0.5 + rng.normal(0, 0.15, 40), 0.02, 0.98)[patients]
        found = (rng.random((len(patients), 8)) < chance[:, None]).astype(int)
        for name, metric in (("mean", metrics.precision_at_k), ("auc", metrics.knn_auc)):
            low, high = metric(labels, found, patients).interval(400, seed=i)
            covered[name] += low <= 0.5 <= high
    for name, times in covered.items():
        assert 0.90 <= times / studies <= 0.985, (name, times / studies)


@pytest.mark.parametrize("metric", [metrics.knn_auc, metrics.precision_at_k])
def test_2000_resamples_are_few_products_whose_size_does_not_depend_on_the_number_of_tiles(metric):
    few, many = (metric(*some_answers(0, q=q, patients=100)) for q in (2000, 20_000))
    assert many.totals.shape == few.totals.shape
    asked = []
    counted = replace(many, finish=lambda totals: asked.append(totals) or many.finish(totals))
    assert counted.interval(2000) == many.interval(2000)
    assert 0 < len(asked) < 10


def test_a_single_patient_has_no_interval_and_rare_tumour_leaves_resamples_out():
    labels, found, _ = some_answers(0)
    alone = metrics.knn_auc(labels, found, np.full(len(labels), "p"))
    assert alone.interval() is None
    assert metrics.difference(alone, alone) == (0, None)
    few = np.array([1, 0, 0, 0]), np.array([[1], [0], [0], [1]]), np.array(list("abcd"))
    low, high = metrics.knn_auc(*few).interval()  # a third of resamples have no tumour
    assert 0 <= low <= high <= 1


def test_a_paired_difference_is_narrower_than_two_intervals_suggest():
    labels, found, patients = some_answers(1, q=4000, patients=30)
    better = found.copy()
    better[labels == 1, 0] = 1
    a = metrics.precision_at_k(labels, better, patients)
    b = metrics.precision_at_k(labels, found, patients)
    value, (low, high) = metrics.difference(a, b, seed=3)
    assert value == pytest.approx(a.value - b.value)
    assert 0 < low < value < high
    assert metrics.difference(a, a, seed=3) == (0, (0, 0))
    with pytest.raises(TableError, match="same queries"):
        metrics.difference(a, metrics.precision_at_k(labels[:60], found[:60], labels[:60]))


def test_the_same_seed_gives_the_same_interval():
    score = metrics.knn_auc(*some_answers(2))
    assert score.interval(seed=7) == score.interval(seed=7)
    assert score.interval(seed=7) != score.interval(seed=8)


@given(
    seed=seeds,
    q=st.integers(1, 30),
    k=st.integers(1, 40),
    patients=st.integers(1, 6),
    prevalence=st.sampled_from([0.02, 0.5, 0.98]),
)
@settings(max_examples=150, deadline=None)
def test_no_value_and_no_resample_of_any_answers_leaves_0_to_1(seed, q, k, patients, prevalence):
    rng = np.random.default_rng(seed)
    labels = (rng.random(q) < prevalence).astype(int)
    found = (rng.random((q, k)) < prevalence).astype(int)
    found[np.arange(k) >= rng.integers(0, k + 1, q)[:, None]] = -1
    names = rng.choice([f"p{i}" for i in range(patients)], q)
    relevant = (found == labels[:, None]).sum(axis=1) + rng.integers(0, 3, q)
    for metric in (
        metrics.tumour_top1,
        metrics.precision_at_k,
        metrics.mmv_at_k,
        metrics.knn_auc,
        lambda *every: metrics.map_at_k(*every, relevant),
    ):
        try:
            score = metric(labels, found, names)
        except TableError:
            continue  # undefined, and said so
        values = score.resampled(50)
        values = values[np.isfinite(values)]
        assert 0 <= score.value <= 1
        assert ((values >= 0) & (values <= 1)).all()


def test_fewer_relevant_tiles_than_were_found_are_refused():
    """As when a neighbour is answered twice: the mean average precision would exceed 1."""
    labels, found, patients = np.array([1, 0]), np.array([[1, 1], [0, -1]]), np.array(["a", "b"])
    with pytest.raises(TableError, match="relevant"):
        metrics.map_at_k(labels, found, patients, np.array([1, 1]))
    assert metrics.map_at_k(labels, found, patients, np.array([2, 1])).value == 1


@given(
    near=st.lists(st.floats(0, 1e300), min_size=1, max_size=20),
    seed=seeds,
)
@settings(max_examples=100, deadline=None)
def test_a_distance_ratio_is_finite_and_not_negative_or_it_is_refused(near, seed):
    rng = np.random.default_rng(seed)
    near, far = np.array(near), rng.permutation(near) * rng.random(len(near))
    slides = rng.choice(["s1", "s2", "s3"], len(near))
    for measure in (
        lambda: metrics.addr_global(near, far, slides),
        lambda: metrics.addr_median(near, far, slides, slides),
    ):
        try:
            score = measure()
        except TableError:
            continue
        assert 0 <= score.value < np.inf
