"""Drawing, for tiles of one slide, other tiles at a given distance: the geometry under the pairs.

Candidates are tried at random and accepted when their distance fits; an anchor that all trials fail
gets its candidates listed. Both ways give every fitting tile the same chance. To find candidates
near an anchor, the slide is cut into square cells as wide as the largest distance, so that all of
them lie in the 3 x 3 cells around it. Neither time nor memory grows with the square of the tiles.
What this module does not do: anything across slides.
"""

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sslpath.errors import TableError
from sslpath.table import centres_um

Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# A distance that equals a threshold up to rounding counts as equal to it.
TOLERANCE = 1e-9
# Another trial is cheaper than a list as long as there are fewer trials than this share of it.
TRIALS, TRIALS_PER_CANDIDATE = 64, 1 / 50
# Candidates listed at once, to bound memory.
BLOCK = 1_000_000


def lengths(difference: Floats) -> Floats:
    """Length of each vector, shape ``(..., 2)`` to ``(...)``."""
    return np.asarray(np.hypot(difference[..., 0], difference[..., 1]))


def within(distance: Floats, high: float) -> Bools:
    """Whether each distance is at most ``high``, up to rounding."""
    return np.asarray(distance <= high * (1 + TOLERANCE))


def beyond(distance: Floats, low: float) -> Bools:
    """Whether each distance is more than ``low``, up to rounding."""
    return np.asarray(distance > low * (1 + TOLERANCE))


class OneSlide:
    """The tiles of one slide, ready to draw partners.

    Args:
        positions: Where the slide's tiles stand in the table, shape ``(m,)``.
        xy: Their centres in um, shape ``(m, 2)``.
    """

    def __init__(self, positions: Ints, xy: Floats) -> None:
        self.positions = positions
        self.xy = xy
        # The tile farthest from any point is a corner of the convex hull: few to look at.
        corners = shapely.get_coordinates(shapely.convex_hull(shapely.multipoints(xy)))
        self._corners: Floats = np.asarray(corners, np.float64)
        self._candidates: dict[tuple[float, float], _Candidates] = {}

    def __len__(self) -> int:
        return len(self.xy)

    def has_near(self, near_um: float) -> Bools:
        """Which tiles have another within ``near_um``, shape ``(m,)``."""
        if len(self) < 2:
            return np.zeros(len(self), bool)
        distances = np.asarray(cKDTree(self.xy).query(self.xy, k=2)[0])
        return within(distances[:, 1], near_um)

    def has_far(self, far_um: float) -> Bools:
        """Which tiles have another beyond ``far_um``, shape ``(m,)``."""
        farthest = np.zeros(len(self))
        for corner in self._corners:
            np.maximum(farthest, lengths(self.xy - corner), out=farthest)
        return beyond(farthest, far_um)

    def draw(self, anchors: Ints, low: float, high: float, rng: np.random.Generator) -> Ints:
        """Draw for each anchor another tile whose distance lies in ``(low, high]``, uniformly.

        Args:
            anchors: Indices into this slide's tiles, shape ``(n,)``.
            low: um, exclusive; negative to include tiles at the same place.
            high: um, inclusive; infinite for no limit.
            rng: Source of randomness.

        Returns:
            Indices into this slide's tiles, shape ``(n,)``; -1 where there is no such tile.
        """
        if (low, high) not in self._candidates:
            self._candidates[low, high] = _Candidates(self, low, high)
        candidates = self._candidates[low, high]
        partner = np.full(len(anchors), -1, np.intp)
        start, count = candidates.ranges(anchors)
        total = count.sum(axis=1)
        unserved = np.flatnonzero(total)
        trials = TRIALS + int(total.max(initial=0) * TRIALS_PER_CANDIDATE)
        for _ in range(trials):
            if not len(unserved):
                return partner
            rank = rng.integers(total[unserved])
            guess = candidates.pick(start[unserved], count[unserved], rank)
            good = self._fits(anchors[unserved], guess, low, high)
            partner[unserved[good]] = guess[good]
            unserved = unserved[~good]
        for part in _blocks(total[unserved]):
            which = unserved[part]
            partner[which] = self._list_and_draw(candidates, anchors[which], low, high, rng)
        return partner

    def _fits(self, anchor: Ints, other: Ints, low: float, high: float) -> Bools:
        distance = lengths(self.xy[other] - self.xy[anchor])
        return np.asarray(beyond(distance, low) & within(distance, high) & (other != anchor))

    def _list_and_draw(
        self,
        candidates: "_Candidates",
        anchors: Ints,
        low: float,
        high: float,
        rng: np.random.Generator,
    ) -> Ints:
        """As :meth:`draw`, by listing all candidates of every anchor."""
        start, count = candidates.ranges(anchors)
        total = count.sum(axis=1)
        owner = np.repeat(np.arange(len(anchors)), total)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(total) - total, total)
        other = candidates.pick(start[owner], count[owner], rank)
        good = self._fits(anchors[owner], other, low, high)
        owner, other = owner[good], other[good]
        # The fitting candidate with the smallest random key is a uniform draw.
        order = np.lexsort((rng.random(len(owner)), owner))
        owners, first = np.unique(owner[order], return_index=True)
        partner = np.full(len(anchors), -1, np.intp)
        partner[owners] = other[order][first]
        return partner


