"""Files of descriptors: one HDF5 file per slide, in the layout of CLAM and TRIDENT.

A file ``<slide_id>.h5`` holds ``features`` (n, d) float32 and ``coords`` (n, 2) integers: (x, y) of
the tile's top-left corner, level-0 px. What made the descriptors is its attribute ``provenance``.
Beside them ``failed.csv`` lists the tiles that could not be read.

Files of other programs are read as they are, also with axes of length 1 around them or features
in half precision. Their attributes say nothing here, and sslpath never writes over them.
"""

import glob
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from sslpath.errors import DescriptorError
from sslpath.files import atomic_path

FAILED = "failed.csv"
FAILURE = {"slide_id": "str", "x": "int64", "y": "int64", "error": "str"}
MAX_BYTES = 16 << 30  # of the descriptors of one slide in memory: half a million of 8,000 numbers
CHUNK_BYTES = 1 << 20  # chunks of one row make reading slow; 1 MiB fits HDF5's chunk cache
OFF_PX = 0.05  # by which coordinates that were computed may miss a whole pixel


@dataclass(frozen=True)
class SlideDescriptors:
    """The descriptors of one slide: ``features`` (n, d), ``coords`` (n, 2), all attributes."""

    features: NDArray[np.float32]
    coords: NDArray[np.int64]
    attrs: dict[str, Any]


def descriptor_path(folder: str | Path, slide_id: str) -> Path:
    """Where the descriptors of a slide are: always directly inside ``folder``.

    Characters that could lead elsewhere, or that some file systems refuse, are percent-encoded,
    so no two slides share a file.

    Example:
        >>> descriptor_path("out", "tumor_001").as_posix()
        'out/tumor_001.h5'
        >>> descriptor_path("out", "../x").as_posix()
        'out/%2E.%2Fx.h5'
    """
    if not slide_id:
        raise DescriptorError("A tile has an empty slide_id; give every slide a name.")
    name = re.sub(
        r'^\.|[\x00-\x1f\x7f<>:"/\\|?*%\ud800-\udfff]', lambda c: f"%{ord(c[0]):02X}", slide_id
    )
    return Path(folder) / f"{name}.h5"


