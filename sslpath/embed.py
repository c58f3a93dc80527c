"""Tiles to descriptors, for every method: the network's, ImageNet's, a random network's, RGB's.

Each function fills a folder with one HDF5 file per slide (see :mod:`sslpath.descriptors`) whose
provenance says what made it. Complete files of the same provenance are kept, files that sslpath
did not make are refused.
"""

import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sslpath.augment import ELSEWHERE, Augmentation, augment_pixels
from sslpath.descriptor_files import (
    check_replaceable,
    features_provenance,
    patch_attrs,
    write_descriptors,
    write_failures,
)
from sslpath.descriptors import (
    compute,
    other_failures,
    read_descriptors,
    rgb_features,
    slides_of,
)
from sslpath.errors import WeightsError
from sslpath.files import only_one, sha256
from sslpath.imagenet import Encoder, check_provenance
from sslpath.model import SiameseNetwork, load_model
from sslpath.runs import CHECKPOINT, read_settings
from sslpath.sources import TileSource


def embed_rgb(
    tiles: pd.DataFrame, source: TileSource, folder: str | Path, **reading: Any
) -> pd.DataFrame:
    """Mean and spread of RGB, six numbers a tile; returns the tiles that failed.

    ``reading`` is passed on to :func:`sslpath.descriptors.compute`, here and below: ``batch``,
    ``workers``, ``progress``.
    """
    return compute(tiles, rgb_features, source, folder, attrs={"arch": "rgb"}, **reading)


def embed_encoder(
    tiles: pd.DataFrame,
    source: TileSource,
    encoder: Encoder,
    folder: str | Path,
    **reading: Any,
) -> pd.DataFrame:
    """Features of an ImageNet or a random encoder; returns the tiles that failed."""
    return compute(tiles, encoder.start, source, folder, attrs=encoder.provenance, **reading)


VIEWS = "views"  # inside a folder of features: folders 0, 1 ... of features of augmented views


def view_folders(folder: str | Path) -> list[Path]:
    """Folders with features of augmented views that belong to a folder of features, in order."""
    found = (path for path in (Path(folder) / VIEWS).glob("*") if path.name.isdecimal())
    return sorted(found, key=lambda path: int(path.name))


def embed_views(
    tiles: pd.DataFrame,
    source: TileSource,
    encoder: Encoder,
    folder: str | Path,
    *,
    augmentation: Augmentation = ELSEWHERE,
    seed: int = 0,
    **reading: Any,
) -> pd.DataFrame:
    """As :func:`embed_encoder`, of one augmented view of each tile.

    A head that also learns from a few such folders (``views`` of :func:`sslpath.training.train`)
    stays right when stain, focus, compression or pixel size change. What is drawn for a tile
    depends on its pixels and on ``seed`` alone, so an interrupted call goes on with the same views,
    whatever its ``batch``.
    """

    def view(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        views = [_view(pixels[i : i + 1], seed, augmentation) for i in range(len(pixels))]
        return encoder.encode(np.concatenate(views))

    about = {
        **encoder.provenance,
        "augmentation": asdict(augmentation),
        "view_seed": seed,
        "view_of": "tile",  # views drawn batch by batch, as once, did not say
    }
    return compute(tiles, view, source, folder, attrs=about, **reading)


def _view(tile: NDArray[np.uint8], seed: int, augmentation: Augmentation) -> NDArray[np.uint8]:
    """An augmented view of a tile ``(1, h, w, 3)``."""
    # PyTorch's generator on the CPU looks at 32 bits of its seed.
    both = np.random.SeedSequence([seed, zlib.crc32(tile.tobytes())]).generate_state(1)
    generator = torch.Generator().manual_seed(int(both[0]))
    return augment_pixels(tile, generator, augmentation)


def load_run(run: str | Path) -> tuple[SiameseNetwork, dict[str, Any]]:
    """The network of a finished run, and the provenance of the descriptors that it makes.

    Raises:
        WeightsError: If the run has no finished network.
    """
    path = Path(run) / CHECKPOINT
    network = load_model(path)
    config = network.config
    about = {
        "network": sha256(path),
        "arch": config.arch,
        "trunk": config.trunk,
        "descriptor_dim": config.descriptor_dim,
        "input_px": config.input_px,
        "train_seed": read_settings(run).get("training", {}).get("seed"),
    }
    return network, about


def embed_run(
    tiles: pd.DataFrame,
    source: TileSource,
    run: str | Path,
    folder: str | Path,
    *,
    features: str | Path | None = None,
    encoder: Encoder | None = None,
    device: str | torch.device = "cpu",
    **reading: Any,
) -> pd.DataFrame:
    """Descriptors of a trained network; returns the tiles that failed.

    Args:
        tiles: Table of tiles.
        source: Where their pixels are.
        run: Folder of a finished run.
        folder: Where the descriptors go.
        features: With a frozen trunk: a folder of features of its encoder, already computed.
        encoder: With a frozen trunk and no ``features``: the encoder.
        device: Where to compute.
        reading: Passed on to :func:`sslpath.descriptors.compute`.

    Raises:
        WeightsError: If the trunk is frozen and neither features nor encoder are those that the
            head was trained on.
    """
    network, about = load_run(run)
    network.to(device)
    if network.trunk is not None:
        return compute(tiles, network.start, source, folder, attrs=about, **reading)
    if features is not None:
        check_provenance(network.config.encoder, features_provenance(features, tiles), str(run))
        known, found = read_descriptors(features, tiles, missing="drop")
        failed = tiles.loc[~found, ["slide_id", "x", "y"]]
        failed = failed.assign(error=f"no features in {features}")
        with only_one(folder):
            others = other_failures(folder, tiles)
            check_replaceable(folder, map(str, tiles["slide_id"].unique()))  # before the work
            store(tiles[found], network.encode(known), folder, about)
            write_failures(folder, others + list(failed.itertuples(index=False, name=None)))
        return failed
    if encoder is None:
        raise WeightsError(
            f"The trunk of {run} is frozen: name the features of its encoder "
            f"({network.config.encoder.get('arch')}) with --features, or its weights with "
            "--imagenet-weights."
        )
    check_provenance(network.config.encoder, encoder.provenance, str(run))

    def both(pixels: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        features = encoder.start(pixels)
        return lambda: network.encode(features())

    return compute(tiles, both, source, folder, attrs=about, **reading)


def store(
    tiles: pd.DataFrame, descriptors: NDArray[np.float32], folder: str | Path, about: dict[str, Any]
) -> None:
    """Write descriptors ``(n, d)`` that are already there, aligned to ``tiles``.

    Args:
        tiles: Table of n tiles.
        descriptors: ``(n, d)``.
        folder: Where the files go.
        about: What made the descriptors.

    Raises:
        DescriptorError: If a file in the place of one of these was not made by sslpath.
    """
    check_replaceable(folder, map(str, tiles["slide_id"].unique()))
    made_by = {**about, "mpp": tiles.attrs["mpp"], "tile_px": tiles.attrs["tile_px"]}
    for slide_id, at, rows in slides_of(tiles):
        patch = patch_attrs(rows, slide_id, folder)
        once = ~rows.duplicated(["x", "y"]).to_numpy()
        coords = rows.loc[once, ["x", "y"]].to_numpy()
        write_descriptors(folder, slide_id, descriptors[at[once]], coords, made_by, patch)