class _Candidates:
    """For each tile, a small set that holds all tiles at a distance in ``(low, high]`` from it.

    The set is up to three ranges of ``order``: the three rows of cells around the tile, or, for an
    infinite ``high``, all tiles that have any other beyond ``low``.
    """

    def __init__(self, slide: OneSlide, low: float, high: float) -> None:
        self.order: Ints
        if np.isinf(high):
            self.fits_any = slide.has_far(low)
            self.order = np.flatnonzero(self.fits_any)
            self.key = None
            return
        # A hair wider than the distance, so that rounding never puts a partner two cells away, and
        # at least 1 um: `high` may be 0, for tiles at the same place.
        side = max(high * (1 + 1e-6), 1.0)
        cell = np.floor((slide.xy - slide.xy.min(axis=0)) / side).astype(np.int64)
        self.width = int(cell[:, 0].max()) + 2  # a free column between the rows
        self.key = cell[:, 1] * self.width + cell[:, 0]
        self.order = np.argsort(self.key, kind="stable")
        self.sorted_key = self.key[self.order]

    def ranges(self, anchors: Ints) -> tuple[Ints, Ints]:
        """Starts and lengths of each anchor's ranges, shape ``(n, 3)`` or ``(n, 1)``."""
        if self.key is None:
            count = np.where(self.fits_any[anchors], len(self.order), 0)[:, None]
            return np.zeros_like(count), count
        middle = self.key[anchors][:, None] + self.width * np.array([-1, 0, 1])
        start = np.searchsorted(self.sorted_key, middle - 1, side="left")
        return start, np.searchsorted(self.sorted_key, middle + 1, side="right") - start

    def pick(self, start: Ints, count: Ints, rank: Ints) -> Ints:
        """The candidate number ``rank`` of each row of ranges, shape ``(n,)``."""
        end = np.cumsum(count, axis=1)
        which = (rank[:, None] >= end).sum(axis=1)
        rows = np.arange(len(rank))
        before = end[rows, which] - count[rows, which]
        return np.asarray(self.order[start[rows, which] + rank - before])


def _blocks(sizes: Ints) -> list[slice]:
    """Cut a list into slices whose sizes add up to about ``BLOCK`` each."""
    if not len(sizes):
        return []
    block = np.cumsum(sizes) // BLOCK
    cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    return [slice(cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]


def by_slide(tiles: pd.DataFrame) -> dict[str, OneSlide]:
    """Index the tiles of each slide.

    Raises:
        TableError: If there are no tiles or a position is not a number.
    """
    if not len(tiles):
        raise TableError("There are no tiles to pair; look at the split and the tissue threshold.")
    xy = centres_um(tiles)
    if not np.isfinite(xy).all():
        raise TableError("Some tiles have no finite position: `x`, `y`, `size` or `slide_mpp`.")
    codes, names = pd.factorize(tiles["slide_id"])
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return {str(name): OneSlide(part, xy[part]) for name, part in zip(names, parts, strict=True)}
