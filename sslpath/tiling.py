"""Slides to a table of tiles: a grid of whole tiles, at a pixel size in um, where there is tissue.

Geometry. Tiles of ``tile_px`` pixels at ``mpp`` span ``tile_px * mpp / slide_mpp`` level-0 px,
rarely a whole number. The i-th tile of a row starts at ``round(i * pitch)`` with the exact pitch,
so rounding never adds up: every tile is within half a pixel of its place, and neighbours of a grid
without stride overlap by less than one level-0 px. Only whole tiles are kept.

Labels follow the rule of :mod:`sslpath.labels`; without annotations they are missing.
"""

import hashlib
import math
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import Future, as_completed
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from sslpath import __version__
from sslpath.annotations import (
    Annotations,
    annotation_files,
    load_annotations,
    the_file,
)
from sslpath.cluster import each
from sslpath.errors import AnnotationError, ConfigError, SlideError, SslpathError, TableError
from sslpath.labels import how_read, label_tiles, outlines_of, warn_of_outlines
from sslpath.progress import hide_bar
from sslpath.slide_files import slides_named
from sslpath.slides import Slide
from sslpath.table import DTYPES, load_tiles, make_table, save_tiles
from sslpath.tissue import tissue_fraction, tissue_mask

MASK_MPP = 8.0
MASK_MAX_PX = 8192
# A slide of 0.2525 um may be read at 0.25, but one of 0.5 um has no detail of 0.25 um to show.
MAX_UPSAMPLING = 1.1
TIMEOUT_S = 600.0
# The largest slides have some hundred thousand tiles. A header that announces more is a lie that
# would fill the memory.
MAX_PLACES = 20_000_000


class Failure(NamedTuple):
    """A slide that gave no tiles, and why."""

    slide_id: str
    path: str
    error: str


def grid(
    dimensions: tuple[int, int], *, side_px: float, pitch_px: float | None = None
) -> NDArray[np.int64]:
    """Top-left corners of all whole tiles of a slide, row by row.

    Args:
        dimensions: Width and height of the slide, level-0 px.
        side_px: Side of a tile, level-0 px; need not be whole.
        pitch_px: Step from tile to tile, level-0 px; the side if not given.

    Returns:
        Shape ``(n, 2)`` as (x, y), level-0 px.

    Raises:
        ConfigError: If side or pitch is less than one level-0 px.

    Example:
        >>> grid((25, 12), side_px=10.5).tolist()
        [[0, 0], [11, 0]]
    """
    pitch = side_px if pitch_px is None else pitch_px
    if not (side_px >= 1 and pitch >= 1):
        raise ConfigError(
            f"Tiles of {side_px:g} level-0 px every {pitch:g} px cannot be cut: at least 1 px each."
        )
    xs, ys = (_starts(length, side_px, pitch) for length in dimensions)
    return np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)


def _starts(length: int, side: float, pitch: float) -> NDArray[np.int64]:
    # A side of 447.9999 or 448.0001 is meant to be 448.
    whole = math.ceil(side - 1e-3)
    count = max(0, math.ceil((length - whole + 1) / pitch) + 1)
    starts = np.floor(np.arange(count) * pitch + 0.5).astype(np.int64)
    return np.asarray(starts[starts + whole <= length])