def write_descriptors(
    folder: str | Path,
    slide_id: str,
    features: NDArray[Any],
    coords: NDArray[Any],
    attrs: Mapping[str, Any] | None = None,
    coords_attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write the descriptors of one slide, all or nothing, and return the file's path.

    Args:
        folder: Created if need be.
        slide_id: The slide's name; see :func:`descriptor_path`.
        features: Descriptors, (n, d), stored as float32.
        coords: Top-left corners (x, y), level-0 px, (n, 2).
        attrs: What made the descriptors: JSON, kept as the file's attribute ``provenance``.
        coords_attrs: Attributes of ``coords``, such as TRIDENT's ``patch_size``.

    Raises:
        DescriptorError: If the shapes do not fit, or a value is not finite.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> path = write_descriptors(folder, "a", np.ones((3, 128)), np.zeros((3, 2), int))
        >>> load_slide(path).features.shape
        (3, 128)
    """
    path = descriptor_path(folder, slide_id)
    features = np.asarray(features, np.float32)
    check(features, coords, f"the descriptors of {slide_id!r}", "the encoder's output")
    rows = max(1, min(len(features), CHUNK_BYTES // max(1, features.shape[1] * 4)))
    # Made in memory: where a disk is full, HDF5 itself ends the whole process.
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file.attrs["slide_id"] = path.stem  # the name, but for characters HDF5 refuses too
        file.attrs["provenance"] = canonical(attrs or {})
        for name, data in (("features", features), ("coords", _whole_px(coords))):
            width = data.shape[1]
            file.create_dataset(name, data=data, chunks=(rows, width), maxshape=(None, width))
        file["coords"].attrs.update({"name": path.stem, **(coords_attrs or {})})
    with atomic_path(path) as temporary:
        temporary.write_bytes(made.getbuffer())
    return path


def patch_attrs(tiles: pd.DataFrame, slide_id: str, folder: str | Path) -> dict[str, Any]:
    """What TRIDENT writes about its patches: attributes of ``coords``, beside ``name``.

    Magnification is 10 over the um per pixel, whatever the objective was called. The slide's size
    is there if the table knows it, which it does for slides that sslpath has tiled.

    Args:
        tiles: The table of tiles.
        slide_id: One of its slides.
        folder: Where the descriptors go.

    Example:
        >>> from sslpath.table import make_table
        >>> tiles = make_table(
        ...     {"slide_id": ["a"], "x": 0, "y": 0, "size": 448, "slide_mpp": 0.25},
        ...     mpp=0.5, tile_px=224, source={})
        >>> about = patch_attrs(tiles, "a", "out")
        >>> about["level0_magnification"], about["target_magnification"], about["overlap"]
        (40.0, 20.0, 0)
    """
    first = tiles[tiles["slide_id"] == slide_id].iloc[0]
    tile_px = int(tiles.attrs["tile_px"])
    where = tiles.attrs["source"].get("slides", {}).get(slide_id, {})
    about: dict[str, Any] = {
        "patch_size": tile_px,
        "patch_size_level0": int(first["size"]),
        "level0_magnification": 10 / float(first["slide_mpp"]),
        "target_magnification": 10 / float(tiles.attrs["mpp"]),
        "overlap": max(0, tile_px - int(where.get("stride_px", tile_px))),
        "savetodir": as_utf8(str(Path(folder).resolve())),
    }
    if "width" in where and "height" in where:
        about["level0_width"] = int(where["width"])
        about["level0_height"] = int(where["height"])
    return about


def load_slide(path: str | Path, *, max_bytes: int = MAX_BYTES) -> SlideDescriptors:
    """Read one file of descriptors: made by sslpath, CLAM or TRIDENT.

    Args:
        path: The file.
        max_bytes: Refuse what would take more memory than this: a small file can claim any size.

    Raises:
        DescriptorError: If the file is missing, cut short, holds something else, NaN, or more than
            ``max_bytes``.
    """
    with _opened(path) as file:
        attrs = _attributes(file)
        for name in ("features", "coords"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise DescriptorError(_lacks(path, name, sorted(map(str, file))))
            if file[name].nbytes > max_bytes:
                raise DescriptorError(
                    f"{path} claims {file[name].nbytes / 1e9:,.0f} GB of `{name}`, more than "
                    f"the limit of {max_bytes / 1e9:,.0f} GB. If that is right, read it with "
                    f"load_slide(path, max_bytes=...); else {_remedy(attrs)}."
                )
            if not _whole(file[name]):
                raise DescriptorError(
                    f"{path} was cut short: rows of `{name}` were announced and never "
                    f"written: {_remedy(attrs)}."
                )
        features, coords = (_squeezed(file[name][()]) for name in ("features", "coords"))
    if features.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity, which is refused
            features = features.astype(np.float32)
    check(features, coords, str(path), f"the file; {_remedy(attrs)}")
    return SlideDescriptors(features, _whole_px(coords), attrs)


@contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """Open a file of descriptors; whatever HDF5 makes of it becomes an error that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise DescriptorError(_missing(Path(path))) from error
    except PermissionError as error:
        raise DescriptorError(f"No permission to read {path}.") from error
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError) as error:
        raise DescriptorError(
            f"Cannot read {path} as HDF5 ({error}): it is damaged, cut short or something else. "
            "Fetch it again; if sslpath made it, delete it and run `sslpath embed` again."
        ) from error


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file and its two datasets, but for those of types that NumPy lacks."""
    found: dict[str, Any] = {}
    for item in (file.get("coords"), file.get("features"), file):
        for name in item.attrs if item is not None else ():
            try:
                found[name] = item.attrs[name]
            except (OSError, RuntimeError, TypeError, ValueError, LookupError):
                continue
    return found


def read_attrs(path: str | Path) -> dict[str, Any]:
    """The attributes of a file of descriptors, without the descriptors.

    Raises:
        DescriptorError: If the file is missing or damaged.
    """
    with _opened(path) as file:
        return _attributes(file)


def _missing(path: Path) -> str:
    """What is said of a file that is not there: where it was looked for, and what is beside it."""
    folder, remedy = path.parent, "make them with `sslpath embed`."
    if not folder.is_dir():
        return f"No descriptors at {path}: there is no folder {folder}; {remedy}"
    if (folder / "h5_files" / path.name).exists():
        return f"No descriptors at {path}, but in {folder / 'h5_files'}: name that folder."
    near = sorted(each.name for each in folder.glob(f"{glob.escape(path.stem)}*"))
    if near:
        return (
            f"No descriptors at {path}. Beside it is {', '.join(near[:3])}, which is not read: "
            f"descriptors are HDF5 files called <slide_id>.h5; {remedy}"
        )
    return f"No descriptors at {path}; {remedy}"


def _lacks(path: str | Path, name: str, holds: list[str]) -> str:
    if name in holds:
        return (
            f"{path} has a group `{name}`, not a dataset, perhaps of several encoders. Write "
            "the one you want as `features` (n, d) beside `coords` (n, 2), or make others with "
            "`sslpath embed`."
        )
    if name == "features" and "coords" in holds:
        return (
            f"{path} holds places of tiles and no descriptors of them (`coords` without "
            "`features`), as the patches of CLAM and TRIDENT do. Name the folder of features, or "
            "make them with `sslpath embed`."
        )
    return (
        f"{path} has no dataset `{name}`; it holds {holds}. Descriptors are `features` (n, d) and "
        "`coords` (n, 2), one file per slide: make them with `sslpath embed`, CLAM or TRIDENT."
    )


def _squeezed(values: NDArray[Any]) -> NDArray[Any]:
    """Without axes of length 1 beyond two: (1, n, d), (n, 1, d) and (n, d, 1, 1) become (n, d)."""
    while values.ndim > 2 and 1 in values.shape:
        # The last first: of a single tile, (1, d, 1, 1), the first one counts the tiles.
        axis = -1 if values.shape[-1] == 1 else values.shape.index(1)
        values = values.squeeze(axis)
    return values


def _near_whole_px(coords: NDArray[Any]) -> bool:
    there = (coords >= -(2.0**53)) & (coords <= 2.0**53)  # neither NaN nor out of all reason
    return bool(there.all()) and bool((np.abs(coords - np.rint(coords)) <= OFF_PX).all())


def _whole_px(coords: Any) -> NDArray[np.int64]:
    coords = np.asarray(coords)
    whole = np.rint(coords) if coords.dtype.kind == "f" else coords
    return np.asarray(whole, np.int64)


def load_slide_apart(path: str | Path, *, timeout_s: float = 60.0) -> SlideDescriptors:
    """As :func:`load_slide`, in a process of its own: for a file that is not trusted.

    A few damaged bytes can make the HDF5 library itself crash, or go round in a circle.

    Args:
        path: The file.
        timeout_s: Seconds after which the process is ended.

    Raises:
        DescriptorError: As :func:`load_slide`; also if the process crashes or takes too long.
    """
    pool = ProcessPool(1)
    try:
        return load_in(pool, path, timeout_s)
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def load_in(pool: ProcessPool, path: str | Path, timeout_s: float) -> SlideDescriptors:
    """As :func:`load_slide_apart`, in a pool that serves for many files."""
    future = pool.schedule(load_slide, args=[path], timeout=timeout_s)
    try:
        found: SlideDescriptors = future.result()
    except ProcessExpired as error:
        raise DescriptorError(
            f"Reading {path} crashed the process: the file is damaged. Fetch it again; if sslpath "
            "made it, delete it and run `sslpath embed` again."
        ) from error
    except TimeoutError as error:
        raise DescriptorError(
            f"Reading {path} took longer than {timeout_s:g} s: the file is damaged, or its disk "
            "hangs. Fetch it again; if sslpath made it, delete it and run `sslpath embed` again."
        ) from error
    return found


def made_by_sslpath(attrs: Mapping[str, Any]) -> bool:
    """Whether these are attributes as :func:`write_descriptors` writes them."""
    about = _json_object(attrs.get("provenance"))
    if about is None or not isinstance(attrs.get("slide_id"), str):
        return False
    numbers = [about.get(key, 0) for key in ("mpp", "tile_px", "input_px")]
    return isinstance(about.get("arch", ""), str) and all(
        isinstance(one, int | float) for one in numbers
    )


def provenance_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What made a file of descriptors, by its attributes; empty for files of other programs.

    Example:
        >>> provenance_of({"slide_id": "a", "provenance": '{"arch": "rgb"}'})
        {'arch': 'rgb'}
        >>> provenance_of({"provenance": "CLAM v1"})
        {}
    """
    return (_json_object(attrs.get("provenance")) or {}) if made_by_sslpath(attrs) else {}


