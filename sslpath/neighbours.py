"""Exact nearest neighbours among descriptors, with the query's own group left out.

But: the search looks at every descriptor; for many millions there is :mod:`sslpath.index`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError, DescriptorError

ROWS = 10_000  # descriptors scaled at a time
QUERIES = 1024  # asked at a time
PART = 2**21  # numbers of descriptors looked at in one go: 8 MB, which a CPU's cache holds


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
    answer does not depend on the machine. Inputs in float32 are not copied: beside them a search
    takes some tens of MB, and about 200 bytes for each row of the database.

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
    largest = _check(q, x, k)
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
    # Near the centre float32 keeps its digits even if all descriptors lie close; scaled, squares of
    # the largest and the smallest numbers are numbers too.
    some = x[:: -(-len(x) // ROWS)]
    centre = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    reach = largest + np.abs(centre).max()
    scale = np.float32(1) if reach == 0 or 1e-3 < reach < 1e3 else reach
    together = max(1, min(QUERIES, PART // (32 * k)))  # more candidates for a larger k
    step = max(1, min(PART // x.shape[1], 4 * PART // together))
    for start in range(0, len(q), together):
        part = slice(start, start + together)
        asked, codes = q_order[part], query_code[part]
        # |q - x|^2 - |q|^2 = |x|^2 - 2 q.x as one product; |q|^2 does not change the order.
        left = _prepared(q[asked], centre, scale)
        q2 = left[:, -1].copy()
        left *= np.float32(-2)
        left[:, -1] = 1
        bounds, longest, kept = np.full((len(left), k), np.inf, np.float32), 0.0, []
        for first in range(0, len(x_order), step):
            rows, theirs = x_order[first : first + step], database_code[first : first + step]
            # A table often lists its groups one after the other: rows that follow are not copied.
            follow = (np.diff(rows) == 1).all()
            right = _prepared(x[rows[0] : rows[-1] + 1] if follow else x[rows], centre, scale)
            longest = max(longest, float(right[:, -1].max()))
            squared = left @ right.T
            for code in np.intersect1d(codes, theirs):
                own, cols = (np.searchsorted(of, [code, code + 1]) for of in (codes, theirs))
                squared[slice(*own), slice(*cols)] = np.inf
            bounds = _bounds(bounds, squared)
            limit = bounds.max(axis=1) + _slack(q2, longest, q.shape[1])
            limit = np.minimum(limit, np.finfo(np.float32).max)
            at = np.flatnonzero(squared <= limit[:, None])
            row, col = np.divmod(at, len(rows))
            kept.append((row, rows[col], squared.ravel()[at]))
        row, near, distance = (np.concatenate(each) for each in zip(*kept, strict=True))
        still = distance <= limit[row]
        _rank(q, x, asked[row[still]], near[still], found, distances)
    return found, distances


def _check(q: NDArray[np.float32], x: NDArray[np.float32], k: int) -> np.float32:
    """The largest number of either, its sign aside.

    Raises:
        DescriptorError: If shapes do not fit or a value is not finite.
    """
    if k < 1:
        raise ConfigError(f"k = {k}: ask for at least one neighbour.")
    if q.ndim != 2 or x.ndim != 2 or q.shape[1] != x.shape[1]:
        raise DescriptorError(
            f"Queries {q.shape} and database {x.shape} must be (q, d) and (n, d) with one d; "
            "were they made by two encoders?"
        )
    # NaN and infinity are handed on by the least and the greatest.
    ends = [end for part in (*_parts(q), *_parts(x)) for end in (part.min(), part.max())]
    largest = np.abs(np.array(ends, np.float32)).max(initial=0)
    if not np.isfinite(largest):
        raise DescriptorError("Descriptors hold NaN or infinity; compute them again.")
    return np.float32(largest)


def _parts(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Rows (n, d), some at a time, as views; none if there are none."""
    step = max(1, PART // max(1, rows.shape[1]))
    return (rows[start : start + step] for start in range(0, len(rows), step) if rows.size)


def _prepared(
    rows: NDArray[np.float32], centre: NDArray[np.float32], scale: np.float32
) -> NDArray[np.float32]:
    """Rows less the centre, over the scale, and their squared lengths: (n, d + 1)."""
    prepared = np.empty((len(rows), rows.shape[1] + 1), np.float32)
    near = np.subtract(rows, centre, out=prepared[:, :-1])
    if scale != 1:
        near /= scale
    np.einsum("ij,ij->i", near, near, out=prepared[:, -1])
    return prepared


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
    # Equal rows have equal sums of the bits of some columns; few are left to be compared whole.
    some = np.ascontiguousarray(x[:, :: -(-x.shape[1] // 32)]).view(np.uint32)
    sums = pd.factorize(some.sum(axis=1, dtype=np.uint64))[0]
    kept = np.ones(len(x), bool)
    rows = np.flatnonzero(np.bincount(sums)[sums] > 1)
    if not len(rows):
        return kept
    same = pd.factorize(np.array([one.tobytes() for one in x[rows]], object))[0]
    order = np.lexsort((codes[rows], same))  # stable: rows of one kind stay in their order
    kind = same[order] * (codes.max() + 1) + codes[rows][order]
    kept[rows[order]] = np.arange(len(rows)) - np.searchsorted(kind, kind) < k
    return kept


def _slack(q2: NDArray[Any], x2: float, d: int) -> NDArray[np.float32]:
    """Twice the rounding error that a squared distance in float32 can have, for each query.

    With u = 2^-24, a product of d + 1 terms errs by at most (d + 1) u (2 |q| |x| + |x|^2) (Higham,
    "Accuracy and Stability of Numerical Algorithms", 3.1), rounding to float32 adds a few u.
    """
    reach = np.square(np.sqrt(q2) + np.sqrt(x2))
    return np.asarray(2 * (d + 8) * 2.0**-24 * reach, np.float32)


def _bounds(bounds: NDArray[np.float32], squared: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each row, k numbers, each of which another distance does not exceed: (b, k).

    The least of those so far and of the minima of groups of columns: far quicker than a partition
    of all distances, and few more than k lie below the largest.
    """
    k = bounds.shape[1]
    width = max(1, min(64, squared.shape[1] // (4 * k)))
    whole = squared.shape[1] // width * width
    # A group is every so-many-th column: NumPy takes the least of whole rows of memory faster.
    minima = squared[:, :whole].reshape(len(squared), width, -1).min(axis=1)
    both = np.concatenate([bounds, minima], axis=1)
    return np.asarray(np.partition(both, k - 1, axis=1)[:, :k])


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
    step = max(1, 2 * PART // a.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = a[i[part]].astype(np.float64) - b[j[part]]
        distance[part] = np.sqrt(np.square(difference).sum(axis=1))
    return distance
