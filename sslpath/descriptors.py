"""From tiles to descriptors: compute them slide by slide, read them back in the table's order.

The files are one HDF5 per slide, in the layout of CLAM and TRIDENT:
:mod:`sslpath.descriptor_files`.

But:

- a slide's descriptors are held in memory until its file is written, next to the following one's;
- a file is known by the slide's name, the tiles' corners and the provenance, not by the pixels:
  after replacing a slide by another of the same name, delete its file.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from sslpath.cluster import each
from sslpath.descriptor_files import (
    FAILED,
    SlideDescriptors,
    canonical,
    check,
    check_replaceable,
    descriptor_path,
    failure_table,
    load_slide,
    load_slide_apart,
    made_by_sslpath,
    patch_attrs,
    provenance_of,
    read_failures,
    write_descriptors,
    write_failures,
)
from sslpath.errors import DescriptorError, SlideError, counted
from sslpath.files import only_one
from sslpath.progress import hide_bar
from sslpath.reading import FailedTile, Read, read_ahead
from sslpath.sources import TileSource

__all__ = [
    "SlideDescriptors",
    "compute",
    "descriptor_path",
    "load_slide",
    "load_slide_apart",
    "read_descriptors",
    "read_failures",
    "rgb_features",
    "write_descriptors",
]

FACTORS = (2, 4, 8, 16, 32)  # by which places on another level are smaller
Descriptors = NDArray[np.float32]
Encode = Callable[[NDArray[np.uint8]], Descriptors | Callable[[], Descriptors]]
"""Turns tiles (b, h, w, 3) into descriptors (b, d), or into a function that waits for them.

Such a function, as of :func:`sslpath.backbones.start`, is called when the next tiles were handed
over, so that a GPU always has something to do.
"""


@overload
def read_descriptors(
    folder: str | Path, tiles: pd.DataFrame, missing: Literal["error"] = "error"
) -> NDArray[np.float32]: ...


@overload
def read_descriptors(
    folder: str | Path, tiles: pd.DataFrame, missing: Literal["drop"]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


def read_descriptors(
    folder: str | Path, tiles: pd.DataFrame, missing: Literal["error", "drop"] = "error"
) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read the descriptors of a table of tiles, in the order of its rows.

    Args:
        folder: Where the files are, one per slide.
        tiles: The table; matched by ``slide_id`` and the exact corner ``x``, ``y``.
        missing: What to do about a tile without a descriptor. ``"drop"`` leaves it out; a whole
            slide without a file is left out only if all its tiles are in ``failed.csv``.

    Returns:
        Descriptors (n, d). With ``missing="drop"`` the descriptors (m, d) of the tiles that have
        one, and a mask (n,) of these: go on with ``tiles[mask]``.

    Raises:
        DescriptorError: If a file is missing, damaged, made by another encoder or from other tiles
            than the rest, if no tile has a descriptor, or one lacks it and ``missing="error"``.
    """
    if missing not in ("error", "drop"):
        raise DescriptorError(f'missing must be "error" or "drop", not {missing!r}.')
    failed = _failed_corners(folder)
    found: NDArray[np.float32] | None = None
    kept = np.zeros(len(tiles), bool)
    first: tuple[Path, dict[str, Any]] | None = None
    elsewhere: list[str] = []  # of slides whose file has none of the tiles
    every = tiles[["x", "y"]].to_numpy(np.int64)
    for slide_id, where in _by_slide(tiles):
        path = descriptor_path(folder, slide_id)
        corners = every[where]
        lost = ((slide_id, *corner) in failed for corner in corners.tolist())
        if missing == "drop" and not path.exists() and all(lost):
            continue
        slide = load_slide(path)
        _fits(slide, slide_id, tiles, path)
        made_by = provenance_of(slide.attrs)
        if found is None or first is None:
            found = np.empty((len(tiles), slide.features.shape[1]), np.float32)
            first = (path, made_by)
        elif (slide.features.shape[1], made_by) != (found.shape[1], first[1]):
            raise DescriptorError(
                f"{path} (length {slide.features.shape[1]}) and {first[0]} (length "
                f"{found.shape[1]}) were not made by the same encoder: "
                f"{canonical(made_by) if made_by else 'unknown'} against "
                f"{canonical(first[1]) if first[1] else 'unknown'}. Run `sslpath embed` into an "
                "empty folder."
            )
        rows = _positions(slide.coords, corners, path)
        there = rows >= 0
        if missing == "error" and not there.all():
            known = sum((slide_id, *corner) in failed for corner in corners[~there].tolist())
            raise DescriptorError(_gaps(path, corners, slide, there, known))
        if not there.any() or (
            not there.all() and _elsewhere(corners, slide.coords, there, int(tiles["size"].iloc[0]))
        ):
            there[:] = False
            elsewhere.append(_other_grid(path, corners, slide.coords))
        found[where[there]] = slide.features[rows[there]]
        kept[where[there]] = True
    if found is None:
        raise DescriptorError(f"No descriptors in {folder} for these {len(tiles)} tiles.")
    if elsewhere and not kept.any():
        raise DescriptorError(
            f"None of the {len(tiles)} tiles has a descriptor at its place in {folder}. "
            f"{elsewhere[0]} Tile with the descriptors' settings, or embed these tiles with "
            "`sslpath embed`."
        )
    if elsewhere:
        warnings.warn(
            f"Left out {counted(len(elsewhere), 'slide')} with descriptors at other places than "
            f"the tiles. {elsewhere[0]}",
            stacklevel=2,
        )
    return found if missing == "error" else (found[kept], kept)


