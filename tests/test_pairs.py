"""Pairs: near within, far beyond, one slide; against all distances of small tables."""

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from sslpath import partners
from sslpath.errors import ConfigError, TableError
from sslpath.pairs import (
    BatchSampler,
    PairIndex,
    diagnose,
    label_agreement,
    near_far_um,
    pair_masks,
    sample_pairs,
)
from sslpath.table import centres_um, make_table

WIDTH = 100.0  # um: tiles of 200 px at 0.5 um


def table(x: object, y: object, slide: object = "a", **more: object) -> pd.DataFrame:
    columns = {"slide_id": slide, "x": x, "y": y, "size": 200, "slide_mpp": 0.5, **more}
    return make_table(columns, mpp=0.5, tile_px=200, source={})


def grid(columns: int, rows: int, slide: str = "a", **more: object) -> pd.DataFrame:
    x, y = (200 * np.indices((columns, rows))).reshape(2, -1)
    return table(x, y, [slide] * len(x), **more)


def join(*tables: pd.DataFrame) -> pd.DataFrame:
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs = tables[0].attrs
    return whole


def every_distance(tiles: pd.DataFrame) -> NDArray[np.float64]:
    """The oracle: all distances, infinite across slides and from a tile to itself."""
    xy = centres_um(tiles)
    distance = np.sqrt(((xy[:, None] - xy[None]) ** 2).sum(-1))
    slide = tiles["slide_id"].to_numpy(str)
    distance[slide[:, None] != slide[None]] = np.nan
    np.fill_diagonal(distance, np.nan)
    return distance


# Whole numbers of px, so that distances are exact and some tiles share their place.
places = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(0, 12)),
    min_size=1,
    max_size=60,
)
thresholds = st.tuples(st.integers(1, 8), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1]))


def of_places(drawn: list[tuple[str, int, int]]) -> pd.DataFrame:
    slide, x, y = zip(*drawn, strict=True)
    return table(200 * np.array(x), 200 * np.array(y), list(slide))


@settings(max_examples=60)
@given(places, thresholds, st.integers(0, 5))
def test_pairs_are_near_within_and_far_beyond_on_one_slide_and_never_a_tile_with_itself(
    drawn: list[tuple[str, int, int]], tiles_apart: tuple[int, int], seed: int
) -> None:
    tiles = of_places(drawn)
    near_um, far_um = near_far_um(tiles, *tiles_apart)
    distance = every_distance(tiles)
    near, far = distance <= near_um, distance > far_um
    can_anchor = near.any(1) & far.any(1)
    rng = np.random.default_rng(seed)
    if not can_anchor.any():
        with pytest.raises(ConfigError, match="No tile has both"):
            sample_pairs(tiles, 5, near_um=near_um, far_um=far_um, rng=rng)
        return
    pairs = sample_pairs(tiles, 300, near_um=near_um, far_um=far_um, rng=rng)
    assert near[pairs.anchor, pairs.near].all()
    assert far[pairs.anchor, pairs.far].all()
    assert can_anchor[pairs.anchor].all()
    index = PairIndex(tiles, near_um=near_um, far_um=far_um)
    found = [index.slides[name].positions[index.anchors[name]] for name in index.slides]
    assert sorted(np.concatenate(found)) == np.flatnonzero(can_anchor).tolist()


@settings(max_examples=60)
@given(places, thresholds)
def test_masks_equal_all_distances_compared_and_are_symmetric(
    drawn: list[tuple[str, int, int]], tiles_apart: tuple[int, int]
) -> None:
    tiles = of_places(drawn)
    near_um, far_um = near_far_um(tiles, *tiles_apart)
    positions = np.random.default_rng(0).permutation(len(tiles))
    near, far = pair_masks(tiles, positions, near_um=near_um, far_um=far_um)
    distance = every_distance(tiles)[np.ix_(positions, positions)]
    np.testing.assert_array_equal(near, distance <= near_um)
    np.testing.assert_array_equal(far, distance > far_um)
    for mask in (near, far):
        assert (mask == mask.T).all()
        assert not mask.diagonal().any()
    assert not (near & far).any()