def _json_object(text: Any) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if isinstance(text, str) else None
        canonical(found or {})  # numbers that are none are refused
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _remedy(attrs: Mapping[str, Any]) -> str:
    """What to do about a bad file: only what sslpath made is ever to be deleted."""
    if made_by_sslpath(attrs):
        return "delete it and run `sslpath embed` again"
    return "another program made it: make it again there, or make descriptors with `sslpath embed`"


def features_provenance(folder: str | Path, tiles: pd.DataFrame) -> dict[str, Any]:
    """What made the features in a folder, read from the file of the table's first slide there.

    Raises:
        DescriptorError: If no slide of the table has a file, or the file is damaged or does not
            say.
    """
    path = _first_file(folder, tiles)
    if path is None:
        raise DescriptorError(
            f"No features of these slides in {folder}; make them with "
            "`sslpath embed TILES --encoder imagenet --out DIR`."
        )
    about = provenance_of(read_attrs(path))
    if "arch" not in about:
        raise DescriptorError(
            f"{path} does not say which encoder made it; compute the features with "
            "`sslpath embed --encoder imagenet`."
        )
    return about


def provenance_or_nothing(folder: str | Path, tiles: pd.DataFrame) -> dict[str, Any]:
    """As :func:`features_provenance`, but empty where there is no file or it does not say.

    Raises:
        DescriptorError: If the file is damaged.
    """
    path = _first_file(folder, tiles)
    about = {} if path is None else provenance_of(read_attrs(path))
    return about if "arch" in about else {}


