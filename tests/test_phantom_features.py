"""Shipped features: used only for the slides that they were computed from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from sslpath.datasets.phantom import make_phantom
from sslpath.datasets.phantom_features import SHIPPED, shipped_features, write_shipped
from sslpath.errors import DataError
from sslpath.slides import Slide
from sslpath.sources import TileSource, open_source
from sslpath.tiling import tile_slides

SIZE = {"width": 1024, "height": 768}


def tiled(folder: Path, seed: int) -> tuple[pd.DataFrame, TileSource]:
    paths = [make_phantom(folder, f"s{i}", seed + i, **SIZE) for i in range(2)]
    tiles, _ = tile_slides(
        [Slide(path) for path in paths], mpp=0.5, tile_px=112, min_tissue=0, progress=False
    )
    return tiles, open_source(tiles)


Stored = tuple[Path, pd.DataFrame, TileSource, NDArray[np.float32]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("phantoms")
    tiles, source = tiled(folder, seed=5)
    features = np.random.default_rng(0).gamma(0.5, 1, (len(tiles), 40)).astype(np.float32)
    features[:, 7] = 0  # a feature that never fires
    path = folder / "features.h5"
    assert write_shipped(path, tiles, features, source, {"arch": "mine"}) > 0.9999
    return path, tiles, source, features


def test_features_come_back_in_the_order_of_the_rows(stored: Stored) -> None:
    path, tiles, source, features = stored
    order = np.random.default_rng(1).permutation(len(tiles))
    found, mask, about = shipped_features(tiles.iloc[order], source, path)
    assert mask.all()
    assert about["arch"] == "mine"
    scale = features.max(0)
    # Half a step of the square root's 255 levels.
    assert (np.abs(np.sqrt(found) - np.sqrt(features[order])) <= np.sqrt(scale) / 510 + 1e-6).all()


def test_the_same_slides_made_again_match(stored: Stored, tmp_path: Path) -> None:
    path = stored[0]
    tiles, source = tiled(tmp_path, seed=5)
    assert shipped_features(tiles, source, path)[1].all()


def test_other_slides_of_the_same_name_are_refused(stored: Stored, tmp_path: Path) -> None:
    tiles, source = tiled(tmp_path, seed=50)
    with pytest.raises(DataError, match="not the slide whose features are shipped"):
        shipped_features(tiles, source, stored[0])


def test_another_grid_is_refused(stored: Stored) -> None:
    path, tiles, source, _ = stored
    with pytest.raises(DataError, match="another grid"):
        shipped_features(tiles.assign(x=tiles["x"] + 1), source, path)


def test_a_few_tiles_without_features_are_left_out(stored: Stored, tmp_path: Path) -> None:
    _, tiles, source, features = stored
    fewer = tmp_path / "fewer.h5"
    write_shipped(fewer, tiles.iloc[1:], features[1:], source, {})
    found, mask, _ = shipped_features(tiles, source, fewer)
    assert list(np.flatnonzero(~mask)) == [0]
    assert len(found) == len(tiles) - 1


def test_a_damaged_file_names_the_remedy(stored: Stored, tmp_path: Path) -> None:
    path, tiles, source, _ = stored
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="--imagenet-weights"):
        shipped_features(tiles, source, cut)


def test_negative_features_are_refused(stored: Stored, tmp_path: Path) -> None:
    _, tiles, source, features = stored
    with pytest.raises(DataError, match="negative"):
        write_shipped(tmp_path / "f.h5", tiles, features - 1, source, {})


def test_what_is_shipped_is_small_and_says_where_it_comes_from() -> None:
    assert SHIPPED.stat().st_size < 12_000_000
    import h5py

    with h5py.File(SHIPPED) as file:
        text = file.attrs["provenance"]
    for word in ("mobilenet_v2", "sha256", "mean_cosine_to_float32"):
        assert word in text
