"""ImageNet features of the demo's phantom tiles, as they come with sslpath.

The demo and the book must run where no weights can be downloaded. So the MobileNetV2 features of
the phantom tiles lie beside this module, computed by ``sslpath data features`` from ImageNet
weights whose checksum is recorded. They are used only for tiles that are the same: each row is
matched by slide and position, and pixels are compared through a small fingerprint.

Features are kept as one byte a number, the square root scaled by the column's largest value. What
that costs is measured by :func:`write_shipped` and stands in the provenance.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sslpath.errors import DataError
from sslpath.files import atomic_path
from sslpath.sources import TileSource

# Of a checkout; an installed package has none.
DATA = Path(__file__).resolve().parents[2] / "data"
SHIPPED = Path(__file__).with_name("phantom_mobilenet_v2.h5")
# Features of one augmented view of each training tile, for generic self-supervision: the book
# alone needs them.
SHIPPED_VIEWS = DATA / "features" / "phantom_mobilenet_v2_views.h5"
BLOCKS = 4
TOLERANCE = (
    4.0  # grey levels of a block's mean: JPEG and rounding stay below, another slide does not
)
CHECKED_TILES = 20  # compared on each slide
KEY = ["slide_id", "x", "y", "size"]


def fingerprint(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean colour of 4 x 4 blocks of each tile.

    Args:
        pixels: Tiles, ``(n, h, w, 3)``.

    Returns:
        ``(n, 4, 4, 3)``, grey levels.

    Example:
        >>> fingerprint(np.full((1, 8, 8, 3), 7, np.uint8)).shape
        (1, 4, 4, 3)
    """
    n, h, w, _ = pixels.shape
    whole = pixels[:, : h // BLOCKS * BLOCKS, : w // BLOCKS * BLOCKS].astype(np.float32)
    blocks = whole.reshape(n, BLOCKS, h // BLOCKS, BLOCKS, w // BLOCKS, 3)
    return np.asarray(blocks.mean((2, 4)).round(), np.uint8)


def write_shipped(
    path: str | Path,
    tiles: pd.DataFrame,
    features: NDArray[np.float32],
    source: TileSource,
    provenance: dict[str, Any],
) -> float:
    """Write features of ``tiles`` in the compact form.

    Args:
        path: The file to write.
        tiles: Table of n tiles.
        features: ``(n, d)``, none negative.
        source: Where the pixels are, for the fingerprints.
        provenance: What the features are: architecture, weights and their checksum, input size.

    Returns:
        The mean cosine between the features and what the file gives back.

    Raises:
        DataError: If a feature is negative.
    """
    if features.min() < 0:
        raise DataError("The compact form holds features after a ReLU; some are negative.")
    scale = features.max(0)
    packed = np.rint(255 * np.sqrt(features / np.where(scale > 0, scale, 1))).astype(np.uint8)
    cosine = _mean_cosine(features, _unpack(packed, scale))
    step = 512
    prints = [fingerprint(source.read(tiles[i : i + step])) for i in range(0, len(tiles), step)]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("features", data=packed, compression="gzip", compression_opts=9)
        file["scale"] = scale.astype(np.float32)
        file["fingerprint"] = np.concatenate(prints)
        file["slide_id"] = tiles["slide_id"].to_numpy(object)
        for name in ("x", "y", "size"):
            file[name] = tiles[name].to_numpy(np.int32)
        about = {**provenance, "mean_cosine_to_float32": round(cosine, 6)}
        file.attrs["provenance"] = json.dumps(about)
    return cosine


def shipped_features(
    tiles: pd.DataFrame, source: TileSource, path: str | Path = SHIPPED
) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, Any]]:
    """The shipped features of ``tiles``, after checking that the slides are the same.

    Args:
        tiles: Table of n tiles of phantom slides.
        source: Where the pixels are.
        path: The file of features.

    Returns:
        Features ``(m, d)``, which of the n rows they belong to ``(n,)``, and their provenance. A
        row at the very edge of the tissue may lack features where arithmetic rounds otherwise.

    Raises:
        DataError: If the file is missing, or the slides at hand are not those of the features.
    """
    remedy = "Compute the features instead: pass --imagenet-weights FILE."
    try:
        with h5py.File(path) as file:
            stored = pd.DataFrame({name: file[name][:] for name in KEY})
            packed, scale = file["features"][:], file["scale"][:]
            prints = file["fingerprint"][:]
            provenance = json.loads(file.attrs["provenance"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"Cannot read the shipped features {path}: {error}. {remedy}") from error
    stored["slide_id"] = stored["slide_id"].str.decode("utf-8").astype("str")
    stored["row"] = np.arange(len(stored))
    rows = tiles[KEY].merge(stored, on=KEY, how="left")["row"].to_numpy(np.float64)
    found = np.isfinite(rows)
    if found.mean() < 0.95:
        raise DataError(
            f"Only {found.sum()} of {len(tiles)} tiles have features in {path}: "
            f"these are other slides or another grid. {remedy}"
        )
    rows_found = rows[found].astype(int)
    _compare(tiles[found], prints[rows_found], source, remedy)
    return _unpack(packed[rows_found], scale), found, provenance


def _compare(
    tiles: pd.DataFrame, prints: NDArray[np.uint8], source: TileSource, remedy: str
) -> None:
    """Raise unless the pixels of some tiles of each slide agree with their fingerprints."""
    positions = pd.Series(np.arange(len(tiles)))
    for slide_id, group in positions.groupby(tiles["slide_id"].to_numpy()):
        some = group.to_numpy()[np.linspace(0, len(group) - 1, CHECKED_TILES).astype(int)]
        here = fingerprint(source.read(tiles.iloc[some])).astype(float)
        worst = np.abs(here - prints[some]).max()
        if worst > TOLERANCE:
            raise DataError(
                f"{slide_id} is not the slide whose features are shipped: a block of a tile "
                f"differs by {worst:.0f} grey levels. {remedy}"
            )


def _unpack(packed: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((packed.astype(np.float32) / 255) ** 2 * scale, np.float32)


def _mean_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(lengths, 1e-12)).mean())