def _first_file(folder: str | Path, tiles: pd.DataFrame) -> Path | None:
    paths = (descriptor_path(folder, str(slide_id)) for slide_id in tiles["slide_id"].unique())
    return next((path for path in paths if path.exists()), None)


def check_replaceable(folder: str | Path, slide_ids: Iterable[str]) -> None:
    """Refuse to write descriptors of slides over files that sslpath did not make.

    Raises:
        DescriptorError: If there are such files, or damaged ones that might be such.
    """
    foreign = []
    for slide_id in slide_ids:
        path = descriptor_path(folder, slide_id)
        try:
            if path.exists() and path.stat().st_size and not made_by_sslpath(read_attrs(path)):
                foreign.append((path, "was not made by sslpath"))
        except DescriptorError:
            foreign.append((path, "cannot be read, so sslpath may not have made it"))
    if foreign:
        (path, why), others = foreign[0], len(foreign) - 1
        more = f" (and {others} more files there)" if others else ""
        raise DescriptorError(
            f"{path} is there and {why}{more}: it is not overwritten. Choose another folder "
            "(--out), or move it away if it is not needed."
        )


def _whole(data: h5py.Dataset) -> bool:
    """Whether every row was written; HDF5 hands out zeros for those that were not."""
    if data.chunks is None:
        return bool(data.size == 0 or data.id.get_storage_size() > 0)
    wanted = math.prod(-(-n // step) for n, step in zip(data.shape, data.chunks, strict=True))
    return bool(data.id.get_num_chunks() == wanted)


def stored_bytes(folder: str | Path) -> float:
    """Bytes on disk for each descriptor in a folder, everything in its files included.

    Files that hold no descriptors are left out, with a warning.

    Raises:
        DescriptorError: If there is none.
    """
    size = tiles = 0
    for path in sorted(Path(folder).glob("[!.]*.h5")):
        try:
            tiles += _count(path)
            size += path.stat().st_size
        except DescriptorError as error:
            warnings.warn(f"Not counted: {error}", stacklevel=2)
    if not tiles:
        raise DescriptorError(f"No descriptors in {folder}; make them with `sslpath embed`.")
    return size / tiles


def _count(path: Path) -> int:
    """How many descriptors a file holds, by its shapes alone."""
    with _opened(path) as file:
        for name in ("features", "coords"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise DescriptorError(_lacks(path, name, sorted(map(str, file))))
        return int(file["coords"].size) // 2


def check(features: Any, coords: Any, what: str, blame: str) -> None:
    """Refuse arrays that are no descriptors: ``what`` holds them, ``blame`` is what to look at."""
    features, coords = np.asarray(features), np.asarray(coords)
    problem = ""
    if features.ndim != 2 or features.shape[1] == 0 or features.dtype.kind != "f":
        problem = f"`features` is {features.dtype} of shape {features.shape}, not floats (n, d)"
        if features.dtype == np.uint16:
            problem += " (bfloat16 kept as whole numbers? It has to be turned into float32)"
    elif coords.shape != (len(features), 2) or coords.dtype.kind not in "iuf":
        problem = (
            f"`coords` is {coords.dtype} of shape {coords.shape}, not integers ({len(features)}, 2)"
        )
    elif not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        problem = f"{bad} of {len(features)} descriptors hold NaN or infinity"
    elif not _near_whole_px(coords):
        problem = "`coords` are not whole level-0 pixels"
    if problem:
        raise DescriptorError(f"Bad descriptors in {what}: {problem}. Check {blame}.")


def canonical(attrs: Mapping[str, Any]) -> str:
    """One text for one provenance, whatever the order of its keys."""
    return json.dumps(dict(attrs), sort_keys=True, allow_nan=False)


def read_failures(folder: str | Path) -> pd.DataFrame:
    """Tiles that could not be read: columns ``slide_id``, ``x``, ``y``, ``error``; often empty.

    Raises:
        DescriptorError: If ``failed.csv`` is damaged, or something that sslpath did not write.
    """
    path = Path(folder) / FAILED
    if not path.exists():
        return failure_table([])
    try:
        frame = pd.read_csv(path, dtype={"slide_id": "str"}, keep_default_na=False)
        if list(frame.columns) != list(FAILURE):
            raise ValueError(f"its columns are {', '.join(map(str, frame.columns))}")
        return failure_table(list(frame.itertuples(index=False, name=None)))
    except (ValueError, TypeError, OverflowError) as error:
        raise DescriptorError(
            f"{path} is not a list of failed tiles as sslpath writes it ({error}). It is left "
            "alone: move it away, or choose another folder."
        ) from error


def failure_table(rows: list[Any]) -> pd.DataFrame:
    """Rows (slide_id, x, y, error) as a table."""
    clean = [(*row[:3], as_utf8(str(row[3]))) for row in rows]
    return pd.DataFrame(clean, columns=list(FAILURE)).astype(FAILURE)


def write_failures(folder: str | Path, rows: list[Any]) -> None:
    """Write ``failed.csv``; without a failure there is none.

    Raises:
        DescriptorError: If there is one that sslpath did not write.
    """
    path = Path(folder) / FAILED
    read_failures(folder)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        failure_table(rows).to_csv(temporary, index=False)


def as_utf8(text: str) -> str:
    r"""Text with what UTF-8 cannot hold, such as odd bytes of a file's name, as escapes.

    Example:
        >>> as_utf8("slide\udcff")
        'slide\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