def tile_slide(
    slide: Slide,
    *,
    mpp: float,
    tile_px: int,
    stride_px: int | None = None,
    min_tissue: float = 0.5,
    annotations: Annotations | None = None,
    exhaustive: bool = True,
    tumour_share: float = 0.5,
    max_tiles: int | None = None,
    seed: int = 0,
    max_places: int = MAX_PLACES,
) -> pd.DataFrame:
    """Tile one slide.

    Args:
        slide: The slide.
        mpp: um per pixel of the tiles.
        tile_px: Side of a tile, pixels at ``mpp``.
        stride_px: Step from tile to tile, pixels at ``mpp``; ``tile_px`` if not given.
        min_tissue: Least fraction of tissue a tile needs, 0 (keep all) to 1.
        annotations: Outlines of this slide; without them labels are missing.
        exhaustive: Whether all tumour is outlined, so that the rest is known not to be tumour.
        tumour_share: Least share of a tumour tile that lies in tumour.
        max_tiles: Keep at most so many tiles, drawn at random, all equally likely.
        seed: Of that draw; the slide's name is added, so slides do not depend on each other.
        max_places: Refuse a slide whose grid would have more places than this.

    Returns:
        A table of tiles, row by row over the slide; empty if there is no tissue.

    Raises:
        SlideError: If the slide cannot be read, is coarser than the tiles shall be, or is absurdly
            large for its tiles.
        PixelSizeError: If its pixel size is unknown.
        AnnotationError: If all outlines lie outside the slide.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from sslpath.convert import convert
        >>> folder = Path(tempfile.mkdtemp())
        >>> section = Image.new("RGB", (600, 400), "white")
        >>> section.paste("orchid", (200, 0, 600, 400))
        >>> section.save(folder / "section.png")
        >>> slide = convert(folder / "section.png", folder / "section.tif", mpp=0.5)
        >>> tiles = tile_slide(slide, mpp=1.0, tile_px=100)
        >>> tiles[["x", "y", "size"]].to_numpy().tolist()
        [[200, 0, 200], [400, 0, 200], [200, 200, 200], [400, 200, 200]]
    """
    tiles = _tile(
        slide,
        annotations,
        mpp=mpp,
        tile_px=tile_px,
        stride_px=stride_px,
        min_tissue=min_tissue,
        exhaustive=exhaustive,
        tumour_share=tumour_share,
        max_tiles=max_tiles,
        seed=seed,
        max_places=max_places,
    )
    for note in outlines_of(tiles).get(slide.slide_id, {}).get("notes", []):
        warnings.warn(note, stacklevel=2)
    return tiles


def _tile(
    slide: Slide,
    annotations: Annotations | None,
    *,
    mpp: float,
    tile_px: int,
    stride_px: int | None,
    min_tissue: float,
    exhaustive: bool,
    tumour_share: float,
    max_tiles: int | None,
    seed: int,
    max_places: int,
    bounds: bool = False,
) -> pd.DataFrame:
    """As :func:`tile_slide`; notes on outlines stay in the table's metadata."""
    _check_settings(min_tissue, tumour_share, max_tiles)
    scale = mpp / slide.mpp
    if scale * MAX_UPSAMPLING < 1:
        raise SlideError(
            f"The slide {slide.path} has {slide.mpp:g} um a pixel: tiles at {mpp:g} um would be "
            f"made-up detail. Use an mpp of {slide.mpp:.3g} or more."
        )
    side, pitch = tile_px * scale, (tile_px if stride_px is None else stride_px) * scale
    _check_places(slide, pitch, max_places)
    places = grid(slide.dimensions, side_px=side, pitch_px=pitch)
    share = _tissue(slide, places, side)
    keep = np.flatnonzero(share >= min_tissue)
    if max_tiles is not None and len(keep) > max_tiles:
        # Lots are drawn for every place of the grid, so that one tile more or less of tissue
        # changes one tile of the draw, not all of it.
        rng = np.random.default_rng([seed, zlib.crc32(slide.slide_id.encode())])
        lots = rng.random(len(places))[keep]
        keep = np.sort(keep[np.argsort(lots)[:max_tiles]])
    corners = places[keep]
    columns: dict[str, Any] = {
        "slide_id": np.full(len(keep), slide.slide_id, object),
        "x": corners[:, 0],
        "y": corners[:, 1],
        "size": round(side),
        "slide_mpp": slide.mpp,
        "tissue": share[keep],
    }
    where: dict[str, Any] = {"path": str(slide.path.absolute()), "mpp": slide.mpp}
    where |= dict(zip(("width", "height"), slide.dimensions, strict=True))
    where["stride_px"] = stride_px or tile_px
    if annotations is not None:
        where["outlines"] = how_read(annotations, slide, places, side, share > 0, bounds=bounds)
        x, y = corners.T
        columns["label"], columns["region"] = label_tiles(
            shapely.box(x, y, x + side, y + side),
            annotations,
            exhaustive=exhaustive,
            tumour_share=tumour_share,
        )
    return make_table(
        columns,
        mpp=mpp,
        tile_px=tile_px,
        source={"kind": "slides", "slides": {slide.slide_id: where}},
    )