@settings(max_examples=40)
@example([("a", 0, 0), ("a", 0, 0)], -1, 1, 0)  # high = 0: only tiles at the same place
@given(places, st.integers(-1, 10), st.one_of(st.integers(1, 10), st.just(None)), st.integers(0, 3))
def test_a_partner_is_found_exactly_where_one_exists_in_any_ring(
    drawn: list[tuple[str, int, int]], low: int, thickness: int | None, seed: int
) -> None:
    tiles = of_places(drawn)
    high = np.inf if thickness is None else (low + thickness) * WIDTH
    distance = every_distance(tiles)
    fits = (distance > low * WIDTH) & (distance <= high)
    for slide in partners.by_slide(tiles).values():
        anchors = np.arange(len(slide))
        partner = slide.draw(anchors, low * WIDTH, high, np.random.default_rng(seed))
        found = partner >= 0
        np.testing.assert_array_equal(found, fits[slide.positions].any(1))
        assert fits[slide.positions[found], slide.positions[partner[found]]].all()


def assert_uniform(tiles: pd.DataFrame, anchor: int, low: float, high: float) -> None:
    """Every tile at a distance in ``(low, high]`` is drawn as often as any other."""
    distance = every_distance(tiles)[anchor]
    fits = np.flatnonzero((distance > low) & (distance <= high))
    rng = np.random.default_rng(3)
    drawn = partners.by_slide(tiles)["a"].draw(np.full(3000, anchor), low, high, rng)
    counts = np.bincount(drawn, minlength=len(tiles))
    assert counts.sum() == counts[fits].sum() == 3000
    assert chisquare(counts[fits]).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(9, 7), (1, 40), (40, 1), (2, 20)])
def test_every_partner_has_the_same_chance(shape: tuple[int, int]) -> None:
    for low, high in ((-1.0, 3 * WIDTH), (4 * WIDTH, np.inf), (2 * WIDTH, 3 * WIDTH)):
        assert_uniform(grid(*shape), 24, low, high)


def test_every_partner_has_the_same_chance_where_few_of_many_tiles_fit() -> None:
    """Trials at random would hardly ever meet a partner there, so that all tiles are listed."""
    middle = 30 * 60 + 30
    assert_uniform(grid(60, 60), middle, 22.99 * WIDTH, 23 * WIDTH)  # 4 tiles
    two_far_away = join(grid(40, 40), table([90_000, 0], [0, 90_000], ["a", "a"]))
    assert_uniform(two_far_away, 24, 400 * WIDTH, np.inf)


def test_anchors_are_uniform_over_all_slides_tiles_that_have_partners() -> None:
    # One tile stands too far from all others to have a near partner.
    tiles = join(grid(6, 6, "a"), grid(3, 6, "b"), table([9000], [9000], ["b"]))
    rng = np.random.default_rng(1)
    pairs = sample_pairs(tiles, 20_000, near_um=100, far_um=300, rng=rng)
    distance = every_distance(tiles)
    able = (distance <= 100).any(1) & (distance > 300).any(1)
    counts = np.bincount(pairs.anchor, minlength=len(tiles))
    assert counts[~able].sum() == 0
    assert not able[-1]
    assert chisquare(counts[able]).pvalue > 1e-4


