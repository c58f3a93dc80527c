"""Exact nearest neighbours among descriptors, with the query's own group left out.

But: the search looks at every descriptor; for many millions there is :mod:`sslpath.index`.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError, DescriptorError

BLOCK = 8_000_000  # distances held at a time: 32 MB of float32
ROWS = 10_000  # descriptors scaled at a time


def unit_length(descriptors: ArrayLike) -> NDArray[np.float32]:
    """Scale descriptors (n, d) to length 1; a zero stays zero.

    The one rule for all methods, so that distances and their ratios mean the same for each; the
    order of neighbours is then that of the cosine.

    Example:
        >>> unit_length([[3.0, 4.0]])
        array([[0.6, 0.8]], dtype=float32)
    """
    rows = np.asarray(descriptors)
    unit = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), ROWS):  # so that float64 takes little memory
        part = rows[start : start + ROWS].astype(np.float64)
        length = np.linalg.norm(part, axis=1, keepdims=True)
        unit[start : start + ROWS] = part / np.where(length > 0, length, 1)
    return unit


def neighbours(
    queries: ArrayLike,
    database: ArrayLike,
    query_groups: ArrayLike | None = None,
    database_groups: ArrayLike | None = None,
    k: int = 10,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of the database of each query, never of the query's own group.

    Exact Euclidean distances. Of equally distant rows the one that comes first is nearer, so the
    answer does not depend on the machine. Memory is bounded: a few hundred MB at
    most beside copies of the inputs.

    Args:
        queries: Descriptors, (q, d).
        database: Descriptors, (n, d).
        query_groups: Patient or slide of each query, (q,); None leaves nothing out.
        database_groups: The same of each row of the database, (n,).
        k: How many.

    Returns:
        Positions in the database (q, k), nearest first, and distances (q, k). Where other groups
        have fewer than k rows the rest is -1 at distance infinity.

    Raises:
        DescriptorError: If shapes do not fit or a value is not finite.

    Example:
        >>> database = np.array([[0.0], [1.0], [3.0]])
        >>> neighbours(database, database, [7, 7, 8], [7, 7, 8], k=1)[0].ravel().tolist()
        [2, 2, 1]
    """
    q, x = np.asarray(queries, np.float32), np.asarray(database, np.float32)
    _check(q, x, k)
    query_code, database_code = group_codes(query_groups, database_groups, len(q), len(x))
    found = np.full((len(q), k), -1, np.int64)
    distances = np.full((len(q), k), np.inf, np.float32)
    if not len(q) or not len(x):
        return found, distances
    # Sorted by group, a group is one slice of columns.
    q_order = np.argsort(query_code, kind="stable")
    x_order = np.argsort(database_code, kind="stable")
    x_order = x_order[_first_of_equals(x, database_code, k)[x_order]]
    query_code, database_code = query_code[q_order], database_code[x_order]
    # Moved to the centre and scaled, float32 keeps its digits even if all descriptors lie close.
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    d = q.shape[1]
    qc, both = q[q_order] - centre, np.empty((len(x_order), d + 1), np.float32)
    xc = both[:, :d]  # one copy of the database, no more
    for start in range(0, len(xc), ROWS):
        xc[start : start + ROWS] = x[x_order[start : start + ROWS]] - centre
    scale = max(np.abs(qc).max(), xc.max(), -xc.min()) or np.float32(1)
    qc /= scale
    xc /= scale
    q2, both[:, d] = np.square(qc).sum(axis=1), np.einsum("ij,ij->i", xc, xc)
    slack = _slack(q2, both[:, d], d)
    # |q - x|^2 - |q|^2 = |x|^2 - 2 q.x as one product; |q|^2 does not change the order.
    left = np.column_stack([-2 * qc, np.ones(len(q), np.float32)])
    right = both.T

    step = max(1, BLOCK // len(x_order))
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        squared = left[rows] @ right
        for code in np.unique(query_code[rows]):
            own = np.searchsorted(query_code[rows], [code, code + 1])
            cols = np.searchsorted(database_code, [code, code + 1])
            squared[slice(*own), slice(*cols)] = np.inf
        limit = np.minimum(_bound(squared, k) + slack[rows], np.finfo(np.float32).max)
        at, col = np.divmod(np.flatnonzero(squared <= limit[:, None]), len(x_order))
        _rank(q, x, q_order[rows][at], x_order[col], found, distances)
    return found, distances


def _check(q: NDArray[np.float32], x: NDArray[np.float32], k: int) -> None:
    if k < 1:
        raise ConfigError(f"k = {k}: ask for at least one neighbour.")
    if q.ndim != 2 or x.ndim != 2 or q.shape[1] != x.shape[1]:
        raise DescriptorError(
            f"Queries {q.shape} and database {x.shape} must be (q, d) and (n, d) with one d; "
            "were they made by two encoders?"
        )
    if not (np.isfinite(q).all() and np.isfinite(x).all()):
        raise DescriptorError("Descriptors hold NaN or infinity; compute them again.")


def group_codes(
    query_groups: ArrayLike | None, database_groups: ArrayLike | None, q: int, n: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Groups as integers, (q,) and (n,); without groups no query shares one with the database.

    Raises:
        ConfigError: If one is missing or has another length.

    Example:
        >>> group_codes(["a"], ["b", "a"], 1, 2)
        (array([0]), array([1, 0]))
    """
    if (query_groups is None) != (database_groups is None):
        raise ConfigError("Give the groups of both queries and database, or of neither.")
    if query_groups is None or database_groups is None:
        return np.zeros(q, np.intp), np.ones(n, np.intp)
    one, other = np.asarray(query_groups), np.asarray(database_groups)
    if one.shape != (q,) or other.shape != (n,):
        raise ConfigError(f"Groups {one.shape}, {other.shape} must be ({q},) and ({n},).")
    codes = pd.factorize(np.concatenate([one, other]), use_na_sentinel=False)[0]
    return codes[:q], codes[q:]


def _first_of_equals(x: NDArray[np.float32], codes: NDArray[np.intp], k: int) -> NDArray[np.bool_]:
    """Rows that can be among the k nearest at all, (n,): of equal rows the first k of each group.

    Without this, descriptors that have collapsed into one would all be candidates of each other.
    """
    # Equal rows have equal sums of bits: few rows are left to be compared as a whole.
    sums = pd.factorize(np.ascontiguousarray(x).view(np.uint32).sum(axis=1, dtype=np.uint64))[0]
    kept = np.ones(len(x), bool)
    rows = np.flatnonzero(np.bincount(sums)[sums] > 1)
    if not len(rows):
        return kept
    same = pd.factorize(np.array([one.tobytes() for one in x[rows]], object))[0]
    order = np.lexsort((codes[rows], same))  # stable: rows of one kind stay in their order
    kind = same[order] * (codes.max() + 1) + codes[rows][order]
    kept[rows[order]] = np.arange(len(rows)) - np.searchsorted(kind, kind) < k
    return kept


def _slack(q2: NDArray[Any], x2: NDArray[Any], d: int) -> NDArray[np.float32]:
    """Twice the rounding error that a squared distance in float32 can have, for each query.

    With u = 2^-24, a product of d + 1 terms errs by at most (d + 1) u (2 |q| |x| + |x|^2) (Higham,
    "Accuracy and Stability of Numerical Algorithms", 3.1), rounding to float32 adds a few u.
    """
    reach = np.square(np.sqrt(q2) + np.sqrt(x2.max()))
    return np.asarray(2 * (d + 8) * 2.0**-24 * reach, np.float32)


def _bound(squared: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A number that at least k values of each row do not exceed, and few others, (b,).

    The k-th smallest of the minima of groups of columns: far quicker than a partition of all.
    """
    width = max(1, min(64, squared.shape[1] // (4 * k)))
    whole = squared.shape[1] // width * width
    # A group is every so-many-th column: NumPy takes the least of whole rows of memory faster.
    minima = squared[:, :whole].reshape(len(squared), width, -1).min(axis=1)
    if minima.shape[1] < k:
        return np.full(len(squared), np.inf, np.float32)
    return np.asarray(np.partition(minima, k - 1, axis=1)[:, k - 1])


def _rank(
    q: NDArray[np.float32],
    x: NDArray[np.float32],
    query: NDArray[np.intp],
    candidate: NDArray[np.intp],
    found: NDArray[np.int64],
    distances: NDArray[np.float32],
) -> None:
    """Fill in the nearest of the candidate pairs, by distance in float64, then by position."""
    exact = pair_distances(q, x, query, candidate)
    order = np.lexsort((candidate, exact, query))
    query, candidate, exact = query[order], candidate[order], exact[order]
    first = np.searchsorted(query, query)
    place = np.arange(len(query)) - first
    top = place < found.shape[1]
    found[query[top], place[top]] = candidate[top]
    distances[query[top], place[top]] = exact[top]


def pair_distances(
    a: NDArray[Any], b: NDArray[Any], i: NDArray[np.intp], j: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Euclidean distance of ``a[i]`` and ``b[j]``, pair by pair, in float64, (n,)."""
    distance = np.empty(len(i))
    step = max(1, BLOCK // 2 // a.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = a[i[part]].astype(np.float64) - b[j[part]]
        distance[part] = np.sqrt(np.square(difference).sum(axis=1))
    return distance
