"""What is measured, with 95 % intervals over patients.

Each metric is a :class:`Score`: sums per patient and the formula that turns their totals into one
number. So a bootstrap over patients is a matrix product, and thousands of resamples take a moment.

Arrays that every retrieval metric takes, for q queries:

- ``labels`` (q,): 1 tumour, 0 not;
- ``found`` (q, k): labels of the k nearest tiles of other patients, nearest first, -1 where there
  are fewer;
- ``patients`` (q,): whose tile the query is.

A query without any neighbour says nothing and is left out.

But: intervals treat the database as fixed, and patients as independent. With few patients
(below 20 or so) percentile intervals are too narrow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslpath.errors import TableError

Floats = NDArray[np.float64]
BLOCK = 8_000_000  # totals held at a time: 64 MB


@dataclass(frozen=True)
class Score:
    """A metric that can be bootstrapped over patients.

    Attributes:
        patients: The patients that contribute, (p,), sorted.
        totals: Sums per patient, (p, s).
        finish: Turns totals (..., s) into values (...); NaN where the metric is undefined.
        n: How many queries, pairs or slides went in.
    """

    patients: NDArray[Any]
    totals: Floats
    finish: Callable[[Floats], Floats] = field(repr=False)
    n: int

    @property
    def value(self) -> float:
        """The metric over all patients."""
        return float(self.finish(self.totals.sum(axis=0)))

    def resampled(self, resamples: int = 2000, seed: int = 0) -> Floats:
        """The metric on patients drawn with replacement, (resamples,).

        One seed draws the same patients for every score with the same patients, so two methods
        can be compared resample by resample.
        """
        values = np.empty(resamples)
        p = len(self.patients)
        rng = np.random.default_rng(seed)
        step = max(1, BLOCK // max(p, self.totals.shape[1]))
        for start in range(0, resamples, step):
            stop = min(start + step, resamples)
            counts = rng.multinomial(p, np.full(p, 1 / p), size=stop - start).astype(np.float64)
            values[start:stop] = self.finish(counts @ self.totals)
        return values

    def interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float] | None:
        """The 95 % percentile interval; None for a single patient or a mostly undefined metric."""
        return _percentiles(self.resampled(resamples, seed)) if len(self.patients) > 1 else None


def difference(
    a: Score, b: Score, resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """How much larger ``a`` is than ``b``, with a 95 % interval on the same resamples of patients.

    Raises:
        TableError: If the two do not rest on the same patients.
    """
    if not np.array_equal(a.patients, b.patients):
        raise TableError(
            "Two methods can be compared on the same queries only: give both descriptors of "
            "every tile in the table."
        )
    value = a.value - b.value
    if len(a.patients) < 2:
        return value, None
    return value, _percentiles(a.resampled(resamples, seed) - b.resampled(resamples, seed))


def _percentiles(values: Floats) -> tuple[float, float] | None:
    """2.5 and 97.5 %. Resamples without a tumour, say, are left out; None if they are many."""
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2:
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _score(
    columns: list[NDArray[Any]],
    patients: NDArray[Any],
    finish: Callable[[Floats], Floats],
    what: str,
) -> Score:
    """Sum columns (q,) by patient."""
    names, codes = np.unique(patients, return_inverse=True)
    totals = [np.bincount(codes, column, minlength=len(names)) for column in columns]
    score = Score(names, np.stack(totals, axis=1), finish, len(patients))
    if not np.isfinite(score.value):
        raise TableError(
            f"{what} is undefined: it needs queries with neighbours among other patients, and "
            "labels of the kinds that it compares; see the `label` and `patient_id` columns."
        )
    return score


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """``a / b``, NaN where ``b`` is 0."""
    with np.errstate(over="ignore"):  # infinity counts as undefined, too
        return np.asarray(np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b != 0))


def _mean(totals: Floats) -> Floats:
    return _ratio(totals[..., 0], totals[..., 1])


def _mean_of_two(totals: Floats) -> Floats:
    return (_mean(totals[..., :2]) + _mean(totals[..., 2:])) / 2


def share_of_tumour(found: NDArray[Any]) -> Floats:
    """The share of tumour among the neighbours that a query has, (q,)."""
    return _ratio((found == 1).sum(axis=1), (found >= 0).sum(axis=1))


def tumour_top1(labels: NDArray[Any], found: NDArray[Any], patients: NDArray[Any]) -> Score:
    """Tumour retrieval: for what share of tumour tiles the nearest other tile is tumour.

    Chance is the share of tumour among the tiles of other patients.

    Example:
        >>> labels, found = np.array([1, 1, 0]), np.array([[1, 0], [0, 1], [1, 1]])
        >>> tumour_top1(labels, found, np.array(["a", "b", "b"])).value
        0.5
    """
    return precision_at_k(labels, found[:, :1], patients)


def precision_at_k(labels: NDArray[Any], found: NDArray[Any], patients: NDArray[Any]) -> Score:
    """Tumour retrieval: the mean share of tumour among the k nearest, over all tumour tiles.

    The denominator is k, or the number of tiles of other patients if that is smaller.
    """
    asked = (labels == 1) & (found[:, 0] >= 0)
    share = share_of_tumour(found[asked])
    return _score([share, np.ones(len(share))], patients[asked], _mean, "Precision at k")


def mmv_at_k(labels: NDArray[Any], found: NDArray[Any], patients: NDArray[Any]) -> Score:
    """Majority vote of the k nearest (mMV@k): balanced accuracy over all labelled tiles.

    Balanced means that tumour and other tiles count the same, so that "always no tumour" scores
    0.5 however rare tumour is. If the vote is even, the nearest tile decides.
    """
    asked = found[:, 0] >= 0
    labels, found, patients = labels[asked], found[asked], patients[asked]
    share = share_of_tumour(found)
    vote = np.where(share == 0.5, found[:, 0] == 1, share > 0.5)
    right = (vote == (labels == 1)).astype(float)
    columns = [c for kind in (1, 0) for c in (right * (labels == kind), labels == kind)]
    return _score(columns, patients, _mean_of_two, "Majority vote")


def map_at_k(
    labels: NDArray[Any], found: NDArray[Any], patients: NDArray[Any], relevant: NDArray[Any]
) -> Score:
    """Mean average precision (mAP@k), the mean over tumour tiles and over others averaged.

    ``AP@k = sum_i P(i) rel(i) / min(k, R)`` for i = 1..k, where rel(i) is 1 if the i-th neighbour
    has the query's label, P(i) is the share of such among the first i, and R is how many such tiles
    other patients have. Some papers divide by the number found among the k instead, which rewards
    finding one and no more.

    Args:
        labels: See the module.
        found: See the module.
        patients: See the module.
        relevant: R of each query, (q,).

    Raises:
        TableError: If R is smaller than what was found, or no query has anything to find.
    """
    if ((found == labels[:, None]).sum(axis=1) > relevant).any():
        raise TableError("`relevant` is smaller than the number of relevant tiles that were found.")
    asked = (found[:, 0] >= 0) & (relevant > 0)
    labels, found, patients = labels[asked], found[asked], patients[asked]
    same = found == labels[:, None]
    precision = np.cumsum(same, axis=1) / np.arange(1, found.shape[1] + 1)
    ap = (precision * same).sum(axis=1) / np.minimum(found.shape[1], relevant[asked])
    columns = [c for kind in (1, 0) for c in (ap * (labels == kind), labels == kind)]
    return _score(columns, patients, _mean_of_two, "Mean average precision")


def knn_auc(labels: NDArray[Any], found: NDArray[Any], patients: NDArray[Any]) -> Score:
    """Area under the ROC curve of the share of tumour among the k nearest, over all labelled tiles.

    Every neighbour counts the same: weights by distance would need a temperature tuned for each
    method. Equal shares count half, as always.

    A bias to know: without the query's patient a tumour tile has a little less tumour to find than
    others, so chance is below 0.5 when patients are few or uneven.
    """
    asked = found[:, 0] >= 0
    labels, patients = labels[asked], patients[asked]
    levels, at = np.unique(share_of_tumour(found[asked]), return_inverse=True)
    names, codes = np.unique(patients, return_inverse=True)
    m = len(levels)
    # Two histograms of the share for each patient: tumour tiles (p, m) and others (p, m).
    cell = codes * 2 * m + (labels != 1) * m + at
    totals = np.bincount(cell, minlength=len(names) * 2 * m).reshape(len(names), 2 * m)

    def auc(totals: Floats) -> Floats:
        positive, negative = totals[..., :m], totals[..., m:]
        below = np.cumsum(negative, axis=-1) - negative / 2
        pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
        return _ratio((positive * below).sum(axis=-1), pairs)

    score = Score(names, totals.astype(float), auc, len(labels))
    if not np.isfinite(score.value):
        raise TableError("The AUC is undefined: it needs labelled tiles with and without tumour.")
    return score


def addr_global(near: Floats, far: Floats, patients: NDArray[Any]) -> Score:
    """Average descriptor distance ratio (ADDR): mean far distance over mean near distance.

    The means run over all sampled pairs of all slides. 1 means that the descriptor knows nothing
    of place. Not comparable between descriptors whose distances are distributed differently:
    squared distances rank the same and have another ratio.
    Source: the ratio is the paper's (arXiv 1905.08139); taking "global" as all pairs together
    is our reading.

    Args:
        near: L2 distance of the descriptors of each near pair, (n,).
        far: The same for far pairs, (n,); the i-th shares its anchor with the i-th near pair.
        patients: Whose slide each pair is from, (n,).

    Example:
        >>> addr_global(np.array([1.0, 1.0]), np.array([2.0, 1.0]), np.array(["a", "b"])).value
        1.5
    """
    return _score([far, near], patients, _mean, "The distance ratio")


def addr_median(near: Floats, far: Floats, patients: NDArray[Any], slides: NDArray[Any]) -> Score:
    """Median over slides of the distance ratio of each slide; see :func:`addr_global`.

    A slide whose near tiles all share one descriptor is left out.

    Args:
        near: As in :func:`addr_global`.
        far: As in :func:`addr_global`.
        patients: As in :func:`addr_global`.
        slides: The slide of each pair, (n,).
    """
    _, first, codes = np.unique(slides, return_index=True, return_inverse=True)
    ratio = _ratio(np.bincount(codes, weights=far), np.bincount(codes, weights=near))
    order = np.argsort(ratio)[: np.isfinite(ratio).sum()]
    names, owner = np.unique(patients[first[order]], return_inverse=True)
    # One column a slide, in order of its ratio: totals say how often each slide was drawn.
    totals = np.zeros((len(names), len(order)))
    totals[owner, np.arange(len(order))] = 1
    ratio = ratio[order]

    def median(totals: Floats) -> Floats:
        running = np.cumsum(totals, axis=-1)
        half = running[..., -1:] / 2
        lower = ratio[np.argmax(running >= half, axis=-1)]
        upper = ratio[np.argmax(running > half, axis=-1)]
        return np.asarray((lower + upper) / 2)

    if not len(order):
        raise TableError("The distance ratio is undefined: all near tiles share one descriptor.")
    return Score(names, totals, median, len(order))