def test_the_same_seed_draws_the_same_pairs() -> None:
    tiles = grid(12, 12)
    one, same, other = (
        sample_pairs(tiles, 50, near_um=200, far_um=600, rng=np.random.default_rng(seed))
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(one.near, same.near)
    np.testing.assert_array_equal(one.far, same.far)
    assert (one.near != other.near).any()


def test_a_distance_equal_to_the_threshold_up_to_rounding_is_near_not_far() -> None:
    # 3 widths of 0.1 + 0.2 um px are not exactly 3 * width in floating point.
    tiles = make_table(
        {"slide_id": "a", "x": [0, 300, 30_000], "y": 0, "size": 100, "slide_mpp": 0.1 + 0.2},
        mpp=0.1 + 0.2, tile_px=100, source={},
    )  # fmt: skip
    near_um, _ = near_far_um(tiles, 3, 3)
    near, far = pair_masks(tiles, np.arange(3), near_um=near_um, far_um=near_um)
    assert near[0, 1]
    assert not far[0, 1]


class Counting(np.random.Generator):
    """A source of randomness that counts what is drawn from it."""

    drawn = 0

    def integers(self, *words: Any, **more: Any) -> Any:
        return self._counted(super().integers(*words, **more))

    def random(self, *words: Any, **more: Any) -> Any:
        return self._counted(super().random(*words, **more))

    def _counted(self, numbers: Any) -> Any:
        self.drawn += np.size(numbers)
        return numbers


def test_pairs_of_two_hundred_thousand_tiles_take_few_trials_and_little_memory() -> None:
    x, y = (200 * np.indices((400, 500))).reshape(2, -1)
    tiles = table(x, y)
    near_um, far_um = near_far_um(tiles, 8, 30)
    rng = Counting(np.random.PCG64(0))
    tracemalloc.start()
    pairs = sample_pairs(tiles, 10_000, near_um=near_um, far_um=far_um, rng=rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    xy = centres_um(tiles)
    assert (np.linalg.norm(xy[pairs.anchor] - xy[pairs.near], axis=1) <= near_um).all()
    assert (np.linalg.norm(xy[pairs.anchor] - xy[pairs.far], axis=1) > far_um).all()
    # 200,000 x 200,000 distances would be 320 GB; a list of the tiles near each anchor, 6 million.
    assert peak < 150e6
    assert len(pairs.anchor) < rng.drawn < 10 * len(pairs.anchor)


def test_batches_hold_near_and_far_pairs_on_a_slide_of_any_size() -> None:
    x, y = (200 * np.indices((300, 300))).reshape(2, -1)
    tiles = join(table(x, y, ["big"] * len(x)), grid(10, 10, "small"))
    sampler = BatchSampler(tiles, near_um=100, far_um=600, slides_per_batch=2, tiles_per_slide=32)
    for seed in range(5):
        positions = sampler.batch(np.random.default_rng(seed))
        near, far = sampler.masks(positions)
        big = (tiles["slide_id"].to_numpy(str) == "big")[positions]
        assert big.sum() == 32
        # Drawn blindly, 32 of 90,000 tiles would hold 0.02 near pairs; 16 were paired on purpose.
        assert near[np.ix_(big, big)].any(1).sum() >= 32 - 2
        assert far[np.ix_(big, big)].any(1).all()
        assert far[np.ix_(~big, ~big)].any()
        expected = pair_masks(tiles, positions, near_um=100, far_um=600)
        np.testing.assert_array_equal(near, expected[0])
        np.testing.assert_array_equal(far, expected[1])


@settings(max_examples=40)
@given(places, thresholds, st.integers(1, 4), st.integers(2, 20), st.integers(0, 9))
def test_a_batch_has_different_tiles_of_few_slides_and_as_many_as_asked(
    drawn: list[tuple[str, int, int]],
    tiles_apart: tuple[int, int],
    slides: int,
    per_slide: int,
    seed: int,
) -> None:
    tiles = of_places(drawn)
    near_um, far_um = near_far_um(tiles, *tiles_apart)
    try:
        sampler = BatchSampler(
            tiles, near_um=near_um, far_um=far_um,
            slides_per_batch=slides, tiles_per_slide=per_slide,
        )  # fmt: skip
    except ConfigError:
        return
    positions = sampler.batch(np.random.default_rng(seed))
    assert len(set(positions.tolist())) == len(positions)
    counts = tiles["slide_id"].iloc[positions].value_counts()
    assert len(counts) == min(slides, len(sampler.index.usable))
    sizes = tiles["slide_id"].value_counts()
    for name, count in counts.items():
        assert count == min(per_slide, sizes[name])
    near, _ = sampler.masks(positions)
    assert near.any()


def test_diagnosis_counts_what_is_missing_and_how_often_labels_agree() -> None:
    # Left half tumour; one tile far from all, and a slide too small for far pairs.
    x, y = (200 * np.indices((20, 20))).reshape(2, -1)
    tiles = join(
        table(x, y, ["a"] * 400, label=(x < 2000).astype(int)),
        table([40_000], [0], ["a"], label=[0]),
        grid(3, 3, "small", label=[1] * 9),
    )
    found = diagnose(tiles, 200, 1200, np.random.default_rng(0))
    assert (found.tiles, found.slides, found.slides_without_pairs) == (410, 2, ("small",))
    assert found.no_near == pytest.approx(1 / 410)
    assert found.no_far == pytest.approx(9 / 410)
    distance = every_distance(tiles)
    label = tiles["label"].to_numpy(int)
    same = label[:, None] == label[None]
    for share, n, fits in (
        (found.near_agreement, found.near_pairs, distance <= 200),
        (found.far_agreement, found.far_pairs, distance > 1200),
    ):
        has = fits.any(1)
        exact = ((same & fits).sum(1)[has] / fits.sum(1)[has]).mean()
        assert n > 1800
        assert share == pytest.approx(exact, abs=4 * np.sqrt(0.25 / n))
    assert "410 tiles of 2 slides" in str(found)


def test_diagnosis_with_near_and_far_at_one_distance_splits_all_pairs_there() -> None:
    x, y = (200 * np.indices((20, 20))).reshape(2, -1)
    tiles = table(x, y, ["a"] * 400, label=(x < 2000).astype(int))
    found = diagnose(tiles, 300, 300, np.random.default_rng(0))
    distance = every_distance(tiles)
    label = tiles["label"].to_numpy(int)
    same = label[:, None] == label[None]
    for share, fits in (
        (found.near_agreement, distance <= 300),
        (found.far_agreement, distance > 300),
    ):
        exact = ((same & fits).sum(1) / fits.sum(1)).mean()
        assert share == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 2000))


