"""Exact neighbours: against brute force, scikit-learn and FAISS; never of the query's own group."""

import tracemalloc

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import NearestNeighbors

from sslpath.errors import ConfigError, DescriptorError
from sslpath.neighbours import neighbours, unit_length


def brute_force(q, x, query_groups, database_groups, k):
    """The definition, one query at a time, in float64."""
    found, distances = np.full((len(q), k), -1), np.full((len(q), k), np.inf)
    for i in range(len(q)):
        allowed = np.flatnonzero(np.asarray(database_groups) != query_groups[i])
        d = np.sqrt(np.square(x[allowed].astype(float) - q[i].astype(float)).sum(axis=1))
        best = np.argsort(d, kind="stable")[:k]
        found[i, : len(best)], distances[i, : len(best)] = allowed[best], d[best]
    return found, distances


def some_descriptors(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


# Few distinct values: ties and duplicates are the rule.
coarse = st.integers(-2, 2).map(float)
fine = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=150)
@given(data=st.data())
def test_neighbours_equal_brute_force_ties_and_short_groups_included(data):
    n, q = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 15))
    d, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    values = data.draw(st.sampled_from([coarse, fine]))
    x = data.draw(hnp.arrays(np.float32, (n, d), elements=values))
    queries = data.draw(hnp.arrays(np.float32, (q, d), elements=values))
    groups = st.integers(0, 3)
    gx = data.draw(hnp.arrays(np.int64, n, elements=groups))
    gq = data.draw(hnp.arrays(np.int64, q, elements=groups))
    found, distances = neighbours(queries, x, gq, gx, k)
    want, far = brute_force(queries, x, gq, gx, k)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(distances, far, rtol=1e-6)


@pytest.mark.parametrize("d", [2, 128, 1280])
def test_without_groups_neighbours_are_those_of_sklearn_and_faiss(d):
    x, q = some_descriptors(3000, d), some_descriptors(200, d, seed=1)
    found, distances = neighbours(q, x, k=10)
    far, want = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(x).kneighbors(q)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(distances, far, rtol=1e-4)
    index = faiss.IndexFlatL2(d)
    index.add(x)
    squared, by_faiss = index.search(q, 10)
    assert (found == by_faiss).mean() > 0.999  # FAISS works in float32: near-ties may swap
    np.testing.assert_allclose(distances**2, squared, rtol=1e-3)


def test_with_unit_length_the_order_is_that_of_the_cosine():
    x, q = some_descriptors(2000, 64) + 0.5, some_descriptors(50, 64, seed=1) + 0.5
    found, _ = neighbours(unit_length(q), unit_length(x), k=5)
    want = NearestNeighbors(n_neighbors=5, metric="cosine").fit(x).kneighbors(q)[1]
    np.testing.assert_array_equal(found, want)


def test_no_neighbour_is_of_the_querys_group_even_if_it_is_the_only_near_one():
    rng = np.random.default_rng(0)
    groups = rng.choice(["a", "b", "c", "d"], 500)
    x = some_descriptors(500, 8) + 1000 * (groups[:, None] == "a")
    found, _ = neighbours(x, x, groups, groups, 7)
    assert not (groups[found] == groups[:, None]).any()


# At most 1,024 queries are compared at a time, fewer for large k, with 2,048 rows at a time.
@pytest.mark.parametrize(
    ("q", "n", "k"),
    [(1, 5000, 9), (1024, 4096, 9), (1025, 4097, 9), (2100, 2047, 9), (2100, 6000, 9),
     (800, 3000, 700)],
)  # fmt: skip
def test_the_answer_does_not_depend_on_how_the_work_is_cut(q, n, k):
    x = np.round(some_descriptors(n, 3), 1)  # many ties
    asked = np.random.default_rng(0).integers(n, size=q)
    groups = np.arange(n) % 5
    want = brute_force(x[asked], x, groups[asked], groups, k)[0]
    np.testing.assert_array_equal(neighbours(x[asked], x, groups[asked], groups, k)[0], want)


def searched(*words):
    """The positions that a search finds, and the bytes that it takes beside its inputs."""
    tracemalloc.start()
    try:
        found, _ = neighbours(*words)
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("d", "k"), [(1, 5), (4, 1000), (64, 10)])
def test_memory_stays_bounded_whatever_the_length_and_k(d, k):
    q, x = some_descriptors(1000, d), some_descriptors(int(300_000 / d**0.5), d, seed=1)
    assert searched(q, x, None, None, k)[1] < 300e6


def almost_the_same(n, d):
    """Descriptors about one point, and a zero far from them: all are candidates of each other."""
    x = unit_length(np.eye(1, d) + 1e-5 * some_descriptors(n, d))
    x[0] = 0
    return x


@pytest.mark.parametrize("kind", ["about one point", "equal, each a group"])
def test_memory_stays_bounded_where_distances_say_nothing(kind):
    n, d = 80_000, 32
    x = almost_the_same(n, d) if kind == "about one point" else np.ones((n, d), np.float32)
    groups = np.arange(n) if kind != "about one point" else np.arange(n) // 400
    asked = np.arange(0, n, 400)
    found, peak = searched(x[asked], x, groups[asked], groups, 5)
    want = brute_force(x[asked[:5]], x, groups[asked[:5]], groups, 5)[0]
    np.testing.assert_array_equal(found[:5], want)
    assert peak < 350e6  # all pairs take more


def test_candidates_that_are_dropped_on_the_way_were_not_the_nearest():
    # 1,024 queries and 6,000 rows that are all but the same: three times as many candidates as are
    # held at once.
    x, groups = almost_the_same(6000, 4), np.arange(6000) // 50
    q, own = x[:1024], groups[:1024]
    want, far = brute_force(q, x, own, groups, 7)
    found, distances = neighbours(q, x, own, groups, 7)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_allclose(distances, far, rtol=1e-6)


