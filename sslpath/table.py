"""The table of tiles: one row a tile, whatever the tiles come from.

A pandas DataFrame, stored as Parquet. Everything after tiling sees only this table and the source
that its metadata names; see :mod:`sslpath.sources`.

| column | type | meaning |
| --- | --- | --- |
| ``slide_id`` | str | the file's stem |
| ``patient_id`` | str | whom to leave out in retrieval; the slide when nothing better is known |
| ``x``, ``y`` | int | top-left corner, level-0 px |
| ``size`` | int | side of the tile, level-0 px (rounded) |
| ``slide_mpp`` | float | um per level-0 px of this slide |
| ``tissue`` | float | fraction of the tile that is tissue |
| ``label`` | Int8 | 1 tumour, 0 not, missing if unknown |
| ``region`` | str or missing | kind of tissue, where ground truth says so |
| ``split`` | str | ``train``, ``test``, or empty |

``tiles.attrs`` holds ``mpp`` (target um per pixel), ``tile_px`` (side of a tile in pixels at that
mpp) and ``source`` (where the pixels are).
"""

import hashlib
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sslpath.errors import TableError, counted
from sslpath.files import atomic_path

DTYPES = {
    "slide_id": "str",
    "patient_id": "str",
    "x": "int64",
    "y": "int64",
    "size": "int64",
    "slide_mpp": "float64",
    "tissue": "float32",
    "label": "Int8",
    "region": "str",
    "split": "str",
}
KEY = ("slide_id", "x", "y")  # what tells a tile from any other
DEFAULTS: dict[str, Any] = {"tissue": 1.0, "label": pd.NA, "region": pd.NA, "split": ""}


def make_table(
    columns: dict[str, Any], *, mpp: float, tile_px: int, source: dict[str, Any]
) -> pd.DataFrame:
    """Build a table of tiles; ``patient_id`` defaults to the slide, the rest to unknown.

    Args:
        columns: Column name to values; see the module's docstring.
        mpp: Target um per pixel at which tiles are read.
        tile_px: Side of a tile, in pixels at ``mpp``.
        source: Where the pixels are: JSON that :func:`sslpath.sources.open_source` understands.

    Raises:
        TableError: If a column without a default is missing, or one is not in the list.

    Example:
        >>> tiles = make_table(
        ...     {"slide_id": ["a"], "x": [0], "y": [0], "size": [224], "slide_mpp": [0.5]},
        ...     mpp=0.5, tile_px=224, source={})
        >>> tiles.loc[0, "patient_id"], tiles.attrs["tile_px"]
        ('a', 224)
    """
    unknown = sorted(set(columns) - set(DTYPES))
    if unknown:
        raise TableError(f"A table of tiles has no column {unknown}; it has {list(DTYPES)}.")
    frame = pd.DataFrame(columns)
    if "patient_id" not in frame and "slide_id" in frame:
        frame["patient_id"] = frame["slide_id"]
    for name, value in DEFAULTS.items():
        if name not in frame:
            frame[name] = value
    frame.attrs = {"mpp": float(mpp), "tile_px": int(tile_px), "source": source}
    return check(frame)


def check(tiles: pd.DataFrame, where: str = "this table") -> pd.DataFrame:
    """Return ``tiles`` with the columns in their order and types, or say what is wrong with it.

    Raises:
        TableError: If a column or a piece of metadata is missing or has the wrong type.
    """
    missing = [name for name in DTYPES if name not in tiles]
    if missing:
        raise TableError(f"Not a table of tiles: {where} lacks the columns {missing}.")
    lost = [key for key in ("mpp", "tile_px", "source") if key not in tiles.attrs]
    if lost:
        raise TableError(
            f"Not a table of tiles: {where} lacks the metadata {lost} in its `attrs`. "
            "Make tables with `sslpath tile`; pandas.merge and some others drop attrs."
        )
    attrs = tiles.attrs
    try:
        tiles = tiles[list(DTYPES)].astype(DTYPES)
    except (ValueError, TypeError) as error:
        raise TableError(f"Not a table of tiles: {where}: {error}") from error
    tiles.attrs = attrs
    return tiles


