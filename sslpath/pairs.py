"""Pairs from spatial continuity: tiles near each other are alike, tiles far apart are less so.

The only supervision of the method is distance on the slide: two tiles of one slide at most
``near_um`` apart are a *near* pair, two more than ``far_um`` apart are a *far* pair, and what lies
between, or on two slides, is neither. Distances are taken between tile centres, in um.

Neither time nor memory grows with the square of a slide's tiles; see :mod:`sslpath.partners`.
What this module does not do: look at pixels, mine hard pairs, or pair tiles of different slides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sslpath.errors import ConfigError
from sslpath.partners import Bools, Floats, Ints, beyond, by_slide, lengths, within
from sslpath.table import centres_um, tile_um


@dataclass(frozen=True)
class Pairs:
    """Triples of positions into a table of tiles: pairs (anchor, near) and (anchor, far).

    Attributes:
        anchor: Shape ``(n,)``.
        near: Shape ``(n,)``; on the anchor's slide, at most ``near_um`` away, never the anchor.
        far: Shape ``(n,)``; on the anchor's slide, more than ``far_um`` away.
    """

    anchor: Ints
    near: Ints
    far: Ints


def near_far_um(tiles: pd.DataFrame, near_tiles: float, far_tiles: float) -> tuple[float, float]:
    """Turn distances in tile widths into um.

    Example:
        >>> from sslpath.table import make_table
        >>> tiles = make_table(
        ...     {"slide_id": ["a"], "x": [0], "y": [0], "size": [224], "slide_mpp": [0.5]},
        ...     mpp=0.5, tile_px=224, source={})
        >>> near_far_um(tiles, 8, 30)
        (896.0, 3360.0)
    """
    width = tile_um(tiles)
    check_distances(near_tiles * width, far_tiles * width)
    return near_tiles * width, far_tiles * width


def check_distances(near_um: float, far_um: float) -> None:
    """Refuse distances that make no sense.

    Raises:
        ConfigError: Unless ``0 < near_um <= far_um``, both finite.
    """
    if not (0 < near_um <= far_um < np.inf):
        raise ConfigError(
            f"Near pairs within {near_um} um and far pairs beyond {far_um} um contradict each "
            "other: choose 0 < near <= far."
        )


class PairIndex:
    """Draws near and far partners on every slide of a table.

    Args:
        tiles: A table of tiles.
        near_um: Near pairs are at most this far apart.
        far_um: Far pairs are farther apart than this.

    Attributes:
        slides: The slides, by their id.
        anchors: For each slide, the indices of its tiles that have both a near and a far partner.

    Raises:
        ConfigError: If no tile has both partners, or the distances contradict each other.
    """

    def __init__(self, tiles: pd.DataFrame, *, near_um: float, far_um: float) -> None:
        check_distances(near_um, far_um)
        self.near_um, self.far_um = near_um, far_um
        self.slides = by_slide(tiles)
        self.anchors = {
            name: np.flatnonzero(slide.has_near(near_um) & slide.has_far(far_um))
            for name, slide in self.slides.items()
        }
        self.usable = [name for name, anchors in self.anchors.items() if len(anchors)]
        if not self.usable:
            widest = max(np.ptp(slide.xy, axis=0).max() for slide in self.slides.values())
            raise ConfigError(
                f"No tile has both a near partner (within {near_um:g} um) and a far one (beyond "
                f"{far_um:g} um) on its slide; the widest slide spans {widest:g} um between tile "
                "centres. Choose other distances (`near_tiles`, `far_tiles`)."
            )

    def sample(self, n: int, rng: np.random.Generator) -> Pairs:
        """Draw ``n`` anchors, uniformly over those that have partners, and their partners."""
        counts = [len(self.anchors[name]) for name in self.usable]
        slide_of = np.repeat(np.arange(len(counts)), counts)
        draw = rng.integers(len(slide_of), size=n)
        first = np.cumsum(counts) - counts
        result = np.empty((3, n), np.intp)
        for i in np.unique(slide_of[draw]):
            name, here = self.usable[i], np.flatnonzero(slide_of[draw] == i)
            slide, anchor = self.slides[name], self.anchors[name][draw[here] - first[i]]
            near = slide.draw(anchor, -1.0, self.near_um, rng)
            far = slide.draw(anchor, self.far_um, np.inf, rng)
            result[:, here] = slide.positions[np.stack([anchor, near, far])]
        return Pairs(*result)


def sample_pairs(
    tiles: pd.DataFrame, n: int, *, near_um: float, far_um: float, rng: np.random.Generator
) -> Pairs:
    """Draw explicit pairs: for each anchor one near and one far tile.

    Anchors are drawn uniformly, with replacement, from the tiles that have both partners.

    Args:
        tiles: A table of tiles.
        n: How many anchors.
        near_um: Near pairs are at most this far apart.
        far_um: Far pairs are farther apart than this.
        rng: Source of randomness.

    Raises:
        ConfigError: If no tile has both partners.

    Example:
        >>> from sslpath.table import make_table
        >>> tiles = make_table(
        ...     {"slide_id": "a", "x": [0, 224, 9000], "y": 0, "size": 224, "slide_mpp": 0.5},
        ...     mpp=0.5, tile_px=224, source={})
        >>> pairs = sample_pairs(tiles, 4, near_um=200, far_um=2000, rng=np.random.default_rng(0))
        >>> set(pairs.anchor.tolist()) <= {0, 1}, set(pairs.far.tolist())
        (True, {2})
    """
    return PairIndex(tiles, near_um=near_um, far_um=far_um).sample(n, rng)


def masks(
    xy_um: Floats, slide: NDArray[np.generic], *, near_um: float, far_um: float
) -> tuple[Bools, Bools]:
    """As :func:`pair_masks`, from centres in um ``(b, 2)`` and slides ``(b,)``."""
    # Distances within slides alone: a batch of 32 slides has 32 times as many pairs across.
    i, j = np.nonzero(slide[:, None] == slide[None])
    distance = lengths(xy_um[i] - xy_um[j])
    near, far = np.zeros((2, len(slide), len(slide)), bool)
    near[i, j] = within(distance, near_um) & (i != j)
    far[i, j] = beyond(distance, far_um)
    return near, far


def pair_masks(
    tiles: pd.DataFrame, positions: Ints, *, near_um: float, far_um: float
) -> tuple[Bools, Bools]:
    """All near and all far pairs within a batch.

    Args:
        tiles: A table of tiles.
        positions: The batch: positions into the table, shape ``(b,)``.
        near_um: Near pairs are at most this far apart.
        far_um: Far pairs are farther apart than this.

    Returns:
        ``near`` and ``far``, shape ``(b, b)``: symmetric, never across slides, diagonal False.
        Two entries of a batch that are the same tile are a near pair at distance 0.
    """
    rows = tiles.iloc[positions]
    slide = pd.factorize(rows["slide_id"])[0]
    return masks(centres_um(rows), slide, near_um=near_um, far_um=far_um)


@dataclass(frozen=True)
class Diagnosis:
    """What near and far pairs of a table are like; see :func:`diagnose`.

    Attributes:
        tiles: Tiles in the table.
        slides: Slides in the table.
        slides_without_pairs: Ids of the slides on which no tile has both partners.
        no_near: Share of tiles without a near partner.
        no_far: Share of tiles without a far partner.
        near_agreement: Share of near pairs, both labels known, that have the same label; NaN if
            there are none.
        near_pairs: How many pairs that share rests on.
        far_agreement: The same for far pairs.
        far_pairs: How many pairs that share rests on.
    """

    tiles: int
    slides: int
    slides_without_pairs: tuple[str, ...]
    no_near: float
    no_far: float
    near_agreement: float
    near_pairs: int
    far_agreement: float
    far_pairs: int

    def __str__(self) -> str:
        return (
            f"{self.tiles} tiles of {self.slides} slides "
            f"({len(self.slides_without_pairs)} slides without pairs). "
            f"Without a near partner: {self.no_near:.1%} of the tiles, without a far one: "
            f"{self.no_far:.1%}. Pairs with the same label: near {self.near_agreement:.3f} "
            f"(n={self.near_pairs}), far {self.far_agreement:.3f} (n={self.far_pairs})."
        )


def diagnose(
    tiles: pd.DataFrame,
    near_um: float,
    far_um: float,
    rng: np.random.Generator,
    anchors: int = 2000,
) -> Diagnosis:
    """Say whether a choice of distances makes sense on a table, before training on it.

    The shares of tiles without partners are exact. Agreement is measured on ``anchors`` draws:
    where near pairs share their label no more often than far pairs, there is nothing to learn.

    Args:
        tiles: A table of tiles; labels may be missing.
        near_um: Near pairs are at most this far apart.
        far_um: Far pairs are farther apart than this.
        rng: Source of randomness.
        anchors: How many pairs of each kind to draw.
    """
    check_distances(near_um, far_um)
    slides = by_slide(tiles)
    near = {name: slide.has_near(near_um) for name, slide in slides.items()}
    far = {name: slide.has_far(far_um) for name, slide in slides.items()}
    edges = np.unique([0.0, near_um, far_um, np.inf])  # near and far may be the same distance
    agreement = label_agreement(tiles, edges, rng, pairs=anchors)
    return Diagnosis(
        tiles=len(tiles),
        slides=len(slides),
        slides_without_pairs=tuple(name for name in slides if not (near[name] & far[name]).any()),
        no_near=1 - sum(int(each.sum()) for each in near.values()) / len(tiles),
        no_far=1 - sum(int(each.sum()) for each in far.values()) / len(tiles),
        near_agreement=float(agreement["agreement"].iloc[0]),
        near_pairs=int(agreement["n"].iloc[0]),
        far_agreement=float(agreement["agreement"].iloc[-1]),
        far_pairs=int(agreement["n"].iloc[-1]),
    )


def label_agreement(
    tiles: pd.DataFrame,
    edges_um: Sequence[float] | Floats,
    rng: np.random.Generator,
    pairs: int = 2000,
) -> pd.DataFrame:
    """How often two tiles of a slide share their label, by the distance between them.

    For each bin, anchors are drawn uniformly from the tiles with a known label and each brings one
    labelled tile at such a distance, if there is one: every anchor weighs the same, however many
    partners it has.

    Args:
        tiles: A table of tiles; those without a label are left out.
        edges_um: Edges of the bins, rising: bin i holds distances in ``(edges[i], edges[i + 1]]``,
            and the first bin starts with its own edge. The last edge may be infinite.
        rng: Source of randomness.
        pairs: Anchors drawn for each bin.

    Returns:
        One row a bin: ``low_um``, ``high_um``, ``n`` (pairs found), ``agreement`` (share with the
        same label, NaN where ``n`` is 0).

    Raises:
        ConfigError: If the edges do not rise.
    """
    edges = np.asarray(edges_um, np.float64)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ConfigError(f"The edges of the distance bins must rise: {edges.tolist()}.")
    known = tiles[tiles["label"].notna()]
    bins = list(pairwise(edges.tolist()))
    found, same = np.zeros(len(bins), int), np.zeros(len(bins), int)
    slides = list(by_slide(known).values()) if len(known) else []
    label = known["label"].to_numpy(np.int64)
    slide_of = np.repeat(np.arange(len(slides)), [len(slide) for slide in slides])
    first = np.cumsum([0, *(len(slide) for slide in slides)])
    for k, (low, high) in enumerate(bins):
        draw = rng.integers(len(known), size=pairs) if len(known) else np.empty(0, np.intp)
        for i in np.unique(slide_of[draw]):
            slide, anchor = slides[i], draw[slide_of[draw] == i] - first[i]
            # The first bin includes its lower edge, so that tiles at one place count.
            partner = slide.draw(anchor, np.nextafter(low, -np.inf) if k == 0 else low, high, rng)
            anchor, partner = anchor[partner >= 0], partner[partner >= 0]
            found[k] += len(anchor)
            same[k] += (label[slide.positions[anchor]] == label[slide.positions[partner]]).sum()
    agreement = np.divide(same, found, out=np.full(len(bins), np.nan), where=found > 0)
    return pd.DataFrame(
        {"low_um": edges[:-1], "high_um": edges[1:], "n": found, "agreement": agreement}
    )


class BatchSampler:
    """Batches of a few slides, so that most pairs of tiles in a batch share their slide.

    Half of a slide's tiles are anchors, drawn uniformly from those that have a near and a far
    partner; each brings one near partner, so near pairs exist however large the slide is, and far
    pairs come from the spread of the anchors. Contrasting tiles of one slide keeps the network from
    telling slides apart by their stain. No tile occurs twice in a batch.

    Args:
        tiles: A table of tiles.
        near_um: Near pairs are at most this far apart.
        far_um: Far pairs are farther apart than this.
        slides_per_batch: Slides in a batch; all slides if there are fewer.
        tiles_per_slide: Tiles of each; all its tiles if the slide has fewer.

    Raises:
        ConfigError: If no tile has both partners.

    Example:
        >>> from sslpath.table import make_table
        >>> x, y = (224 * np.indices((10, 10))).reshape(2, -1)
        >>> tiles = make_table(
        ...     {"slide_id": "a", "x": x, "y": y, "size": 224, "slide_mpp": 0.5},
        ...     mpp=0.5, tile_px=224, source={})
        >>> sampler = BatchSampler(
        ...     tiles, near_um=120, far_um=600, slides_per_batch=1, tiles_per_slide=16)
        >>> positions = sampler.batch(np.random.default_rng(0))
        >>> near, far = sampler.masks(positions)
        >>> positions.shape, bool(near.any()), bool(far.any())
        ((16,), True, True)
    """

    def __init__(
        self,
        tiles: pd.DataFrame,
        *,
        near_um: float,
        far_um: float,
        slides_per_batch: int,
        tiles_per_slide: int,
    ) -> None:
        if slides_per_batch < 1 or tiles_per_slide < 2:
            raise ConfigError(
                f"A batch of {slides_per_batch} slides x {tiles_per_slide} tiles holds no pair: "
                "take at least 1 slide and 2 tiles."
            )
        self.index = PairIndex(tiles, near_um=near_um, far_um=far_um)
        self.slides_per_batch = slides_per_batch
        self.tiles_per_slide = tiles_per_slide
        self._xy = centres_um(tiles)
        self._slide = pd.factorize(tiles["slide_id"])[0]

    @property
    def sizes(self) -> tuple[int, int]:
        """Tiles in the smallest and in the largest batch."""
        every = sorted(self._size(name) for name in self.index.usable)
        return sum(every[: self.slides_per_batch]), sum(every[-self.slides_per_batch :])

    def _size(self, name: str) -> int:
        return min(self.tiles_per_slide, len(self.index.slides[name].positions))

    def batch(self, rng: np.random.Generator) -> Ints:
        """Draw a batch: positions into the table, shape ``(b,)``, grouped by slide."""
        usable = self.index.usable
        count = min(self.slides_per_batch, len(usable))
        names = [usable[i] for i in rng.choice(len(usable), count, replace=False)]
        return np.concatenate([self._of_slide(name, rng) for name in names])

    def _of_slide(self, name: str, rng: np.random.Generator) -> Ints:
        slide, anchors = self.index.slides[name], self.index.anchors[name]
        size = self._size(name)
        anchor = rng.choice(anchors, min(size // 2, len(anchors)), replace=False)
        near = slide.draw(anchor, -1.0, self.index.near_um, rng)
        chosen = np.unique(np.concatenate([anchor, near]))
        if len(chosen) < size:
            # Partners that were drawn twice leave room: fill it with any tiles of the slide.
            # Of `size` different tiles at least as many as we need are not chosen yet.
            more = rng.choice(len(slide.positions), size, replace=False)
            more = more[~np.isin(more, chosen)]
            chosen = np.concatenate([chosen, more[: size - len(chosen)]])
        return np.asarray(slide.positions[chosen])

    def masks(self, positions: Ints) -> tuple[Bools, Bools]:
        """The near and far pairs of a batch, each ``(b, b)``; see :func:`pair_masks`."""
        return masks(
            self._xy[positions],
            self._slide[positions],
            near_um=self.index.near_um,
            far_um=self.index.far_um,
        )
