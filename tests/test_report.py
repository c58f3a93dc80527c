"""What is compared and drawn, and what is left out because the tiles do not allow it."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import MPP, draw_tissue, write_slide
from numpy.typing import NDArray
from PIL import Image

from sslpath import figures
from sslpath.annotations import write_geojson
from sslpath.descriptors import write_descriptors
from sslpath.errors import DescriptorError, SslpathError
from sslpath.report import compare, pictures
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.tiling import tile_slides

DISTANCES = {"near_tiles": 2, "far_tiles": 4}
Drawn = dict[str, tuple[tuple, dict]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of 1000 x 800 px; the left half of each disc is tumour."""
    folder = tmp_path_factory.mktemp("report")
    for i, name in enumerate("abc"):
        write_slide(folder / f"{name}.tif", draw_tissue(1000, 800, seed=i))
        write_geojson({"tumour": shapely.box(0, 0, 500, 800)}, folder / f"{name}.geojson")
    return folder


@pytest.fixture
def tiles(slides: Path) -> pd.DataFrame:
    table, _ = tile_slides(
        [Slide(path) for path in sorted(slides.glob("*.tif"))],
        mpp=MPP,
        tile_px=64,
        annotations_dir=slides,
        progress=False,
    )
    return table


def some_descriptors(tiles: pd.DataFrame, d: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(len(tiles), d)).astype(np.float32)


def stored(tiles: pd.DataFrame, folder: Path) -> Path:
    features = some_descriptors(tiles)
    for slide_id, where in tiles.groupby("slide_id").indices.items():
        coords = tiles.iloc[where][["x", "y"]].to_numpy()
        write_descriptors(folder, slide_id, features[where], coords, {"arch": "noise"})
    return folder


def draw(
    tiles: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> Drawn:
    """Draw all pictures; what each figure was given, by its function's name."""
    given: Drawn = {}
    for name in ("gallery", "heat_map", "agreement_by_distance"):
        original = getattr(figures, name)

        def spy(*args, _name=name, _original=original, **kwargs):
            given[_name] = (args, kwargs)
            return _original(*args, **kwargs)

        monkeypatch.setattr(figures, name, spy)
    descriptors = {"spatial": some_descriptors(tiles)}
    rows = [{"method": "spatial", "metric": "addr_global", "value": 1.0, "low": None}]
    pictures(tiles, descriptors, rows, open_source(tiles), folder, **DISTANCES, **settings)
    return given


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def test_every_picture_is_drawn_where_labels_and_slides_are_known(
    tiles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draw(tiles, tmp_path, monkeypatch)
    assert names(tmp_path) == {
        *("results", "distances", "agreement", "umap", "gallery"),
        *("grid", "pairs", "heatmap-spatial"),
    }
    assert all(Image.open(path).width > 200 for path in tmp_path.iterdir())
    # Two tiles of a slide at random, one after the other from the same slide.
    chance = given["agreement_by_distance"][1]["chance"]
    by_hand = 0.0
    for _, own in tiles[tiles["label"].notna()].groupby("slide_id"):
        label = own["label"].to_numpy(int)
        by_hand += len(own) * (label[:, None] == label[None]).mean()
    assert chance == pytest.approx(by_hand / tiles["label"].notna().sum())


def test_a_gallery_shows_nothing_where_others_have_too_few_labelled_tiles(
    tiles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside slide a, two labelled tiles are left: queries of a find these two and no more.
    others = np.flatnonzero(tiles["slide_id"] != "a")
    tiles.loc[others, "label"] = pd.NA
    tiles.loc[others[[0, -1]], "label"] = [1, 0]
    (queries, answers, correct), _ = draw(tiles, tmp_path, monkeypatch)["gallery"]
    source = open_source(tiles)
    row = next(
        i
        for i in range(len(queries))
        if any(np.array_equal(queries[i], tile) for tile in source.read(tiles.drop(others)))
    )
    assert sorted(correct["spatial"][row][:2]) == [0, 1]
    assert (correct["spatial"][row][2:] == -1).all()
    assert (answers["spatial"][row][2:] == 255).all()
    shown = {tile.tobytes() for tile in answers["spatial"][row][:2]}
    assert shown == {tile.tobytes() for tile in source.read(tiles.iloc[others[[0, -1]]])}


def test_without_two_labelled_patients_there_is_neither_gallery_nor_heat_map(
    tiles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles.loc[tiles["slide_id"] != "a", "label"] = pd.NA
    assert not {"gallery", "heat_map"} & set(draw(tiles, tmp_path, monkeypatch))
    assert {"results", "agreement", "grid", "pairs", "umap"} <= names(tmp_path)


def test_the_group_that_is_left_out_may_be_the_slide(
    tiles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles["patient_id"] = "one and the same"
    by_slide = draw(tiles, tmp_path, monkeypatch, group="slide")
    assert len(by_slide["gallery"][0][0]) == 3  # a query each
    assert by_slide["heat_map"][1]["label"].endswith("of other slides")


def test_pictures_drawn_before_a_failure_are_kept(
    tiles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in tiles.attrs["source"]["slides"].values():
        place["path"] = str(tmp_path / "gone.tif")
    with pytest.raises(SslpathError, match=r"gone\.tif"):
        draw(tiles, tmp_path / "out", monkeypatch)
    assert names(tmp_path / "out") == {"results", "distances", "agreement"}


def test_tiles_that_a_method_lacks_are_left_out_for_all_and_counted(
    tiles: pd.DataFrame, tmp_path: Path
) -> None:
    folders = {"spatial": stored(tiles, tmp_path / "s"), "rgb": stored(tiles[3:], tmp_path / "r")}
    with pytest.warns(UserWarning, match=rf"Left out 3 of {len(tiles)} tiles .*fewest: rgb"):
        used, descriptors, rows = compare(tiles, folders, **DISTANCES)
    pd.testing.assert_frame_equal(used, tiles[3:].reset_index(drop=True))
    assert {len(values) for values in descriptors.values()} == {len(tiles) - 3}
    assert {row["method"] for row in rows} >= {"spatial", "rgb", "chance"}


def test_nothing_is_said_when_every_tile_is_used(tiles: pd.DataFrame, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(tiles, {"spatial": stored(tiles, tmp_path)}, **DISTANCES)


def test_methods_without_a_common_tile_cannot_be_compared(
    tiles: pd.DataFrame, tmp_path: Path
) -> None:
    even = np.arange(len(tiles)) % 2 == 0
    folders = {
        "spatial": stored(tiles[even], tmp_path / "s"),
        "rgb": stored(tiles[~even], tmp_path / "r"),
    }
    with pytest.raises(DescriptorError, match="No tile has descriptors of all of spatial, rgb"):
        compare(tiles, folders, **DISTANCES)