def tile_slides(
    slides: Iterable[Slide],
    *,
    mpp: float,
    tile_px: int,
    stride_px: int | None = None,
    min_tissue: float = 0.5,
    annotations_dir: str | Path | None = None,
    tumour: Collection[str] = (),
    bounds: bool = False,
    not_exhaustive: Collection[str] = (),
    no_tumour: Collection[str] = (),
    tumour_share: float = 0.5,
    max_tiles: int | None = None,
    seed: int = 0,
    max_places: int = MAX_PLACES,
    workers: int = 1,
    timeout_s: float = TIMEOUT_S,
    on_error: Literal["record", "raise"] = "record",
    scheduler: str | None = None,
    parts: str | Path | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, list[Failure]]:
    """Tile many slides into one table; a broken slide does not stop the others.

    Args:
        slides: The slides.
        mpp: See :func:`tile_slide`, as for all that is not listed here.
        tile_px: Likewise.
        stride_px: Likewise.
        min_tissue: Likewise.
        annotations_dir: Folder with an ``.xml`` or ``.geojson`` file named like each annotated
            slide. Labels of slides without a file are missing.
        tumour: The names of outlines that mean tumour, instead of those that
            :func:`sslpath.annotations.reading_of` knows.
        bounds: Whether outlines are counted from the corner of the scanned area, as QuPath counts
            them on slides that have one smaller than the slide (MRXS, SCN), not from the slide's.
        not_exhaustive: Ids of slides where what is not outlined is unknown, not normal. Capitals
            do not matter.
        no_tumour: Ids of slides known to hold no tumour: without a file, their labels are 0.
        tumour_share: Likewise.
        max_tiles: Likewise, for each slide.
        seed: Likewise.
        max_places: Likewise.
        workers: Processes; 1 works in this one, which a file that crashes or hangs its reader
            takes along.
        timeout_s: Seconds for a slide, with several workers; one that takes longer is broken.
        on_error: ``"raise"`` stops at the first broken slide.
        scheduler: Address of a Dask scheduler whose workers do the work, instead of ``workers``;
            see :mod:`sslpath.cluster`.
        parts: Folder where each slide's tiles are kept as soon as they are known, so that a call
            that was stopped can be made again and goes on. The caller removes it in the end.
        progress: Show a bar.

    Warns once of slides without a file of annotations, of outlines that lie off the tissue or were
    left out, and of names that may mean tumour and were not read so.

    Returns:
        The table of tiles, in the order of ``slides``; and the slides that gave no tiles.

    Raises:
        ConfigError: If two slides have the same id, ``not_exhaustive`` or ``no_tumour`` name none
            of the slides, or settings are out of range.
        SslpathError: The first error of a slide, with ``on_error="raise"``.
    """
    slides = list(slides)
    _check_ids(slides)
    drawn = _annotations(annotations_dir, slides)
    _check_settings(min_tissue, tumour_share, max_tiles)
    known = _named(slides, no_tumour, "no_tumour")
    job = partial(
        _tile_one,
        mpp=mpp,
        tile_px=tile_px,
        stride_px=stride_px,
        min_tissue=min_tissue,
        tumour=tuple(tumour),
        bounds=bounds,
        not_exhaustive=_named(slides, not_exhaustive, "not_exhaustive"),
        no_tumour=known,
        tumour_share=tumour_share,
        max_tiles=max_tiles,
        seed=seed,
        max_places=max_places,
        parts=None if parts is None else Path(parts).absolute(),
    )
    tables: dict[int, pd.DataFrame] = {}
    failures: dict[int, Failure] = {}
    with tqdm(total=len(slides), desc="tiling", unit="slide", disable=hide_bar(progress)) as bar:
        if scheduler is None:
            done = _run(job, drawn, workers, timeout_s)
        else:
            done = each(scheduler, job, [(slide.absolute(), files) for slide, files in drawn])
        # Closed here and now: the garbage collector may do it in a thread of the pool's own, which
        # cannot wait for itself.
        with closing(done):
            for i, result in done:
                bar.update()
                if isinstance(result, pd.DataFrame):
                    tables[i] = result
                    continue
                if on_error == "raise":
                    raise result
                said = slides[i].slide_id, str(slides[i].path), str(result)
                failures[i] = Failure(*(_as_text(one) for one in said))
    tiles = _join([tables[i] for i in sorted(tables)], mpp, tile_px)
    if annotations_dir is not None:
        bare = [slide.slide_id for slide, files in drawn if not files]
        warn_of_outlines(tiles, [s for s in bare if s not in known], annotations_dir, tumour)
    return tiles, [failures[i] for i in sorted(failures)]