def _failed_corners(folder: str | Path) -> set[tuple[str, int, int]]:
    """Slide and corner of the tiles that could not be read; a list of others says nothing here."""
    try:
        failed = read_failures(folder)
    except DescriptorError:
        return set()
    return set(zip(failed["slide_id"], failed["x"], failed["y"], strict=True))


def _gaps(
    path: Path,
    corners: NDArray[np.int64],
    slide: SlideDescriptors,
    there: NDArray[np.bool_],
    known: int,
) -> str:
    """What is said of a file that lacks tiles."""
    lost = corners[~there]
    text = (
        f"{path} has no descriptor for {len(lost)} of {len(corners)} tiles, such as x, y = "
        f"{tuple(lost[0].tolist())}; {known} of them could not be read, see {FAILED}. "
    )
    if not there.any() and known < len(lost):
        text += f"{_other_grid(path, corners, slide.coords)} "
    if made_by_sslpath(slide.attrs):
        text += "Run `sslpath embed` again to try them once more, or leave"
    else:
        text += "Tile with the descriptors' settings, make new ones with `sslpath embed`, or leave"
    return f'{text} them out with read_descriptors(..., missing="drop").'


def _other_grid(path: Path, want: NDArray[np.int64], have: NDArray[np.int64]) -> str:
    """What is said of a file that has none of the tiles asked for: how places differ, and why."""
    if not len(have):
        return f"{path} holds no descriptor at all."
    one, other = tuple(want[0].tolist()), tuple(have[0].tolist())
    text = f"{path} has {len(have)} descriptors, such as at x, y = {other}; the table has {one}:"
    asked = {tuple(corner) for corner in want.tolist()}
    if sum(tuple(corner) in asked for corner in have[:, ::-1].tolist()) * 2 > len(have):
        return f"{text} x and y are swapped."
    for factor in FACTORS:
        smaller = {tuple(corner) for corner in (want // factor).tolist()}
        if sum(tuple(corner) in smaller for corner in have.tolist()) * 2 > len(have):
            return f"{text} as pixels of a level {factor} times smaller, not of level 0."
    return f"{text} another grid?"


def _elsewhere(
    want: NDArray[np.int64], have: NDArray[np.int64], there: NDArray[np.bool_], size: int
) -> bool:
    """Whether more tiles are found if places are read otherwise: those found so far are others."""
    asked = pd.MultiIndex.from_arrays(list(want.T))
    others = [have[:, ::-1], *(have * factor for factor in (*FACTORS, size))]
    most = max(int(asked.isin(pd.MultiIndex.from_arrays(list(one.T))).sum()) for one in others)
    return most > int(there.sum())


def _by_slide(tiles: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Each slide in the order of its first row, with the positions of its rows."""
    codes, names = pd.factorize(tiles["slide_id"])
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    for name, where in zip(names, np.split(order, ends), strict=True) if len(names) else ():
        yield str(name), where


def slides_of(tiles: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.intp], pd.DataFrame]]:
    """Each slide, the positions of its rows, and these with metadata of this slide alone.

    The table's metadata name every slide, and pandas copies them with every selection of rows: of
    a thousand slides they would be most of the memory.
    """
    bare, attrs = tiles.copy(deep=False), tiles.attrs
    bare.attrs = {}
    slides = attrs["source"].get("slides", {})
    for slide_id, where in _by_slide(bare):
        rows = bare.iloc[where]
        own = {slide_id: slides[slide_id]} if slide_id in slides else {}
        rows.attrs = {**attrs, "source": {**attrs["source"], "slides": own}}
        yield slide_id, where, rows


def _positions(have: NDArray[np.int64], want: NDArray[np.int64], path: Path) -> NDArray[np.intp]:
    """Row of ``have`` that holds each corner of ``want``, or -1."""
    index = pd.MultiIndex.from_arrays(list(have.T))
    if not index.is_unique:
        raise DescriptorError(
            f"{path} holds two descriptors for one tile. Make it again, such as with "
            "`sslpath embed` into another folder."
        )
    return np.asarray(index.get_indexer(pd.MultiIndex.from_arrays(list(want.T))), np.intp)


def _fits(slide: SlideDescriptors, slide_id: str, tiles: pd.DataFrame, path: Path) -> None:
    """Refuse a file of another slide (file systems that ignore case) or of other tiles."""
    if not made_by_sslpath(slide.attrs):
        return  # other programs mean other things by these attributes
    owner = slide.attrs["slide_id"]
    if owner != path.stem:
        raise DescriptorError(
            f"{path} holds the slide {owner!r}, not {slide_id!r}; give them names that differ "
            "in more than case."
        )
    made = provenance_of(slide.attrs)
    for key in ("mpp", "tile_px"):
        value, wanted = made.get(key), tiles.attrs.get(key)
        if isinstance(value, int | float) and wanted is not None and value != wanted:
            raise DescriptorError(
                f"{path} was made from tiles of {key} {value}, the table has "
                f"{wanted}. Run `sslpath embed` into another folder."
            )


class _Work(NamedTuple):
    """What is to be done with tiles; see :func:`compute`."""

    encode: Encode
    source: TileSource
    folder: Path
    made_by: Mapping[str, Any]
    batch: int
    as_listed: bool


@dataclass(frozen=True)
class _Pending:
    """A slide whose file is not written yet."""

    corners: NDArray[np.int64]
    patch: dict[str, Any]
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]]


def compute(
    tiles: pd.DataFrame,
    encode: Encode,
    source: TileSource,
    folder: str | Path,
    *,
    attrs: Mapping[str, Any],
    batch: int = 256,
    workers: int = 0,
    as_listed: bool = False,
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute the descriptors of all tiles, one file per slide; what is there already is kept.

    A slide is skipped if its file is whole, has these corners, and was made with the same
    ``attrs``, ``mpp`` and ``tile_px``. Of a file that lacks some tiles only these are computed.
    A file that sslpath made otherwise is replaced; one that sslpath did not make is refused.
    A tile that cannot be read gets no descriptor; it is listed in ``failed.csv``.

    Args:
        tiles: The table of tiles.
        encode: Tiles uint8 (b, h, w, 3) to descriptors (b, d), or to a function that returns these,
            see :data:`Encode`.
        source: Where the tiles come from; see :func:`sslpath.sources.open_source`.
        folder: Where the files go.
        attrs: What makes the descriptors, such as ``Encoder.provenance``: JSON.
        batch: Tiles at a time.
        workers: Processes that read ahead, also over the end of a slide, so that the encoder
            never waits for one to open. They are started afresh: call from under
            ``if __name__ == "__main__"``. 0 reads in this process.
        as_listed: Take a slide's tiles in the order of the table. By default they are taken square
            by square, so that few blocks of a slide are decoded for two batches. It matters where
            ``encode`` looks at a batch as a whole; files are in the order of the table anyway.
        scheduler: Address of a Dask scheduler whose workers do all of it, a slide at a time; see
            :mod:`sslpath.cluster`.
        progress: Show a bar.

    Returns:
        The tiles that failed, as in :func:`read_failures`.

    Raises:
        DescriptorError: If the encoder returns another number of descriptors than tiles, or NaN;
            or if the folder holds a file in the place of one of these that sslpath did not make.
        BusyError: If another process computes descriptors in the folder.
    """
    made_by = {**attrs, "mpp": tiles.attrs["mpp"], "tile_px": tiles.attrs["tile_px"]}
    work = _Work(encode, source, Path(folder), made_by, batch, as_listed)
    with only_one(folder):
        failed = other_failures(folder, tiles)
        earlier = written = len(failed)
        check_replaceable(folder, map(str, tiles["slide_id"].unique()))
        if scheduler is None:
            done = _compute(tiles, work, workers)
        else:
            done = _compute_elsewhere(scheduler, tiles, work)
        total = len(tiles[["slide_id", "x", "y"]].drop_duplicates())
        with tqdm(total=total, unit="tile", disable=hide_bar(progress)) as bar:
            for count, failures in done:
                bar.update(count)
                failed += failures
                if len(failed) > 1.2 * written:  # each time all: so not at every failure
                    write_failures(folder, failed)
                    written = len(failed)
        write_failures(folder, failed)
    return failure_table(failed[earlier:])


def other_failures(folder: str | Path, tiles: pd.DataFrame) -> list[FailedTile]:
    """What ``failed.csv`` of a folder lists of slides that are not in this table."""
    names = set(tiles["slide_id"])
    rows = read_failures(folder).itertuples(index=False, name=None)
    return [row for row in rows if row[0] not in names]


def _compute(
    tiles: pd.DataFrame, work: _Work, workers: int
) -> Iterator[tuple[int, list[FailedTile]]]:
    """Compute here; yields how many tiles are done since the last time, and those that failed."""
    encode, source, folder, made_by, batch, as_listed = work
    pending: dict[str, _Pending] = {}
    ready = 0  # tiles that are there already

    def jobs() -> Iterator[tuple[str, pd.DataFrame, bool]]:
        nonlocal ready
        for slide_id, _, every in slides_of(tiles):
            rows = every.drop_duplicates(["x", "y"])
            wanted = rows[["x", "y"]].to_numpy(np.int64)
            path = descriptor_path(folder, slide_id)
            have, kept = _reusable(path, canonical(made_by)), []
            if have is not None:
                at = _positions(have.coords, wanted, path)
                ready += int((at >= 0).sum())
                if (at >= 0).all() and len(have.coords) == len(wanted):
                    continue
                rows = rows[at < 0]
                kept = [(have.features[at[at >= 0]], have.coords[at[at >= 0]])]
            pending[slide_id] = _Pending(wanted, patch_attrs(every, slide_id, folder), kept)
            if not as_listed:
                rows = rows.iloc[_square_by_square(rows, batch)]
            starts = range(0, max(1, len(rows)), batch)
            for i in starts:
                yield slide_id, rows.iloc[i : i + batch], i == starts[-1]

    shape = min(batch, len(tiles)), tiles.attrs["tile_px"], tiles.attrs["tile_px"], 3
    # A file is written while the encoder goes on with the next slide.
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for read, last, found in _encoded(encode, read_ahead(jobs(), source, workers, shape)):
            if found is not None:
                pending[read.slide_id].parts.append((found, read.coords))
            if last:
                if writing is not None:
                    writing.result()
                slide = pending.pop(read.slide_id)
                writing = writer.submit(_finish, folder, read.slide_id, slide, made_by)
            done, ready = ready, 0
            yield done + len(read.images) + len(read.failures), read.failures
        if writing is not None:
            writing.result()
    yield ready, []


def _compute_elsewhere(
    scheduler: str, tiles: pd.DataFrame, work: _Work
) -> Iterator[tuple[int, list[FailedTile]]]:
    """As :func:`_compute`, slide by slide on the workers of a Dask scheduler."""
    slides = [rows for _, _, rows in slides_of(tiles)]
    work = work._replace(folder=work.folder.absolute())
    for i, result in each(scheduler, partial(_compute_slide, work=work), slides):
        if isinstance(result, SlideError):
            rows = slides[i][["slide_id", "x", "y"]].assign(error=str(result))
            yield len(rows), list(rows.itertuples(index=False, name=None))
        else:
            yield result


def _compute_slide(rows: pd.DataFrame, work: _Work) -> tuple[int, list[FailedTile]]:
    done = list(_compute(rows, work, workers=0))
    return sum(count for count, _ in done), [row for _, failures in done for row in failures]


def _square_by_square(rows: pd.DataFrame, batch: int) -> NDArray[np.intp]:
    """The order of a slide's tiles by squares of a batch each, in which they stay as they are."""
    side = max(1, math.isqrt(batch)) * rows["size"].to_numpy()
    return np.lexsort((rows["x"] // side, rows["y"] // side))


def _reusable(path: Path, provenance: str) -> SlideDescriptors | None:
    """The file's content if it is whole and was made the same way."""
    if not path.exists():
        return None
    try:
        slide = load_slide(path)
    except DescriptorError:
        return None  # damaged: computed again
    if not made_by_sslpath(slide.attrs) or slide.attrs["slide_id"] != path.stem:
        return None
    return slide if slide.attrs["provenance"] == provenance else None


def _encoded(
    encode: Encode, batches: Iterator[tuple[Read, bool]]
) -> Iterator[tuple[Read, bool, Descriptors | None]]:
    """The batches with their descriptors, of which one that has to be waited for is a turn late."""
    late: list[tuple[Read, bool, Callable[[], Descriptors]]] = []

    def fetched() -> tuple[Read, bool, Descriptors]:
        read, last, wait = late.pop()
        return read, last, _checked(wait(), read)

    try:
        for read, last in batches:
            made = encode(read.images) if len(read.images) else None
            if late:
                yield fetched()
            if callable(made):
                late.append((read, last, made))
            else:
                yield read, last, None if made is None else _checked(made, read)
    except Exception:  # what was handed over before is not lost for it
        if late:
            yield fetched()
        raise
    if late:
        yield fetched()


def _checked(found: Descriptors, read: Read) -> Descriptors:
    features = np.asarray(found, np.float32)
    what = f"the descriptors of {read.slide_id!r}"
    check(features, read.coords, what, "the encoder: it must return finite floats (b, d)")
    return features


def _finish(folder: str | Path, slide_id: str, slide: _Pending, made_by: Mapping[str, Any]) -> None:
    """Write one slide's file in the order of the table; without any descriptor there is none."""
    path = descriptor_path(folder, slide_id)
    if not slide.parts:
        path.unlink(missing_ok=True)
        return
    features, coords = (np.concatenate(part) for part in zip(*slide.parts, strict=True))
    at = _positions(coords, slide.corners, path)
    at = at[at >= 0]
    write_descriptors(folder, slide_id, features[at], coords[at], made_by, slide.patch)


def rgb_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue of each tile: the plainest descriptor.

    What a method adds to this is more than stain.

    Args:
        images: Tiles, uint8 (n, h, w, 3).

    Returns:
        Means, then standard deviations, of values in 0..1, (n, 6).

    Example:
        >>> rgb_features(np.full((1, 8, 8, 3), 255, np.uint8))
        array([[1., 1., 1., 0., 0., 0.]], dtype=float32)
    """
    pixels = images.astype(np.float32) / 255
    return np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)