def test_a_large_column_that_is_the_same_everywhere_hides_nothing():
    e = 2.0**-77
    x = np.array([[1, -9 * e], [1, 4 * e], [1, 5 * e]], np.float32)
    assert neighbours(np.array([[1, 8 * e]], np.float32), x, k=1)[0].tolist() == [[2]]
    y = some_descriptors(300, 5)
    y[:, 2] = 1e21
    want = brute_force(y, y, np.zeros(300), np.ones(300), 4)[0]
    np.testing.assert_array_equal(neighbours(y, y, k=4)[0], want)


def test_groups_that_lie_in_any_order_are_searched_alike():
    x, rng = some_descriptors(5000, 4), np.random.default_rng(0)
    blocks = np.arange(5000) // 500
    for groups in (blocks, 9 - blocks, rng.permutation(10)[blocks], rng.permutation(blocks)):
        want = brute_force(x[:1024], x, groups[:1024], groups, 6)[0]
        np.testing.assert_array_equal(neighbours(x[:1024], x, groups[:1024], groups, 6)[0], want)


def test_a_database_that_comes_nearer_and_nearer_or_is_of_any_size_is_searched():
    x = np.sort(some_descriptors(5000, 1), axis=0)
    for rows in (x, x[::-1]):
        want = brute_force(rows[-1024:], rows, np.zeros(1024), np.ones(5000), 4)[0]
        for scale in (1e-30, 1.0, 1e30):
            found, _ = neighbours(scale * rows[-1024:], scale * rows, k=4)
            np.testing.assert_array_equal(found, want)


def test_of_equal_tiles_the_first_in_the_table_is_nearer():
    x = np.zeros((300, 16), np.float32)
    x[200:] = 1
    groups = np.arange(300) // 100
    found, distances = neighbours(x, x, groups, groups, 4)
    assert found[0].tolist() == [100, 101, 102, 103]
    assert found[150].tolist() == [0, 1, 2, 3]
    assert found[250].tolist() == [0, 1, 2, 3]
    assert distances[0].tolist() == [0, 0, 0, 0]


def test_descriptors_that_have_collapsed_into_one_are_not_all_candidates_of_each_other():
    x, groups = np.ones((20_000, 64), np.float32), np.arange(20_000) // 400
    found, peak = searched(x[::20], x, groups[::20], groups, 5)
    assert found[0].tolist() == [400, 401, 402, 403, 404]
    assert (found[20:] == np.arange(5)).all()
    y = some_descriptors(*x.shape)
    assert peak < 2 * searched(y[::20], y, groups[::20], groups, 5)[1]


@pytest.mark.parametrize(("offset", "size"), [(0, 1e-30), (0, 1e30), (1e4, 1.0), (-3e8, 1e4)])
def test_neighbours_stay_exact_for_tiny_huge_and_displaced_descriptors(offset, size):
    x = (some_descriptors(400, 12) * size + offset).astype(np.float32)
    none, other = np.zeros(400), np.ones(400)
    want = brute_force(x.astype(np.longdouble), x, none, other, 5)[0]
    np.testing.assert_array_equal(neighbours(x, x, none, other, 5)[0], want)


def test_fewer_than_k_neighbours_are_padded_with_minus_one_at_infinity():
    x = np.array([[0.0], [1.0], [5.0]])
    found, distances = neighbours(x, x, ["a", "a", "b"], ["a", "a", "b"], 3)
    assert found.tolist() == [[2, -1, -1], [2, -1, -1], [1, 0, -1]]
    assert distances[2].tolist() == [4, 5, np.inf]
    alone, _ = neighbours(x, x, ["a"] * 3, ["a"] * 3, 2)
    assert (alone == -1).all()
    assert neighbours(x, np.empty((0, 1)), k=2)[0].tolist() == [[-1, -1]] * 3
    assert neighbours(np.empty((0, 1)), x, k=2)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("q", "x", "k", "error", "words"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, DescriptorError, "two encoders"),
        (np.ones(3), np.ones((2, 3)), 1, DescriptorError, "must be"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 1, DescriptorError, "NaN"),
        (np.ones((2, 1)), np.append(np.ones(300_000), np.nan)[:, None], 1, DescriptorError, "NaN"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, ConfigError, "at least one"),
    ],
)
def test_what_is_no_search_is_refused(q, x, k, error, words):
    with pytest.raises(error, match=words):
        neighbours(q, x, k=k)


def test_groups_must_fit_and_be_given_for_both():
    x = np.ones((3, 2))
    with pytest.raises(ConfigError, match="both"):
        neighbours(x, x, ["a"] * 3)
    with pytest.raises(ConfigError, match="must be"):
        neighbours(x, x, ["a"] * 3, ["a"] * 2)


def test_memory_stays_within_what_the_docstring_says():
    x = unit_length(some_descriptors(100_000, 128))
    groups = np.arange(100_000) // 500
    asked = np.arange(0, 100_000, 200)
    found, peak = searched(x[asked], x, groups[asked], groups, 10)
    assert (groups[found] != groups[asked][:, None]).all()
    assert peak < 100e6 + 200 * len(x)


def test_unit_length_leaves_zeros_and_directions():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-20, 0.0]])
    np.testing.assert_allclose(unit_length(rows), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_rows_without_a_group_are_a_group_of_their_own():
    x = np.array([[0.0], [0.0], [1.0], [1.0]])
    groups = np.array(["p", "p", None, None], object)
    found, _ = neighbours(x[:1], x, groups[:1], groups, k=2)
    assert found.tolist() == [[2, 3]]