def check_out(path: str | Path) -> None:
    """Refuse to write a table of tiles over something else, such as a slide.

    Raises:
        TableError: If the name does not end in ``.parquet``, or a folder or another file is there.
    """
    path = Path(path)
    if path.is_dir():
        raise TableError(f"{path} is a folder. Name the table in it: {path / 'tiles.parquet'}.")
    if path.suffix.lower() != ".parquet":
        raise TableError(f"A table of tiles is Parquet; let its name end in .parquet, not {path}.")
    if path.exists():
        try:
            schema = pq.read_schema(path)
        except (OSError, ValueError) as error:
            raise TableError(
                f"{path} is there and is no Parquet. Move it, or choose another name."
            ) from error
        if not set(KEY) <= set(schema.names) or b'"tile_px"' not in (schema.metadata or {}).get(
            b"PANDAS_ATTRS", b""
        ):
            raise TableError(
                f"{path} is there and is no table of tiles of sslpath; it has the columns "
                f"{', '.join(schema.names[:5])}. Move it, or choose another name."
            )
        if others := sorted(set(schema.names) - set(DTYPES)):
            raise TableError(
                f"{path} is there, with columns that sslpath did not make ({', '.join(others)}): "
                "it is not overwritten. Move it, or choose another name."
            )


def save_tiles(tiles: pd.DataFrame, path: str | Path) -> None:
    """Write a table of tiles as Parquet, metadata included; see :func:`check_out`."""
    check_out(path)
    with atomic_path(path) as temporary:
        check(tiles).reset_index(drop=True).to_parquet(temporary, index=False)


def load_tiles(path: str | Path) -> pd.DataFrame:
    """Read a table of tiles; a row that is there twice is read once, with a warning.

    Raises:
        TableError: If the file is missing, damaged, or something else, or has two rows of one tile
            that differ.
    """
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise TableError(f"No table of tiles at {path}; make one with `sslpath tile`.") from error
    except Exception as error:  # pyarrow raises many kinds on a damaged file
        raise TableError(f"Cannot read {path} as Parquet: {error}") from error
    return _each_once(check(frame, str(path)), path)


def _each_once(tiles: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    again = tiles.duplicated(list(KEY))
    if not again.any():
        return tiles
    first = tiles[again].iloc[0]
    if (again != tiles.duplicated()).any():
        raise TableError(
            f"{path} has rows of one tile that differ, such as those of {first['slide_id']} at "
            f"{first['x']}, {first['y']}. Make the table again with `sslpath tile`."
        )
    warnings.warn(
        f"{path} has {counted(int(again.sum()), 'row')} twice, such as {first['slide_id']} at "
        f"{first['x']}, {first['y']}; read once.",
        stacklevel=3,
    )
    once = tiles[~again].reset_index(drop=True)
    once.attrs = tiles.attrs
    return once


def centres_um(tiles: pd.DataFrame) -> NDArray[np.float64]:
    """Centres of the tiles, um from the slide's top-left corner, shape ``(n, 2)`` as (x, y).

    Distances make sense between tiles of one slide only.
    """
    corner = tiles[["x", "y"]].to_numpy(np.float64)
    half = tiles["size"].to_numpy(np.float64)[:, None] / 2
    return np.asarray((corner + half) * tiles["slide_mpp"].to_numpy(np.float64)[:, None])


def tile_um(tiles: pd.DataFrame) -> float:
    """Side of a tile in um: the unit "tile width" in which the paper's distances are quoted."""
    return float(tiles.attrs["tile_px"]) * float(tiles.attrs["mpp"])


def fold(patient_id: str, folds: int = 5) -> int:
    """The fold of a patient, 0 to ``folds - 1``: the SHA-256 of the patient's id, modulo.

    It depends on nothing else, so any part of a data set splits the same way everywhere.

    Example:
        >>> fold("10253"), fold("9383")
        (0, 2)
    """
    return int(hashlib.sha256(patient_id.encode()).hexdigest(), 16) % folds


def split_by_patient(
    tiles: pd.DataFrame, test_folds: Collection[int] = (0, 1), folds: int = 5
) -> pd.DataFrame:
    """Set ``split``: patients of ``test_folds`` are ``test``, the others ``train``.

    Returns a new table; no patient is ever on both sides. By default about 40 % of the patients
    are ``test``; with few patients the share is left to chance.

    Example:
        >>> tiles = make_table(
        ...     {"slide_id": ["a", "b"], "patient_id": ["10253", "9383"], "x": 0, "y": 0,
        ...      "size": 224, "slide_mpp": 0.5}, mpp=0.5, tile_px=224, source={})
        >>> list(split_by_patient(tiles)["split"])
        ['test', 'train']
    """
    split = {
        patient: "test" if fold(patient, folds) in test_folds else "train"
        for patient in tiles["patient_id"].unique()
    }
    return tiles.assign(split=tiles["patient_id"].map(split).astype("str"))