def _check_settings(min_tissue: float, tumour_share: float, max_tiles: int | None) -> None:
    if not 0 <= min_tissue <= 1:
        raise ConfigError(f"min_tissue is a fraction from 0 to 1, not {min_tissue:g}.")
    if not 0 < tumour_share <= 1:
        raise ConfigError(f"tumour_share is a fraction above 0 up to 1, not {tumour_share:g}.")
    if max_tiles is not None and max_tiles < 1:
        raise ConfigError(f"max_tiles is at least 1, not {max_tiles}.")


def _check_places(slide: Slide, pitch: float, limit: int) -> None:
    """Refuse a slide of absurd size before anything is made for each of its places."""
    places = math.prod(side / max(pitch, 1.0) for side in slide.dimensions)
    if places > limit:
        width, height = slide.dimensions
        raise SlideError(
            f"The slide {slide.path} claims {width} x {height} px: {places:.3g} places for tiles, "
            f"more than {limit:,}. It is damaged, or the tiles are very small: then raise the "
            "limit, `--max-places` on the command line, `max_places=` in Python."
        )


def _check_ids(slides: list[Slide]) -> None:
    paths: dict[str, Path] = {}
    for slide in slides:
        other = paths.setdefault(slide.slide_id, slide.path)
        if other != slide.path:
            raise ConfigError(
                f"Two slides have the id {slide.slide_id!r}, the file's stem: {other} and "
                f"{slide.path}. Rename one."
            )
    if len(paths) < len(slides):
        raise ConfigError("A slide is listed twice. List each once.")


def _named(slides: list[Slide], names: Collection[str], what: str) -> frozenset[str]:
    """The ids of the slides that names mean."""
    files = {slide.slide_id: slide.path.name for slide in slides}
    return frozenset(slides_named(names, files, what).values())


Drawn = tuple[Slide, list[Path]]  # a slide and its files of annotations


def _annotations(folder: str | Path | None, slides: list[Slide]) -> list[Drawn]:
    if folder is None:
        return [(slide, []) for slide in slides]
    if not Path(folder).is_dir():
        raise ConfigError(f"The folder of annotations {folder} does not exist.")
    files = annotation_files([slide.slide_id for slide in slides], Path(folder).absolute())
    return [(slide, files[slide.slide_id]) for slide in slides]


def _tile_one(
    drawn: Drawn,
    *,
    tumour: tuple[str, ...],
    bounds: bool,
    not_exhaustive: frozenset[str],
    no_tumour: frozenset[str],
    parts: Path | None,
    **settings: Any,
) -> pd.DataFrame | SslpathError:
    """The table of a slide, or the error that it gave."""
    slide, files = drawn
    try:
        _check_name(slide)
        part = None
        if parts is not None:
            known = slide.slide_id in not_exhaustive, slide.slide_id in no_tumour
            part = parts / _part_name(slide, files, (*known, tumour, bounds, settings))
            with suppress(TableError):
                return load_tiles(part)
        file = the_file(slide.slide_id, files)
        annotations = None if file is None else load_annotations(file, tumour)
        if slide.slide_id in no_tumour:
            if annotations is not None and not annotations.tumour.is_empty:
                return AnnotationError(
                    f"{slide.slide_id} is said to hold no tumour, and {file} outlines some. Leave "
                    "it out of one of them."
                )
            annotations = annotations or Annotations()
        if annotations is not None and bounds:
            annotations = annotations.moved(*slide.scanned[:2])
        tiles = _tile(
            slide,
            annotations,
            exhaustive=slide.slide_id not in not_exhaustive,
            bounds=bounds,
            **settings,
        )
    except SslpathError as error:
        return error
    except Exception as error:  # a fault of sslpath, which must not take the other slides along
        kind, said = type(error).__name__, " ".join(str(error).split())
        return SlideError(f"{slide.path} cannot be tiled, by a fault of sslpath ({kind}: {said}).")
    if tiles.empty:
        return SlideError(
            f"No tile of {slide.path} holds enough tissue (min_tissue {settings['min_tissue']:g}): "
            "an empty slide, a stain that is not H&E, or tiles wider than the slide."
        )
    if part is not None:
        part.unlink(missing_ok=True)  # damaged, or it would have been used
        save_tiles(tiles, part)
    return tiles


