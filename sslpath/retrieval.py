"""Search among descriptors, and the protocol that compares methods.

Neighbours are exact, and never of the query's own patient: tiles of one patient look alike for
reasons that have nothing to do with tumour. Unknown labels: such tiles are neither queries nor
database where labels are compared; the distance ratio uses all tiles.

Every method's descriptors are scaled to length 1 first, so that the Euclidean distance ranks as
the cosine does; see :func:`unit_length`.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sslpath import metrics
from sslpath.descriptor_files import stored_bytes
from sslpath.errors import ConfigError, DescriptorError, TableError, counted
from sslpath.metrics import Score
from sslpath.neighbours import neighbours, pair_distances, unit_length
from sslpath.pairs import check_distances, sample_pairs
from sslpath.results import row

__all__ = ["cost", "evaluate", "neighbours", "search", "slide_pairs", "tumour_share", "unit_length"]

CHANCE = "chance"  # the method that answers at random
MOST_ANSWERS = 2**31  # of all queries together, held in memory at a time


def search(
    queries: ArrayLike,
    descriptors: ArrayLike,
    tiles: pd.DataFrame,
    k: int = 10,
    *,
    exclude: ArrayLike | None = None,
    group: str = "patient",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tiles most like one or several queries: what a gallery shows.

    Args:
        queries: Descriptors (q, d), or one (d,).
        descriptors: Descriptors of the tiles, (n, d).
        tiles: The table of tiles.
        k: How many.
        exclude: Patient (or slide) to leave out, one for all queries or one for each.
        group: ``"patient"`` or ``"slide"``: what ``exclude`` names.

    Returns:
        Positions in ``tiles`` and distances, both (q, k), or (k,) for one query.
    """
    many = np.atleast_2d(np.asarray(queries))
    _aligned(tiles, {"descriptors": np.asarray(descriptors)})
    groups = _groups(tiles, group)
    out = None if exclude is None else np.broadcast_to(np.asarray(exclude, object), len(many))
    found, distances = neighbours(
        unit_length(many), unit_length(descriptors), out, None if out is None else groups, k
    )
    return (found[0], distances[0]) if np.ndim(queries) == 1 else (found, distances)


def tumour_share(
    tiles: pd.DataFrame,
    descriptors: ArrayLike,
    *,
    k: int = 10,
    slide_id: str | None = None,
    group: str = "patient",
) -> NDArray[np.float64]:
    """The share of tumour among the k nearest labelled tiles of other patients: a heat map.

    The same score as :func:`sslpath.metrics.knn_auc` ranks by; the tiles scored need no label.

    Args:
        tiles: The table of tiles.
        descriptors: Descriptors of the tiles, (n, d).
        k: How many neighbours.
        slide_id: Score the tiles of this slide only, in the order of their rows.
        group: Whose tiles are left out: ``"patient"`` or ``"slide"``.

    Returns:
        Scores in 0..1, one a tile.

    Raises:
        TableError: If there is no such slide, or a tile has no labelled tile of others.
    """
    unit = unit_length(descriptors)
    _aligned(tiles, {"descriptors": unit})
    asked = np.ones(len(tiles), bool) if slide_id is None else (tiles["slide_id"] == slide_id)
    asked = np.asarray(asked, bool)
    known, labels = _labels(tiles)
    groups = _groups(tiles, group)
    k = min(k, max(1, int(known.sum())))  # there are no more to be found
    found, _ = neighbours(unit[asked], unit[known], groups[asked], groups[known], k)
    if not len(found) or (found[:, 0] < 0).any():
        raise TableError(
            f"No tumour share for slide {slide_id!r}: it has no tiles, or no labelled tile of "
            f"another {group} is there to compare with."
        )
    return metrics.share_of_tumour(_labels_of(labels[known], found))


