"""The grid, tissue, labels, and many slides of which some are broken."""

import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import HANG_S, MPP, draw_tissue, write_lossless, write_scn, write_slide
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpath.annotations import Annotations, write_geojson
from sslpath.errors import AnnotationError, ConfigError, SlideError
from sslpath.labels import names_read
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import load_tiles, save_tiles
from sslpath.tiling import grid, tile_slide, tile_slides

WHOLE = {"mpp": MPP, "tile_px": 100, "min_tissue": 0.0}

# The grid


@settings(deadline=None)
@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    side=st.floats(20, 500),
    ratio=st.floats(0.2, 3),
)
def test_the_grid_lies_inside_the_slide_and_keeps_its_pitch_within_a_pixel(
    width: int, height: int, side: float, ratio: float
) -> None:
    pitch = side * ratio
    corners = grid((width, height), side_px=side, pitch_px=pitch)
    assert (corners >= 0).all()
    assert (corners + side <= np.array([width, height]) + 2e-3).all()
    xs, ys = np.unique(corners[:, 0]), np.unique(corners[:, 1])
    assert len(corners) == len(xs) * len(ys)
    for starts, length in ((xs, width), (ys, height)):
        if len(corners):
            assert np.abs(starts - np.arange(len(starts)) * pitch).max() <= 0.5 + 1e-6
            # One more would stick out.
            assert round(len(starts) * pitch) + side > length - 1


@settings(deadline=None)
@given(side=st.floats(2, 300), length=st.integers(2, 5000))
def test_tiles_side_by_side_overlap_by_less_than_a_pixel_however_many_there_are(
    side: float, length: int
) -> None:
    starts = grid((length, 300), side_px=side)[:, 0]
    gaps = np.diff(np.unique(starts)) - side
    assert (np.abs(gaps) < 1).all()


@given(side=st.integers(1, 300), tiles=st.integers(1, 20), rest=st.integers(0, 299))
def test_tiles_of_whole_pixels_never_overlap_and_fill_the_slide(
    side: int, tiles: int, rest: int
) -> None:
    rest %= side
    corners = grid((side * tiles + rest, side), side_px=float(side))
    assert corners[:, 0].tolist() == [side * i for i in range(tiles)]


def test_a_side_that_is_whole_but_for_rounding_does_not_lose_the_last_tile() -> None:
    side = 224 * (0.5 / 0.25) * (1 + 1e-12)
    assert side > 448
    assert len(grid((896, 448), side_px=side)) == 2


def test_a_slide_smaller_than_a_tile_has_none_and_tiles_of_no_size_are_refused() -> None:
    assert grid((99, 500), side_px=100.0).shape == (0, 2)
    for side in (0.0, 0.5, -3.0, float("nan")):
        with pytest.raises(ConfigError, match="cannot be cut"):
            grid((99, 500), side_px=side)


# One slide