def _as_text(name: str) -> str:
    """A name as tables can hold it: bytes that are no text are written as in Python."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _check_name(slide: Slide) -> None:
    try:
        f"{slide.slide_id}{slide.path.absolute()}".encode()
    except UnicodeEncodeError as error:
        raise SlideError(
            f"The name of {str(slide.path)!r} is not UTF-8, so no table can hold it. Rename it."
        ) from error


def _part_name(slide: Slide, annotations: list[Path], settings: object) -> str:
    """A name for the tiles of a slide that changes with all that they depend on."""
    try:
        states = [
            (file.stat().st_size, file.stat().st_mtime_ns) for file in (slide.path, *annotations)
        ]
    except OSError as error:
        raise SlideError(f"Cannot reach {error.filename}: {error.strerror}.") from error
    files = slide.path, *annotations
    which = __version__, files, states, slide.slide_id, slide.mpp_override, settings
    return hashlib.sha256(repr(which).encode()).hexdigest()[:24] + ".parquet"


PART = re.compile(r"\.?[0-9a-f]{24}(\..*\.tmp)?\.parquet")


def remove_parts(folder: str | Path) -> None:
    """Remove the tables of single slides that :func:`tile_slides` kept in ``parts``, no other file.

    The folder goes too if nothing else is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if PART.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):  # other files are in it
        folder.rmdir()


def _run(
    job: Callable[[Drawn], pd.DataFrame | SslpathError],
    slides: list[Drawn],
    workers: int,
    timeout_s: float,
) -> Generator[tuple[int, pd.DataFrame | SslpathError], None, None]:
    """Results by position in ``slides``, in the order in which they are ready."""
    if workers <= 1 or len(slides) <= 1:
        for i, one in enumerate(slides):
            yield i, job(one)
        return
    pool = ProcessPool(min(workers, len(slides)))
    futures: dict[Future[pd.DataFrame | SslpathError], int] = {
        pool.schedule(job, args=[one], timeout=timeout_s): i for i, one in enumerate(slides)
    }
    try:
        for future in as_completed(futures):
            i = futures[future]
            path = slides[i][0].path
            try:
                yield i, future.result()
            except ProcessExpired:
                yield i, SlideError(f"Reading {path} crashed the process: a damaged file?")
            except TimeoutError:
                yield (
                    i,
                    SlideError(
                        f"Reading {path} took longer than {timeout_s:g} s: a damaged file, or a "
                        "disk that hangs? Allow more time with `--timeout`."
                    ),
                )
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _tissue(slide: Slide, corners: NDArray[np.int64], side: float) -> NDArray[np.float32]:
    """Fraction of tissue of each tile."""
    mpp = min(MASK_MPP, side * slide.mpp / 8)
    mpp = max(mpp, slide.mpp * max(slide.dimensions) / MASK_MAX_PX)
    thumbnail, mpp = slide.thumbnail(mpp=mpp)
    scale = slide.mpp / mpp
    x, y = (corners * scale).T
    return tissue_fraction(tissue_mask(thumbnail, mpp), x, y, side * scale)


def _join(tables: list[pd.DataFrame], mpp: float, tile_px: int) -> pd.DataFrame:
    """One table of many; metadata too, which pandas would drop."""
    slides = {key: where for t in tables for key, where in t.attrs["source"]["slides"].items()}
    columns: dict[str, Any] = {
        name: pd.concat([t[name] for t in tables], ignore_index=True) if tables else []
        for name in DTYPES
    }
    source = {"kind": "slides", "slides": slides}
    return make_table(columns, mpp=mpp, tile_px=tile_px, source=source)
