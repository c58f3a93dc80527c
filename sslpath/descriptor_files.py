"""Files of descriptors: one HDF5 file a slide, in the layout of CLAM and TRIDENT.

A file ``<slide_id>.h5`` holds ``features`` (n, d) float32 and ``coords`` (n, 2) integers: (x, y) of
the tile's top-left corner, level-0 px. What made the descriptors is its attribute ``provenance``.
Beside them ``failed.csv`` lists the tiles that could not be read.
"""

import io
import json
import math
import re
from collections.abc import Mapping
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
        for name, data in (("features", features), ("coords", np.asarray(coords, np.int64))):
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
        "savetodir": str(Path(folder).resolve()),
    }
    if "width" in where and "height" in where:
        about["level0_width"] = int(where["width"])
        about["level0_height"] = int(where["height"])
    return about


def load_slide(path: str | Path, *, max_bytes: int = MAX_BYTES) -> SlideDescriptors:
    """Read one file of descriptors: ours, CLAM's or TRIDENT's.

    Args:
        path: The file.
        max_bytes: Refuse what would take more memory than this: a small file can claim any size.

    Raises:
        DescriptorError: If the file is missing, cut short, holds something else, NaN, or more than
            ``max_bytes``.
    """
    try:
        with h5py.File(path, "r") as file:
            for name in ("features", "coords"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise DescriptorError(
                        f"{path} has no dataset `{name}`; it holds {sorted(file)}. "
                        "Descriptors are `features` (n, d) and `coords` (n, 2), one file a slide: "
                        "make them with `sslpath embed`, CLAM or TRIDENT."
                    )
                if file[name].nbytes > max_bytes:
                    raise DescriptorError(
                        f"{path} claims {file[name].nbytes / 1e9:,.0f} GB of `{name}`, more than "
                        f"the limit of {max_bytes / 1e9:,.0f} GB. If that is right, read it with "
                        "load_slide(path, max_bytes=...); else delete it and run `sslpath embed` "
                        "again."
                    )
                if not _whole(file[name]):
                    raise DescriptorError(
                        f"{path} was cut short: rows of `{name}` were announced and never "
                        "written. Delete it and run `sslpath embed` again."
                    )
            features, coords = file["features"][()], file["coords"][()]
            attrs = {**file["coords"].attrs, **file["features"].attrs, **file.attrs}
    except FileNotFoundError as error:
        raise DescriptorError(
            f"No descriptors at {path}; make them with `sslpath embed`."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise DescriptorError(
            f"Cannot read {path} as HDF5 ({error}). It was cut short or is something else: "
            "delete it and run `sslpath embed` again."
        ) from error
    check(features, coords, str(path), "the file; delete it and run `sslpath embed` again")
    return SlideDescriptors(features.astype(np.float32), coords.astype(np.int64), attrs)


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
            f"Reading {path} crashed the process: the file is damaged. Delete it and run "
            "`sslpath embed` again."
        ) from error
    except TimeoutError as error:
        raise DescriptorError(
            f"Reading {path} took longer than {timeout_s:g} s: the file is damaged, or its disk "
            "hangs. Delete it and run `sslpath embed` again."
        ) from error
    return found


def features_provenance(folder: str | Path, tiles: pd.DataFrame) -> dict[str, Any]:
    """What made the features in a folder, read from the file of the table's first slide there.

    Raises:
        DescriptorError: If no slide of the table has a file, or the file does not say.
    """
    for slide_id in tiles["slide_id"].unique():
        path = descriptor_path(folder, str(slide_id))
        if path.exists():
            about = json.loads(load_slide(path).attrs.get("provenance", "{}"))
            if "arch" not in about:
                raise DescriptorError(
                    f"{path} does not say which encoder made it; compute the features with "
                    "`sslpath embed --encoder imagenet`."
                )
            return dict(about)
    raise DescriptorError(
        f"No features of these slides in {folder}; make them with "
        "`sslpath embed TILES --encoder imagenet --out DIR`."
    )


def provenance_or_nothing(folder: str | Path, tiles: pd.DataFrame) -> dict[str, Any]:
    """As :func:`features_provenance`, but empty where the files do not say, such as CLAM's."""
    try:
        return features_provenance(folder, tiles)
    except DescriptorError:
        return {}


def _whole(data: h5py.Dataset) -> bool:
    """Whether every row was written; HDF5 hands out zeros for those that were not."""
    if data.chunks is None:
        return bool(data.size == 0 or data.id.get_storage_size() > 0)
    wanted = math.prod(-(-n // step) for n, step in zip(data.shape, data.chunks, strict=True))
    return bool(data.id.get_num_chunks() == wanted)


def stored_bytes(folder: str | Path) -> float:
    """Bytes on disk for each descriptor in a folder, everything included.

    Raises:
        DescriptorError: If there is none, or a file is damaged.
    """
    paths = sorted(Path(folder).glob("*.h5"))
    tiles = sum(len(load_slide(path).coords) for path in paths)
    if not tiles:
        raise DescriptorError(f"No descriptors in {folder}; make them with `sslpath embed`.")
    return sum(path.stat().st_size for path in paths) / tiles


def check(features: Any, coords: Any, what: str, blame: str) -> None:
    """Refuse arrays that are no descriptors: ``what`` holds them, ``blame`` is what to look at."""
    features, coords = np.asarray(features), np.asarray(coords)
    problem = ""
    if features.ndim != 2 or features.shape[1] == 0 or features.dtype.kind != "f":
        problem = f"`features` is {features.dtype} of shape {features.shape}, not floats (n, d)"
    elif coords.shape != (len(features), 2) or coords.dtype.kind not in "iuf":
        problem = (
            f"`coords` is {coords.dtype} of shape {coords.shape}, not integers ({len(features)}, 2)"
        )
    elif not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        problem = f"{bad} of {len(features)} descriptors hold NaN or infinity"
    elif not np.array_equal(coords, np.rint(coords)):
        problem = "`coords` are not whole level-0 pixels"
    if problem:
        raise DescriptorError(f"Bad descriptors in {what}: {problem}. Check {blame}.")


def canonical(attrs: Mapping[str, Any]) -> str:
    """One text for one provenance, whatever the order of its keys."""
    return json.dumps(dict(attrs), sort_keys=True, allow_nan=False)


def read_failures(folder: str | Path) -> pd.DataFrame:
    """Tiles that could not be read: columns ``slide_id``, ``x``, ``y``, ``error``; often empty."""
    path = Path(folder) / FAILED
    if not path.exists():
        return failure_table([])
    try:
        frame = pd.read_csv(path, dtype={"slide_id": "str"}, keep_default_na=False)
        return failure_table(list(frame[list(FAILURE)].itertuples(index=False, name=None)))
    except (ValueError, KeyError) as error:
        raise DescriptorError(f"Cannot read {path} ({error}); delete it.") from error


def failure_table(rows: list[Any]) -> pd.DataFrame:
    """Rows (slide_id, x, y, error) as a table."""
    return pd.DataFrame(rows, columns=list(FAILURE)).astype(FAILURE)


def write_failures(folder: str | Path, rows: list[Any]) -> None:
    """Write ``failed.csv``; without a failure there is none."""
    path = Path(folder) / FAILED
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        failure_table(rows).to_csv(temporary, index=False)
