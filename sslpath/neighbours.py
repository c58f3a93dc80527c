"""Exact nearest neighbours among descriptors, with the query's own group left out.

But: the search looks at every descriptor; for many millions there is :mod:`sslpath.index`.
"""

import hashlib
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
        with np.errstate(over="ignore", invalid="ignore"):  # infinity stays no number
            length = np.linalg.norm(part, axis=1, keepdims=True)
            odd = np.flatnonzero((length < 1e-100) | (length > 1e100))
            if len(odd):  # whose squares float64 may not hold
                largest = np.abs(part[odd]).max(axis=1, keepdims=True)
                part[odd] /= np.where(largest > 0, largest, 1)
                length[odd] = np.linalg.norm(part[odd], axis=1, keepdims=True)
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
    takes about 100 MB and 200 bytes for each row of the database; some hundred MB more where
    most distances are all but the same.

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
    least, greatest = _check(q, x, k)
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
    reach = max(np.abs(np.float64(ends) - centre).max() for ends in (least, greatest))
    scale = np.float32(1 if reach == 0 or 1e-3 < reach < 1e3 else reach)
    together = max(1, min(QUERIES, PART // (4 * k), len(q)))
    step = 1 << (max(1, PART // max(x.shape[1], together)).bit_length() - 1)
    # Memory that is used again is much faster than new one.
    table = np.empty((together, step), np.float32)
    halves = np.empty((together, step // 2), np.float32)
    block = np.empty((min(step, len(x)), x.shape[1] + 1), np.float32)
    for start in range(0, len(q), together):
        part = slice(start, start + together)
        asked, codes = q_order[part], query_code[part]
        # |q - x|^2 - |q|^2 = |x|^2 - 2 q.x as one product; |q|^2 does not change the order.
        left = np.empty((len(asked), q.shape[1] + 1), np.float32)
        _prepared(q[asked], centre, scale, left)
        q2 = left[:, -1].copy()
        left *= np.float32(-2)
        left[:, -1] = 1
        bounds, longest = np.full((len(left), k), np.inf, np.float32), 0.0
        near = _Candidates(q[asked], x, k)
        for first in range(0, len(x_order), step):
            rows, theirs = x_order[first : first + step], database_code[first : first + step]
            # A table often lists its groups one after the other: rows that follow are not copied.
            follow = (np.diff(rows) == 1).all()
            these = x[rows[0] : rows[-1] + 1] if follow else x[rows]
            right = _prepared(these, centre, scale, block[: len(rows)])
            longest = max(longest, float(right[:, -1].max()))
            squared = table[: len(left)]
            np.matmul(left, right.T, out=squared[:, : len(rows)])
            squared[:, len(rows) :] = np.inf
            for code in np.intersect1d(codes, theirs):
                own, cols = (np.searchsorted(of, [code, code + 1]) for of in (codes, theirs))
                squared[slice(*own), slice(*cols)] = np.inf
            minima = _least_of_groups(squared, 4 * k, halves)
            bounds = np.partition(np.concatenate([bounds, minima], axis=1), k - 1, axis=1)[:, :k]
            limit = bounds.max(axis=1) + _slack(q2, longest, q.shape[1])
            limit = np.minimum(limit, np.finfo(np.float32).max)
            row, col, values = _within(limit, squared, minima)
            near.add(row, rows[col], values)
        near.fill(limit, asked, found, distances)
    return found, distances


class _Candidates:
    """Pairs of query and row that may be among the k nearest: never more than some millions.

    Args:
        q: The queries, (b, d).
        x: The database, (n, d).
        k: How many neighbours each shall have.
    """

    def __init__(self, q: NDArray[np.float32], x: NDArray[np.float32], k: int) -> None:
        self.q, self.x, self.k = q, x, k
        self.parts: list[tuple[NDArray[Any], ...]] = []
        self.held = 0

    def add(self, query: NDArray[Any], row: NDArray[Any], squared: NDArray[np.float32]) -> None:
        """More of them, with their squared distances as they were computed."""
        self.parts.append((query, row, squared))
        self.held += len(query)
        if self.held > PART:  # where most distances are all but the same
            self._rank()

    def fill(
        self,
        limit: NDArray[np.float32],
        asked: NDArray[np.intp],
        found: NDArray[np.int64],
        distances: NDArray[np.float32],
    ) -> None:
        """Write the k nearest of each query, of those within its limit, into rows ``asked``."""
        query, row, squared = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        still = squared <= limit[query]
        self.parts = [(query[still], row[still], squared[still])]
        query, row, exact, place = self._rank()
        found[asked[query], place] = row
        distances[asked[query], place] = exact

    def _rank(self) -> tuple[NDArray[Any], ...]:
        """Drop all but the k nearest of each query, by distance in float64, then by position.

        Returns:
            Query, row, distance and place, 0 to k - 1, of those that are left.
        """
        query, row, squared = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        exact = pair_distances(self.q, self.x, query, row)
        order = np.lexsort((row, exact, query))
        query = query[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        top = place < self.k
        query, order, place = query[top], order[top], place[top]
        self.parts, self.held = [(query, row[order], squared[order])], len(query)
        return query, row[order], exact[order], place


def _check(
    q: NDArray[np.float32], x: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least and the greatest number of each column, (d,), of both together.

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
    step, none = max(1, PART // 8 // max(1, q.shape[1])), np.zeros((1, q.shape[1]), np.float32)
    parts = [each[start : start + step] for each in (q, x) for start in range(0, len(each), step)]
    ends = np.array([(part.min(axis=0), part.max(axis=0)) for part in parts or [none]])
    least, greatest = ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)
    if not (np.abs([least, greatest]) < 1e37).all():
        raise DescriptorError(
            "Descriptors hold NaN, infinity or numbers beyond 1e37; compute them again."
        )
    return least, greatest


def _prepared(
    rows: NDArray[np.float32],
    centre: NDArray[np.float32],
    scale: np.float32,
    prepared: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Rows less the centre, over the scale, and their squared lengths: into (n, d + 1)."""
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
    """Rows that can be among the k nearest at all, (n,): of equal rows some of the first.

    Without this, descriptors that have collapsed into one would all be candidates of each other. Of
    the first k of each group the first 2k are enough: at most k of them are of the query's own.
    """
    kept = np.ones(len(x), bool)
    # Equal rows have equal sums of the bits of some columns; few are left to be compared whole.
    some = np.ascontiguousarray(x[:, :: -(-x.shape[1] // 32)]).view(np.uint32)
    sums = pd.factorize(some.sum(axis=1, dtype=np.uint64))[0]
    rows = np.flatnonzero(np.bincount(sums)[sums] > 1)
    if not len(rows):
        return kept
    whole = [hashlib.blake2b(x[i].tobytes(), digest_size=16).digest() for i in rows]
    kind = pd.factorize(np.array(whole, object))[0]
    first = _place(kind * (codes.max() + 1) + codes[rows]) < k
    kept[rows] = False
    kept[rows[first][_place(kind[first]) < 2 * k]] = True
    return kept


def _place(kind: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many of its kind come before each, (n,)."""
    order = np.argsort(kind, kind="stable")
    place = np.empty(len(kind), np.intp)
    place[order] = np.arange(len(kind)) - np.searchsorted(kind[order], kind[order])
    return place


def _slack(q2: NDArray[Any], x2: float, d: int) -> NDArray[np.float32]:
    """Twice the rounding error that a squared distance in float32 can have, for each query.

    With u = 2^-24, a product of d + 1 terms errs by at most (d + 1) u (2 |q| |x| + |x|^2) (Higham,
    "Accuracy and Stability of Numerical Algorithms", 3.1), rounding to float32 adds a few u, and
    numbers too small for float32 lose at most 2^-149 each.
    """
    reach = np.square(np.sqrt(q2) + np.sqrt(x2))
    return np.asarray((d + 8) * (2.0**-23 * reach + 2.0**-147), np.float32)


def _least_of_groups(
    squared: NDArray[np.float32], groups: int, halves: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The least of each group of columns, (b, g), with g at least ``groups`` where there are more.

    Column c is of group c modulo g. Of k groups' least, each is a distance, so that no more than
    the k-th of them has to be looked at: far quicker than a partition of all distances.

    Args:
        squared: Shape (b, a power of two).
        groups: How many groups are wanted.
        halves: Memory to work in, (at least b, half as many columns).
    """
    while squared.shape[1] >= 2 * groups:
        half = squared.shape[1] // 2
        out = halves[: len(squared), :half]
        squared = np.minimum(squared[:, :half], squared[:, half:], out=out)
    return squared


def _within(
    limit: NDArray[np.float32], squared: NDArray[np.float32], minima: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Row, column and value of what lies within the limit of its row, (m,) each.

    Most groups of columns lie beyond it as a whole, by their ``minima``; only the others are
    looked at.
    """
    row, group = np.nonzero(minima <= limit[:, None])
    values = squared.reshape(len(squared), -1, minima.shape[1])[row, :, group]
    at, member = np.nonzero(values <= limit[row, None])
    return row[at], member * minima.shape[1] + group[at], values[at, member]


def pair_distances(
    a: NDArray[Any], b: NDArray[Any], i: NDArray[np.intp], j: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Euclidean distance of ``a[i]`` and ``b[j]``, pair by pair, in float64, (n,)."""
    distance = np.empty(len(i))
    step = max(1, PART // 8 // a.shape[1])  # 2 MB of float64, which the cache of one core holds
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = a[i[part]].astype(np.float64) - b[j[part]]
        distance[part] = np.sqrt(np.square(difference).sum(axis=1))
    return distance