def test_agreement_by_distance_follows_the_labels_and_leaves_unknown_ones_out() -> None:
    # Stripes 4 tiles wide; the labels of every third column are unknown.
    x, y = (200 * np.indices((40, 40))).reshape(2, -1)
    label = pd.array((x // 800) % 2, dtype="Int8")
    label[(x // 200) % 3 == 0] = pd.NA
    tiles = table(x, y, label=label)
    edges = np.array([0, 1, 2, 4, 8, np.inf]) * WIDTH
    found = label_agreement(tiles, edges, np.random.default_rng(0), pairs=4000)
    known = tiles[tiles["label"].notna()]
    known.attrs = tiles.attrs
    distance, values = every_distance(known), known["label"].to_numpy(int)
    same = values[:, None] == values[None]
    for row, low, high in zip(found.itertuples(), edges[:-1], edges[1:], strict=True):
        fits = (distance > low) & (distance <= high)
        has = fits.any(1)
        exact = ((same & fits).sum(1)[has] / fits.sum(1)[has]).mean()
        assert row.n == pytest.approx(4000 * has.mean(), rel=0.05)
        assert row.agreement == pytest.approx(exact, abs=0.035)


def test_agreement_without_labels_is_not_a_number_rather_than_an_error() -> None:
    found = label_agreement(grid(5, 5), [0, 200, 400], np.random.default_rng(0))
    assert found["n"].tolist() == [0, 0]
    assert found["agreement"].isna().all()


@pytest.mark.parametrize(
    ("near_um", "far_um"),
    [(0, 10), (-1, 10), (20, 10), (10, np.inf), (np.nan, 10), (10, np.nan)],
)
def test_distances_that_contradict_each_other_are_refused(near_um: float, far_um: float) -> None:
    with pytest.raises(ConfigError, match="0 < near <= far"):
        sample_pairs(grid(5, 5), 1, near_um=near_um, far_um=far_um, rng=np.random.default_rng(0))


def test_slides_too_small_for_far_pairs_are_refused_with_their_width() -> None:
    with pytest.raises(ConfigError, match="widest slide spans 400 um"):
        PairIndex(grid(5, 5), near_um=100, far_um=2000)


def test_an_empty_table_and_a_tile_without_a_place_are_refused() -> None:
    with pytest.raises(TableError, match="no tiles"):
        PairIndex(grid(0, 0), near_um=100, far_um=200)
    nowhere = grid(3, 3).assign(slide_mpp=np.nan)
    nowhere.attrs = grid(3, 3).attrs
    with pytest.raises(TableError, match="finite position"):
        PairIndex(nowhere, near_um=100, far_um=200)


@pytest.mark.parametrize(("slides", "tiles"), [(0, 8), (1, 1)])
def test_batches_without_a_pair_are_refused(slides: int, tiles: int) -> None:
    with pytest.raises(ConfigError, match="holds no pair"):
        BatchSampler(
            grid(9, 9), near_um=100, far_um=400, slides_per_batch=slides, tiles_per_slide=tiles
        )