def _labels(tiles: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which tiles have a label, and the labels, -1 where there is none; (n,) each."""
    known = tiles["label"].notna().to_numpy(bool)
    labels = tiles["label"].fillna(-1).to_numpy(np.int64)
    others = np.setdiff1d(labels[known], (0, 1))
    if len(others):
        raise TableError(f"Labels are 1 (tumour), 0 (not) or missing; the table has {others[0]}.")
    return known, labels


def _labels_of(labels: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.int8]:
    """Labels of neighbours, -1 where there is none."""
    return np.where(found >= 0, labels.astype(np.int8)[found], np.int8(-1))


def _groups(tiles: pd.DataFrame, group: str) -> NDArray[Any]:
    if group not in ("patient", "slide"):
        raise ConfigError(f'group must be "patient" or "slide", not {group!r}.')
    lacking = tiles[f"{group}_id"].isna()
    if lacking.any():
        raise TableError(
            f"{counted(int(lacking.sum()), 'tile')} without {group}_id: no query can leave its own "
            f"{group} out. Fill the column in."
        )
    return tiles[f"{group}_id"].to_numpy(object)


def check_each_once(tiles: pd.DataFrame) -> None:
    """Refuse a table that lists a tile twice: it would be found, and counted, twice.

    Raises:
        TableError: If two rows have the same slide and corner.
    """
    key = ["slide_id", "x", "y"]
    again = tiles[key].duplicated().to_numpy()
    if again.any():
        slide_id, x, y = tiles[key].iloc[int(again.argmax())]
        raise TableError(
            f"The table lists {counted(int(again.sum()), 'tile')} more than once, such as "
            f"{slide_id}:{x},{y}. Keep one row of each: tiles.drop_duplicates({key}) in pandas."
        )


def check_methods(names: Iterable[str]) -> None:
    """Refuse names of methods that results, tables or pictures could not tell apart.

    Raises:
        ConfigError: If a name is empty, reserved, or has signs that break a table or a file's name.

    Example:
        >>> check_methods(["spatial", "imagenet", "near 8, seed 1"])
    """
    for name in names:
        broken = sorted({c for c in name if c in "|/\\$" or not c.isprintable()})
        if name == CHANCE:
            problem = "is the name of the random answers"
        elif not name or name != name.strip():
            problem = "is empty or begins or ends with a space"
        elif " - " in name:
            problem = "would be taken for a difference of two methods, because of its ' - '"
        elif broken:
            problem = f"holds {', '.join(map(repr, broken))}"
        else:
            continue
        raise ConfigError(f"{name!r} cannot be the name of a method: it {problem}. Choose another.")


def _aligned(tiles: pd.DataFrame, descriptors: Mapping[str, NDArray[Any]]) -> None:
    check_each_once(tiles)
    for name, one in descriptors.items():
        if one.ndim != 2 or len(one) != len(tiles):
            raise DescriptorError(
                f"The descriptors {name!r} are {one.shape}, the table has {len(tiles)} tiles; "
                "read them with read_descriptors(folder, tiles)."
            )


def evaluate(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, ArrayLike],
    *,
    near_um: float,
    far_um: float,
    k: int = 10,
    seed: int = 0,
    group: str = "patient",
    versus: str = "imagenet",
    resamples: int = 2000,
    pairs_per_slide: int = 1000,
    data: str = "",
) -> list[dict[str, Any]]:
    """Compare descriptors of the same tiles: a row per method and metric, ready for results.json.

    ``tumour_top1``, ``tumour_p_at_<k>``, ``knn_auc``, ``mmv_at_5``, ``map_at_<k>``,
    ``addr_global``, ``addr_median``; each is defined in :mod:`sslpath.metrics`. The method
    ``chance`` answers with random tiles of other patients, none of them twice. Rows with
    ``versus`` are differences between two methods, such as ``spatial - imagenet``, on the same
    queries, pairs and resamples.

    A metric that the tiles do not allow is left out, with a warning that says why.

    Args:
        tiles: The table of tiles; pass the test tiles only.
        descriptors: Method to descriptors (n, d), aligned to the rows. For the names that a method
            may have see :func:`check_methods`.
        near_um: Near pairs lie at most this far apart.
        far_um: Far pairs lie farther apart than this.
        k: Neighbours asked for; where others have fewer tiles, these are all that is found.
        seed: Of the pairs, the random answers and the resamples.
        group: Whose tiles a query may not find: ``"patient"`` or ``"slide"``.
        versus: The method that others are compared with; ``imagenet`` may be missing.
        resamples: Of the bootstrap over patients.
        pairs_per_slide: Near and far pairs drawn on each slide, the same for every method.
        data: Name of the data, for the rows.

    Raises:
        ConfigError: If settings make no sense, such as ``k`` of 0 or a method that is not there.
        DescriptorError: If descriptors do not fit the tiles, or are not finite.
        TableError: If the table lists a tile twice, or lacks a patient.
    """
    check_methods(descriptors)
    if versus not in ("imagenet", CHANCE, *descriptors):
        raise ConfigError(f"There is no method {versus!r}; there are {', '.join(descriptors)}.")
    if k < 1:
        raise ConfigError(f"k = {k}: ask for at least one neighbour.")
    arrays = {name: np.asarray(one) for name, one in descriptors.items()}
    _aligned(tiles, arrays)
    units = {name: unit_length(one) for name, one in arrays.items()}
    for name, unit in units.items():
        if not np.isfinite(unit).all():
            raise DescriptorError(f"Descriptors of {name!r} hold NaN or infinity.")
    scores: dict[tuple[str, str], tuple[Score, dict[str, Any]]] = {}
    for part in (
        _retrieval_scores(tiles, units, k, seed, group),
        _distance_scores(tiles, units, near_um, far_um, seed, pairs_per_slide),
    ):
        scores.update(part)

    rows = []
    for (method, metric), (score, extra) in scores.items():
        low, high = score.interval(resamples, seed) or (None, None)
        extra = {**extra, "patients": len(score.patients), "resamples": resamples}
        rows.append(row(method, metric, score.value, low, high, score.n, seed, data, **extra))
    for (method, metric), (score, extra) in scores.items():
        if method in units and method != versus and (versus, metric) in scores:
            other = scores[versus, metric][0]
            if not np.array_equal(score.patients, other.patients):
                continue  # one of the two is undefined on a slide, so there is nothing to compare
            value, between = metrics.difference(score, other, resamples, seed)
            low, high = between or (None, None)
            extra = {**extra, "patients": len(score.patients), "resamples": resamples}
            extra["versus"] = versus
            name = f"{method} - {versus}"
            rows.append(row(name, metric, value, low, high, score.n, seed, data, **extra))
    return rows


Scores = dict[tuple[str, str], tuple[Score, dict[str, Any]]]


def _retrieval_scores(
    tiles: pd.DataFrame, units: Mapping[str, NDArray[np.float32]], k: int, seed: int, group: str
) -> Scores:
    """The labelled metrics of every method, and of random answers."""
    known, labels = _labels(tiles)
    labels = labels[known]
    groups, patients = _groups(tiles, group)[known], _groups(tiles, "patient")[known]
    missing = [what for what, kind in (("tumour", 1), ("not tumour", 0)) if kind not in labels]
    if missing or len(set(groups)) < 2:
        why = f"no tile is labelled {missing[0]}" if missing else f"there is a single {group}"
        warnings.warn(f"Tumour retrieval is not measured: {why}.", stacklevel=3)
        return {}
    most = len(groups) - int(np.bincount(pd.factorize(groups)[0]).min())
    width = min(k, most)  # no query has more to find
    if len(labels) * width > MOST_ANSWERS:
        raise ConfigError(
            f"k = {k}: {width:,} answers for each of {len(labels):,} tiles do not fit into memory. "
            "Choose a smaller k."
        )
    relevant = _relevant(labels, groups)
    scores: Scores = {}
    undefined: dict[str, str] = {}
    for method, unit in [(CHANCE, None), *units.items()]:
        if unit is None:
            found = _random_neighbours(groups, width, np.random.default_rng(seed))
        else:
            found, _ = neighbours(unit[known], unit[known], groups, groups, width)
        five = min(5, k)
        every = labels, _labels_of(labels, found), patients
        first_five = labels, every[1][:, :five], patients
        measured: tuple[tuple[str, int, Callable[..., Score], tuple[Any, ...]], ...] = (
            ("tumour_top1", 1, metrics.tumour_top1, every),
            (f"tumour_p_at_{k}", k, metrics.precision_at_k, every),
            ("knn_auc", k, metrics.knn_auc, every),
            (f"mmv_at_{five}", five, metrics.mmv_at_k, first_five),
            (f"map_at_{k}", k, metrics.map_at_k, (*every, relevant)),
        )
        for metric, depth, measure, given in measured:
            try:
                scores[method, metric] = (measure(*given), {"k": depth, "group": group})
            except TableError as error:
                undefined[metric] = str(error)
    for metric, why in undefined.items():
        warnings.warn(f"{metric} is not measured: {why}", stacklevel=3)
    return scores


def _relevant(labels: NDArray[np.int64], groups: NDArray[Any]) -> NDArray[np.int64]:
    """How many tiles of other groups have each tile's label, (q,)."""
    codes = pd.factorize(groups)[0]
    both = np.stack(
        [np.bincount(codes[labels == kind], minlength=codes.max() + 1) for kind in (0, 1)]
    )
    return np.asarray(both.sum(axis=1)[labels] - both[labels, codes])


def _random_neighbours(groups: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw k random tiles of other groups for each tile, none of them twice, (n, k).

    Where other groups have fewer than k tiles the rest is -1.
    """
    codes = pd.factorize(groups)[0]
    order = np.argsort(codes, kind="stable")
    start, size = np.searchsorted(codes[order], codes), np.bincount(codes)[codes]
    others = len(codes) - size
    # Few draws of a few tiles among many hit one twice: these, and no others, are drawn again.
    draw = rng.integers(0, others[:, None], size=(len(codes), k))
    ordered = np.sort(draw, axis=1)
    for i in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)):
        some = min(k, int(others[i]))
        draw[i, :some] = rng.choice(others[i], some, replace=False)
        draw[i, some:] = -1
    place = draw + np.where(draw >= start[:, None], size[:, None], 0)
    return np.where(draw < 0, -1, order[place])


def _distance_scores(
    tiles: pd.DataFrame,
    units: Mapping[str, NDArray[np.float32]],
    near_um: float,
    far_um: float,
    seed: int,
    pairs_per_slide: int,
) -> Scores:
    """The distance ratio of every method, on the same pairs."""
    pairs, lacking = slide_pairs(tiles, near_um, far_um, seed, pairs_per_slide)
    anchor, near, far = pairs.T
    if not len(pairs):
        warnings.warn(
            f"The distance ratio is not measured: no slide has tiles within {near_um:g} um and "
            f"beyond {far_um:g} um of each other.",
            stacklevel=3,
        )
        return {}
    patients = _groups(tiles, "patient")[anchor]
    slides = _groups(tiles, "slide")[anchor]
    extra = {
        "near_um": near_um,
        "far_um": far_um,
        "slides": len(set(slides)),
        "slides_without_pairs": lacking,
    }
    scores: Scores = {}
    for method, unit in units.items():
        d_near = pair_distances(unit, unit, anchor, near)
        d_far = pair_distances(unit, unit, anchor, far)
        if not d_near.any():
            warnings.warn(
                f"The distance ratio of {method!r} is not measured: near tiles share one "
                "descriptor, it has collapsed.",
                stacklevel=3,
            )
            continue
        scores[method, "addr_global"] = (metrics.addr_global(d_near, d_far, patients), extra)
        scores[method, "addr_median"] = (
            metrics.addr_median(d_near, d_far, patients, slides),
            extra,
        )
    return scores


def slide_pairs(
    tiles: pd.DataFrame, near_um: float, far_um: float, seed: int, pairs_per_slide: int = 1000
) -> tuple[NDArray[np.intp], int]:
    """The same number of near and far pairs on each slide.

    Args:
        tiles: The table of tiles.
        near_um: Near pairs lie at most this far apart.
        far_um: Far pairs lie farther apart than this.
        seed: Of the draw.
        pairs_per_slide: How many.

    Returns:
        Positions in ``tiles`` of anchor, near and far tile, (m, 3); and how many slides have no
        pairs of both kinds and are left out.
    """
    check_distances(near_um, far_um)
    drawn, lacking = [np.empty((0, 3), np.intp)], 0
    rng = np.random.default_rng(seed)
    bare = tiles.reset_index(drop=True)
    bare.attrs = {}  # which name every slide, and would be copied with the rows of each
    for _, group in bare.groupby("slide_id", sort=True):
        where = group.index.to_numpy()
        try:
            pairs = sample_pairs(group, pairs_per_slide, near_um=near_um, far_um=far_um, rng=rng)
        except ConfigError:  # no tile has both partners
            lacking += 1
            continue
        drawn.append(where[np.stack([pairs.anchor, pairs.near, pairs.far], axis=1)])
    return np.concatenate(drawn), lacking


def cost(
    method: str,
    descriptors: ArrayLike,
    *,
    folder: str | Path | None = None,
    k: int = 10,
    queries: int = 256,
    repeats: int = 7,
    data: str = "",
) -> list[dict[str, Any]]:
    """What a method costs to keep and to search.

    Rows ``bytes_per_tile`` (as float32 in memory), ``stored_bytes_per_tile`` (on disk, if
    ``folder`` is given) and ``query_us`` (exact search: the median of the repeats, with ``least``
    and ``most``).

    Args:
        method: The method's name.
        descriptors: Its descriptors, (n, d).
        folder: Where they are stored.
        k: Neighbours asked for.
        queries: Tiles searched for at a time; the time is for one of them.
        repeats: The median of this many is reported.
        data: Name of the data, for the rows.
    """
    unit = unit_length(descriptors)
    n, d = unit.shape
    most = min(k, n)
    asked = unit[np.linspace(0, n - 1, min(queries, n)).astype(int)]
    neighbours(asked, unit, k=most)  # warm
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        neighbours(asked, unit, k=most)
        times.append((time.perf_counter() - start) / len(asked) * 1e6)
    about = {"dim": d, "tiles": n}
    rows = [row(method, "bytes_per_tile", d * 4, n=n, data=data, **about)]
    if folder is not None:
        stored = stored_bytes(folder)
        rows.append(row(method, "stored_bytes_per_tile", stored, n=n, data=data, **about))
    middle, least, most = float(np.median(times)), min(times), max(times)
    about |= {"k": k, "batch": len(asked)}
    about |= {"least": least, "most": most}
    rows.append(row(method, "query_us", middle, n=repeats, data=data, **about))
    return rows