def test_the_table_says_where_each_tile_is_in_level_0_px(slide_path: Path) -> None:
    tiles = tile_slide(Slide(slide_path), mpp=1.2, tile_px=64, min_tissue=0.0)
    pitch = 64 * 1.2 / MPP  # 153.6
    assert len(tiles) == int(2000 // pitch) * int(1500 // pitch)
    assert set(tiles["x"]) == {round(i * pitch) for i in range(13)}
    assert (tiles["size"] == 154).all()
    assert (tiles["slide_mpp"] == MPP).all()
    assert (tiles["slide_id"] == "disc").all()
    assert (tiles["patient_id"] == "disc").all()
    assert tiles["label"].isna().all()
    assert tiles["region"].isna().all()
    assert (tiles.attrs["mpp"], tiles.attrs["tile_px"]) == (1.2, 64)
    assert tiles[["y", "x"]].to_numpy().tolist() == sorted(tiles[["y", "x"]].to_numpy().tolist())


def test_a_stride_sets_the_step_and_not_the_size(slide_path: Path) -> None:
    tiles = tile_slide(Slide(slide_path), **WHOLE, stride_px=50)
    assert set(np.diff(np.unique(tiles["x"]))) == {50}
    assert (tiles["size"] == 100).all()


def test_tissue_is_the_share_of_the_tile_that_the_drawn_disc_covers(slide_path: Path) -> None:
    tiles = tile_slide(Slide(slide_path), **WHOLE)
    y, x = np.mgrid[:1500, :2000] + 0.5
    disc = ((x / 2000 - 0.5) ** 2 + (y / 1500 - 0.5) ** 2) < 0.3**2
    true = disc.reshape(15, 100, 20, 100).mean((1, 3)).ravel()
    error = np.abs(tiles["tissue"].to_numpy() - true)
    # The mask has pixels of 6 um, an eighth of a tile, and may be loose by one or two.
    assert error.max() < 0.4
    assert error.mean() < 0.03


def test_only_tiles_with_enough_tissue_are_kept(slide_path: Path) -> None:
    every = tile_slide(Slide(slide_path), **WHOLE)
    for least in (0.1, 0.5, 1.0):
        kept = tile_slide(Slide(slide_path), **{**WHOLE, "min_tissue": least})
        assert len(kept) == (every["tissue"] >= least).sum() > 0
        assert (kept["tissue"] >= least).all()


def test_tiles_finer_than_the_slide_are_refused_but_rounded_pixel_sizes_are_not(
    slide_path: Path,
) -> None:
    with pytest.raises(SlideError, match=r"disc\.tif has 0\.5 um .* Use an mpp of 0\.5 or more"):
        tile_slide(Slide(slide_path), mpp=0.25, tile_px=64)
    assert len(tile_slide(Slide(slide_path, mpp=0.2525), mpp=0.25, tile_px=64))


def test_a_draw_of_tiles_is_repeatable_and_spread_over_the_slide(slide_path: Path) -> None:
    draw = [tile_slide(Slide(slide_path), **WHOLE, max_tiles=60, seed=seed) for seed in (1, 1, 2)]
    assert [len(tiles) for tiles in draw] == [60, 60, 60]
    pd.testing.assert_frame_equal(draw[0], draw[1])
    assert not draw[0][["x", "y"]].equals(draw[2][["x", "y"]])
    assert draw[0]["x"].mean() == pytest.approx(950, abs=250)
    few = tile_slide(Slide(slide_path), **WHOLE, max_tiles=10_000)
    assert len(few) == 300


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_tissue": 1.5}, "min_tissue"),
        ({"tumour_share": 0.0}, "tumour_share"),
        ({"max_tiles": 0}, "max_tiles"),
        ({"tile_px": 0}, "cannot be cut"),
        ({"stride_px": 0}, "cannot be cut"),
    ],
)
def test_settings_out_of_range_are_refused(
    slide_path: Path, setting: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tile_slide(Slide(slide_path), **{**WHOLE, **setting})  # type: ignore[arg-type]


# Labels


def label_of(slide: Slide, drawn: dict[str, shapely.Geometry], **settings: object) -> dict:
    """Label by tile (column, row), with None for missing."""
    tiles = tile_slide(slide, **WHOLE, annotations=Annotations(drawn), **settings)  # type: ignore[arg-type]
    places = zip(tiles["x"] // 100, tiles["y"] // 100, strict=True)
    labels = [None if pd.isna(label) else int(label) for label in tiles["label"]]
    return dict(zip(places, labels, strict=True))


def test_a_tile_is_tumour_from_half_on_normal_if_untouched_and_unknown_between(
    slide_path: Path,
) -> None:
    # Tumour from x = 150: tile 0 untouched, tile 1 exactly half, later ones whole.
    half = label_of(Slide(slide_path), {"tumour": shapely.box(150, 0, 1000, 1500)})
    assert [half[i, 3] for i in range(3)] == [0, 1, 1]
    less = label_of(Slide(slide_path), {"tumour": shapely.box(151, 0, 1000, 1500)})
    assert [less[i, 3] for i in range(3)] == [0, None, 1]
    assert [less[i, 3] for i in (9, 10, 19)] == [1, 0, 0]
    strict = label_of(
        Slide(slide_path), {"tumour": shapely.box(150, 0, 1000, 1500)}, tumour_share=0.6
    )
    assert strict[1, 3] is None


def test_what_is_excluded_is_neither_tumour_nor_normal(slide_path: Path) -> None:
    drawn = {
        "Tumor": shapely.box(0, 0, 1000, 1500),
        "exclude": shapely.box(200, 0, 300, 1500),  # inside the tumour
        "Ignore*": shapely.box(1250, 0, 1300, 1500),  # inside normal tissue
    }
    label = label_of(Slide(slide_path), drawn)
    assert [label[i, 5] for i in (1, 2, 3)] == [1, None, 1]
    assert [label[i, 5] for i in (11, 12, 13)] == [0, None, 0]


def test_without_exhaustive_annotation_nothing_is_known_to_be_normal(slide_path: Path) -> None:
    drawn = {"tumour": shapely.box(0, 0, 1000, 1500)}
    label = label_of(Slide(slide_path), drawn, exhaustive=False)
    assert {label[i, 5] for i in range(10)} == {1}
    assert {label[i, 5] for i in range(10, 20)} == {None}


def test_annotations_without_outlines_mean_no_tumour_and_none_at_all_means_unknown(
    slide_path: Path,
) -> None:
    assert set(label_of(Slide(slide_path), {}).values()) == {0}
    assert tile_slide(Slide(slide_path), **WHOLE)["label"].isna().all()


def test_labels_equal_those_of_the_outline_painted_pixel_by_pixel(slide_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    radius = np.where(np.arange(24) % 2, 650, 350)
    star = shapely.Polygon(np.c_[1000 + radius * np.cos(angle), 750 + radius * np.sin(angle)])
    tiles = tile_slide(Slide(slide_path), **WHOLE, annotations=Annotations({"tumour": star}))
    y, x = np.mgrid[:1500, :2000] + 0.5
    painted = shapely.contains_xy(star, x, y).reshape(15, 100, 20, 100).mean((1, 3)).ravel()
    clear = (np.abs(painted - 0.5) > 0.01) & ((painted == 0) | (painted > 0.001))
    expected = np.where(painted >= 0.5, 1.0, np.where(painted == 0, 0.0, np.nan))
    got = tiles["label"].astype("float64").to_numpy()
    assert np.array_equal(got[clear], expected[clear], equal_nan=True)
    assert {0.0, 1.0} < set(got)


def test_the_region_is_the_name_that_covers_most_of_the_tile(slide_path: Path) -> None:
    drawn = {
        "stroma": shapely.box(0, 0, 140, 1500),
        "tumour grade 1": shapely.box(140, 0, 500, 1500),
        "exclude": shapely.box(600, 0, 800, 1500),
    }
    tiles = tile_slide(Slide(slide_path), **WHOLE, annotations=Annotations(drawn))
    row = tiles[tiles["y"] == 500].set_index("x")["region"]
    assert row[0] == "stroma"
    assert row[100] == "tumour grade 1"  # 40 % stroma, 60 % tumour
    assert row[400] == "tumour grade 1"
    assert pd.isna(row[700])
    assert pd.isna(row[1500])


def test_a_file_of_points_alone_labels_nothing(slide_path: Path, tmp_path: Path) -> None:
    (tmp_path / "disc.geojson").write_text('{"type": "Point", "coordinates": [900, 700]}')
    how = {"mpp": MPP, "tile_px": 100, "annotations_dir": tmp_path, "progress": False}
    with pytest.warns(UserWarning, match=r"disc\.geojson holds no area, only points"):
        tiles, _ = tile_slides([Slide(slide_path)], **how)
    assert tiles["label"].isna().all()


ON_TISSUE = shapely.box(700, 500, 900, 900)


@pytest.mark.parametrize(
    ("drawn", "note"),
    [
        (
            {"Tumor": shapely.box(1500, 1000, 2900, 1900)},
            "mostly outside of the scanned area: 1 of",
        ),
        ({"Tumor": shapely.box(0, 0, 90, 90)}, "where there is no tissue: 1 of 1"),
        ({"Stroma": shapely.box(0, 0, 90, 90)}, "where there is no tissue: 1 of 1"),
        (
            {"Tumor": shapely.MultiPolygon([shapely.box(0, 0, 190, 190), ON_TISSUE])},
            "where there is no tissue: 1 of 2",
        ),
    ],
)
def test_outlines_off_the_slide_or_its_tissue_are_warned_of(
    slide_path: Path, drawn: dict[str, shapely.Geometry], note: str
) -> None:
    with pytest.warns(UserWarning, match=f"case.xml: outlines {note}"):
        tile_slide(Slide(slide_path), **WHOLE, annotations=Annotations(drawn, path="case.xml"))


def test_an_outline_of_glass_beside_others_is_not_warned_of(slide_path: Path) -> None:
    drawn = {"background": shapely.box(0, 0, 90, 90), "Stroma": ON_TISSUE}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile_slide(Slide(slide_path), **WHOLE, annotations=Annotations(drawn))


def test_a_speck_of_tumour_off_the_tissue_is_not_warned_of_beside_a_tumour_on_it(
    slide_path: Path,
) -> None:
    speck = shapely.box(10, 10, 40, 40)  # tissue is looked for in tiles of 100 px
    drawn = {"Tumor": shapely.MultiPolygon([speck, ON_TISSUE])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile_slide(Slide(slide_path), **WHOLE, annotations=Annotations(drawn))


def test_outlines_that_all_lie_outside_the_slide_are_refused(slide_path: Path) -> None:
    far = Annotations({"tumour": shapely.box(90_000, 0, 91_000, 10)}, path="case.xml")
    with pytest.raises(AnnotationError, match=r"case\.xml lie outside the slide .*disc\.tif"):
        tile_slide(Slide(slide_path), **WHOLE, annotations=far)


# Many slides


@pytest.fixture
def folder(tmp_path: Path, slide_path: Path) -> Path:
    """Three good slides, one of them annotated, and four bad ones."""
    for name in ("a", "b", "c"):
        shutil.copy(slide_path, tmp_path / f"{name}.tif")
    write_geojson({"tumour": shapely.box(0, 0, 1000, 1500)}, tmp_path / "B.geojson")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("hello")
    write_slide(tmp_path / "blank.tif", np.full((400, 400, 3), 244, np.uint8))
    write_slide(tmp_path / "nompp.tif", draw_tissue(300, 300), mpp=None)
    return tmp_path


def slides_of(folder: Path) -> list[Slide]:
    return [Slide(path) for path in sorted(folder.glob("*.tif"))]


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_slides_are_listed_and_do_not_stop_the_others(folder: Path, workers: int) -> None:
    tiles, failures = tile_slides(
        slides_of(folder),
        mpp=MPP,
        tile_px=100,
        annotations_dir=folder,
        workers=workers,
        progress=False,
    )
    assert list(tiles["slide_id"].unique()) == ["a", "b", "c"]
    assert set(tiles.attrs["source"]["slides"]) == {"a", "b", "c"}
    assert [failure.slide_id for failure in failures] == ["blank", "empty", "nompp", "text"]
    for failure in failures:
        assert failure.path == str(folder / f"{failure.slide_id}.tif")
        assert failure.slide_id in failure.error
    assert "No tile of" in failures[0].error
    assert "--mpp-override" in failures[2].error
    by_slide = tiles.groupby("slide_id")["label"]
    assert by_slide.apply(lambda label: label.isna().all()).to_dict() == {
        "a": True,
        "b": False,
        "c": True,
    }


def test_the_table_of_many_slides_is_that_of_each_and_survives_the_disk(
    folder: Path, tmp_path: Path
) -> None:
    slides = [Slide(folder / f"{name}.tif") for name in ("c", "a")]
    tiles, failures = tile_slides(slides, mpp=MPP, tile_px=100, progress=False)
    assert not failures
    alone = tile_slide(slides[0], mpp=MPP, tile_px=100)
    pd.testing.assert_frame_equal(tiles[tiles["slide_id"] == "c"], alone, check_names=False)
    save_tiles(tiles, tmp_path / "tiles.parquet")
    again = load_tiles(tmp_path / "tiles.parquet")
    pd.testing.assert_frame_equal(again, tiles)
    some = again.iloc[[0, -1]]
    pixels = open_source(again).read(some)
    for i, row in enumerate(some.itertuples()):
        expected = Slide(folder / f"{row.slide_id}.tif").read(row.x, row.y, 100, MPP)
        assert np.array_equal(pixels[i], expected)


def test_the_first_broken_slide_stops_all_if_asked_to(folder: Path) -> None:
    for workers in (1, 2):
        with pytest.raises(SlideError):
            tile_slides(
                slides_of(folder),
                mpp=MPP,
                tile_px=100,
                workers=workers,
                on_error="raise",
                progress=False,
            )


class Crashing(Slide):
    """A slide whose reading kills the process, as a hostile file may."""

    @property
    def dimensions(self) -> tuple[int, int]:
        os._exit(9)


def test_a_slide_that_kills_its_process_is_listed_and_the_others_finish(folder: Path) -> None:
    slides = [Slide(folder / "a.tif"), Crashing(folder / "b.tif"), Slide(folder / "c.tif")]
    tiles, failures = tile_slides(slides, mpp=MPP, tile_px=100, workers=2, progress=False)
    assert list(tiles["slide_id"].unique()) == ["a", "c"]
    (failure,) = failures
    assert failure.slide_id == "b"
    assert "crashed" in failure.error


class Hanging(Slide):
    """A slide whose reading never ends."""

    @property
    def dimensions(self) -> tuple[int, int]:
        time.sleep(HANG_S)
        raise AssertionError


def test_a_slide_that_hangs_is_listed_and_the_others_finish(folder: Path) -> None:
    slides = [Hanging(folder / "b.tif"), Slide(folder / "a.tif"), Slide(folder / "c.tif")]
    for timeout_s in (3, 60, 1200):  # on a slow machine the other slides take longer, too
        tiles, failures = tile_slides(
            slides, mpp=MPP, tile_px=100, workers=2, timeout_s=timeout_s, progress=False
        )
        hanging = next(one for one in failures if one.slide_id == "b")
        assert f"longer than {timeout_s} s" in hanging.error
        if failures == [hanging]:
            break
    assert failures == [hanging]
    assert list(tiles["slide_id"].unique()) == ["a", "c"]


def test_no_slides_or_only_broken_ones_give_an_empty_table(tmp_path: Path) -> None:
    tiles, failures = tile_slides([Slide(tmp_path / "x.tif")], mpp=MPP, tile_px=9, progress=False)
    assert tiles.empty
    assert len(failures) == 1
    assert tile_slides([], mpp=MPP, tile_px=9, progress=False)[0].empty


def test_two_slides_of_one_name_and_a_slide_listed_twice_are_refused(slide_path: Path) -> None:
    other = Slide("elsewhere/disc.svs")
    with pytest.raises(ConfigError, match=r"id 'disc'.*disc\.tif.*elsewhere/disc\.svs"):
        tile_slides([Slide(slide_path), other], mpp=MPP, tile_px=100)
    with pytest.raises(ConfigError, match="twice"):
        tile_slides([Slide(slide_path), Slide(slide_path)], mpp=MPP, tile_px=100)


def test_slides_known_to_be_normal_or_partly_outlined_are_labelled_so(folder: Path) -> None:
    slides = [Slide(folder / f"{name}.tif") for name in ("a", "b")]
    tiles, _ = tile_slides(
        slides,
        mpp=MPP,
        tile_px=100,
        annotations_dir=folder,
        not_exhaustive=["b"],
        no_tumour=["a"],
        progress=False,
    )
    assert (tiles.loc[tiles["slide_id"] == "a", "label"] == 0).all()
    assert set(tiles.loc[tiles["slide_id"] == "b", "label"].dropna()) == {1}


def test_ids_of_slides_may_differ_in_capitals_as_annotations_do(folder: Path) -> None:
    slides = [Slide(folder / f"{name}.tif") for name in ("a", "b")]
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": folder, "progress": False}
    exact, _ = tile_slides(slides, not_exhaustive=["b"], no_tumour=["a"], **settings)
    other, _ = tile_slides(slides, not_exhaustive=["B"], no_tumour=["A"], **settings)
    assert exact["label"].isna().any()
    pd.testing.assert_frame_equal(exact, other)


@pytest.mark.parametrize("which", ["not_exhaustive", "no_tumour"])
def test_an_id_that_is_no_slide_is_refused_by_name(folder: Path, which: str) -> None:
    with pytest.raises(ConfigError, match=rf"{which} names 'Tumor_9', but no slide .*: a\."):
        tile_slides(
            [Slide(folder / "a.tif")],
            mpp=MPP,
            tile_px=100,
            progress=False,
            **{which: ["a", "Tumor_9"]},
        )


def test_a_folder_of_annotations_that_fits_no_slide_is_warned_about(folder: Path) -> None:
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": folder, "progress": False}
    with pytest.warns(UserWarning, match=r"for 1 slide, .*: a\. .* No file there is named"):
        tile_slides([Slide(folder / "a.tif")], **settings)
    with pytest.warns(UserWarning, match=r"for 1 slide, .*: a\. .* or \.xml\.$"):
        tile_slides([Slide(folder / "a.tif"), Slide(folder / "b.tif")], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # known to hold no tumour: no file is missing
        both = [Slide(folder / "a.tif"), Slide(folder / "b.tif")]
        tile_slides(both, no_tumour=["a"], **settings)


def test_outlines_counted_from_the_scanned_area_are_warned_of_and_can_be_moved(
    tmp_path: Path,
) -> None:
    image, (left, top) = draw_tissue(1000, 800), (700, 900)
    slide = Slide(write_scn(tmp_path / "case.scn", image, (left, top)))
    assert slide.scanned == (left, top, 1000, 800)
    inside = shapely.box(300, 200, 600, 500)  # as QuPath writes it
    write_geojson({"Tumor": inside}, tmp_path / "case.geojson")
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": tmp_path, "progress": False}
    with pytest.warns(UserWarning, match=r"outside of the scanned area.*\(700, 900\).*--bounds"):
        tiles, _ = tile_slides([slide], **settings)
    assert not (tiles["label"] == 1).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiles, _ = tile_slides([slide], bounds=True, **settings)
    x, y = tiles["x"] + 50 - left, tiles["y"] + 50 - top  # middles of tiles in the scanned area
    assert ((tiles["label"] == 1) == shapely.contains_xy(inside, x, y)).all()
    assert (tiles["label"] == 1).sum() == 9


def test_bounds_change_nothing_on_a_slide_that_was_scanned_whole(folder: Path) -> None:
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": folder, "progress": False}
    one, other = (tile_slides([Slide(folder / "b.tif")], bounds=b, **settings)[0] for b in (0, 1))
    pd.testing.assert_frame_equal(one, other)


def test_names_that_mean_tumour_can_be_given_and_what_was_read_is_kept(folder: Path) -> None:
    squares = {"Lesion": shapely.box(0, 0, 1000, 1500), "Tumor bed": shapely.box(0, 0, 500, 500)}
    write_geojson(squares, folder / "B.geojson")
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": folder, "progress": False}
    with pytest.warns(UserWarning, match=r"No outline has a name that means tumour.*Lesion \(1\)"):
        tiles, _ = tile_slides([Slide(folder / "b.tif")], **settings)
    assert set(tiles["label"]) == {0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiles, _ = tile_slides([Slide(folder / "b.tif")], tumour=["lesion"], **settings)
    assert set(tiles["label"].dropna()) == {0, 1}
    assert names_read(tiles) == (
        "Outlines (slides) read as tumour: Lesion (1); region: Tumor bed (1)"
    )
    with pytest.warns(UserWarning, match=r"No outline is named lesoin\."):
        tile_slides([Slide(folder / "b.tif")], tumour=["Lesion", "lesoin"], **settings)


def test_a_name_that_mentions_tumour_and_is_not_read_so_is_warned_of_once(folder: Path) -> None:
    for name in ("a", "b"):
        squares = {"Tumor": shapely.box(0, 0, 1000, 1500), "Tumor bed": shapely.box(0, 0, 500, 500)}
        write_geojson(squares, folder / f"{name}.geojson")
    (folder / "B.geojson").unlink()
    settings = {"mpp": MPP, "tile_px": 100, "annotations_dir": folder, "progress": False}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tile_slides([Slide(folder / "a.tif"), Slide(folder / "b.tif")], **settings)
    (message,) = (str(one.message) for one in warned)
    assert message.startswith("Not read as tumour: Tumor bed. Outlines (slides) read as tumour: Tu")
    assert "region: Tumor bed (2)" in message


def test_a_slide_may_have_another_name_than_its_file(folder: Path) -> None:
    slide = Slide(folder / "c.tif", slide_id="b")
    tiles, _ = tile_slides([slide], mpp=MPP, tile_px=100, annotations_dir=folder, progress=False)
    assert set(tiles["slide_id"]) == {"b"}
    assert tiles["label"].notna().any()  # by the annotations of b
    where = tiles.attrs["source"]["slides"]["b"]
    assert where.pop("outlines")["names"] == {"tumour": "tumour"}
    assert where == {
        "path": str(folder / "c.tif"), "mpp": MPP, "width": 2000, "height": 1500, "stride_px": 100
    }  # fmt: skip
    assert np.array_equal(
        open_source(tiles).read(tiles.head(2)),
        [slide.read(row.x, row.y, 100, MPP) for row in tiles.head(2).itertuples()],
    )


def test_two_annotations_of_one_slide_and_a_missing_folder_are_refused(folder: Path) -> None:
    shutil.copy(folder / "B.geojson", folder / "b.xml")
    slides = [Slide(folder / "b.tif")]
    _, (failure,) = tile_slides(
        slides, mpp=MPP, tile_px=100, annotations_dir=folder, progress=False
    )
    assert "several annotations" in failure.error
    with pytest.raises(ConfigError, match="does not exist"):
        tile_slides(slides, mpp=MPP, tile_px=100, annotations_dir=folder / "no")


def test_a_slide_of_one_tile_is_tiled(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :256] // 8
    image = np.where(((x + y) % 2)[..., None], (222, 150, 190), (180, 110, 170)).astype(np.uint8)
    tiles = tile_slide(Slide(write_lossless(tmp_path / "one.tif", [image])), mpp=MPP, tile_px=256)
    assert tiles[["x", "y", "size"]].to_numpy().tolist() == [[0, 0, 256]]


def test_real_slides_are_tiled_where_their_tissue_is(shared: Path) -> None:
    folder = shared / "real/slides"
    slides = [
        Slide(folder / "cmu-1-small-region.svs"),
        Slide(folder / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.5),
    ]
    tiles, failures = tile_slides(slides, mpp=0.5, tile_px=224, workers=2, progress=False)
    assert not failures
    counts = tiles["slide_id"].value_counts()
    assert counts["cmu-1-small-region"] == pytest.approx(53, abs=6)
    assert counts["tcga-cr-7395-01a-01-ts1"] == pytest.approx(200, abs=15)
    pixels = open_source(tiles).read(tiles)
    # Tissue is darker in green than glass; a few edge tiles are mostly glass.
    assert np.quantile(pixels[..., 1].mean((1, 2)), 0.95) < 215
