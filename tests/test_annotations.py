"""Outlines: ASAP XML and GeoJSON, broken and hostile files; shapely and pixels as oracles."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry.base import BaseGeometry

from sslpath.annotations import (
    Annotations,
    read_annotations,
    write_geojson,
)
from sslpath.errors import AnnotationError
from sslpath.labels import share_inside

SQUARE = [(10.0, 10.0), (110.0, 10.0), (110.0, 110.0), (10.0, 110.0)]


def asap(*outlines: tuple[str, list[tuple[object, object]]], kind: str = "Polygon") -> str:
    """An ASAP file of (group, points)."""
    drawn = "".join(
        f'<Annotation Name="Annotation {i}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        "<Coordinates>"
        + "".join(f'<Coordinate Order="{j}" X="{x}" Y="{y}" />' for j, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for i, (group, points) in enumerate(outlines)
    )
    groups = '<AnnotationGroups><Group Name="_0" PartOfGroup="None" /></AnnotationGroups>'
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{drawn}</Annotations>{groups}'
        "</ASAP_Annotations>"
    )


def box_points(x0: float, y0: float, x1: float, y1: float) -> list[tuple[object, object]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def feature(geometry: BaseGeometry | None, **properties: object) -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": None if geometry is None else shapely.geometry.mapping(geometry),
        "properties": properties,
    }


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# ASAP


@pytest.mark.parametrize("group", ["_0", "_1", "Tumor", "tumour", "Metastasis"])
def test_asap_groups_of_tumour_are_tumour(tmp_path: Path, group: str) -> None:
    read = read_annotations(write(tmp_path / "a.xml", asap((group, list(SQUARE)))))
    assert read.tumour.equals(shapely.Polygon(SQUARE))
    assert read.excluded.is_empty


@pytest.mark.parametrize("group", ["_2", "Exclusion", "exclude"])
def test_asap_cut_outs_are_taken_out_of_the_tumour(tmp_path: Path, group: str) -> None:
    text = asap(("_0", list(SQUARE)), (group, box_points(30, 30, 60, 60)))
    read = read_annotations(write(tmp_path / "a.xml", text))
    assert read.tumour.area == pytest.approx(100 * 100 - 30 * 30)
    assert read.excluded.equals(shapely.box(30, 30, 60, 60))


def test_other_asap_groups_are_regions_that_are_no_tumour(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "a.xml", asap(("Stroma", list(SQUARE)))))
    assert read.tumour.is_empty
    assert read.kinds["Stroma"].equals(shapely.Polygon(SQUARE))


def test_overlapping_tumour_outlines_count_once(tmp_path: Path) -> None:
    text = asap(("_0", box_points(0, 0, 20, 20)), ("_1", box_points(10, 0, 30, 20)))
    assert read_annotations(write(tmp_path / "a.xml", text)).tumour.area == pytest.approx(600)


def test_dots_are_passed_over(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "a.xml", asap(("_0", [(5, 5)]), kind="Dot")))
    assert read.regions == {}


def test_an_asap_file_without_outlines_says_no_tumour(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "a.xml", asap()))
    assert read.tumour.is_empty
    assert read.excluded.is_empty


# GeoJSON


def test_what_is_written_is_read_back_with_holes_and_parts(tmp_path: Path) -> None:
    ring = shapely.box(0, 0, 50, 50).difference(shapely.box(10, 10, 20, 20))
    parts = shapely.MultiPolygon([shapely.box(60, 0, 70, 10), shapely.box(80, 0, 90, 10)])
    regions = {
        "stroma": ring,
        "tumour grade 2": parts,
        "background": shapely.box(0, 60, 100, 100),
    }
    write_geojson(regions, tmp_path / "a.geojson")
    read = read_annotations(tmp_path / "a.geojson")
    assert list(read.regions) == list(regions)
    for name, area in regions.items():
        assert read.regions[name].equals(area), name
    assert read.tumour.area == pytest.approx(200)


def test_written_geojson_is_one_feature_a_name_in_qupaths_form(tmp_path: Path) -> None:
    write_geojson({"cortex": shapely.box(0, 0, 1, 1)}, tmp_path / "a.geojson")
    data = json.loads((tmp_path / "a.geojson").read_text())
    assert data["type"] == "FeatureCollection"
    (only,) = data["features"]
    assert only["properties"]["classification"]["name"] == "cortex"
    assert only["properties"]["objectType"] == "annotation"
    assert shapely.geometry.shape(only["geometry"]).equals(shapely.box(0, 0, 1, 1))


@pytest.mark.parametrize(
    "properties",
    [
        {"classification": {"name": "Tumor", "color": [200, 0, 0]}, "name": "my outline"},
        {"classification": "Tumor"},
        {"name": "Tumor"},
        {"label": "Tumor"},
    ],
)
def test_the_class_of_a_feature_is_found_in_each_common_place(
    tmp_path: Path, properties: dict[str, object]
) -> None:
    square = feature(shapely.box(0, 0, 2, 2), **properties)
    for content in ({"type": "FeatureCollection", "features": [square]}, [square], square):
        read = read_annotations(write(tmp_path / "a.geojson", content))
        assert read.tumour.area == 4


def test_points_lines_and_features_without_a_place_are_passed_over(tmp_path: Path) -> None:
    features = [
        feature(shapely.Point(1, 1), name="tumour"),
        feature(shapely.LineString([(0, 0), (5, 5)]), name="tumour"),
        feature(None, name="tumour"),
        feature(shapely.box(0, 0, 3, 3)),
    ]
    read = read_annotations(write(tmp_path / "a.geojson", features))
    assert read.tumour.is_empty
    assert list(read.regions) == ["unnamed"]


def test_excluded_names_are_not_kinds_of_tissue() -> None:
    drawn = Annotations({name: shapely.box(0, 0, 1, 1) for name in ("Ignore*", "excluded", "fat")})
    assert list(drawn.kinds) == ["fat"]
    assert drawn.excluded.area == 1


# Odd and hostile files


def test_an_outline_that_crosses_itself_is_repaired(tmp_path: Path) -> None:
    bow = [(0, 0), (10, 10), (10, 0), (0, 10)]
    read = read_annotations(write(tmp_path / "a.xml", asap(("_0", bow))))
    assert read.tumour.is_valid
    assert read.tumour.area == pytest.approx(50)  # two triangles of 5 x 10 / 2


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 1), (2, 2)], [(1, 1), (2, 2), (1, 1)]])
def test_an_outline_of_fewer_than_3_points_is_left_out_with_a_warning(
    tmp_path: Path, points: list[tuple[object, object]]
) -> None:
    path = write(tmp_path / "a.xml", asap(("_0", points), ("_0", list(SQUARE))))
    with pytest.warns(UserWarning, match=r"a\.xml, annotation 'Annotation 0': left out"):
        read = read_annotations(path)
    assert read.tumour.equals(shapely.Polygon(SQUARE))


BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<ASAP_Annotations><Annotations><Annotation Name="&b;"/></Annotations></ASAP_Annotations>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>
<ASAP_Annotations>&a;</ASAP_Annotations>"""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.xml", BOMB, "entities"),
        ("outside.xml", OUTSIDE, "entities"),
        ("cut.xml", asap(("_0", list(SQUARE)))[:150], "not whole XML"),
        ("empty.xml", "", "not whole XML"),
        ("other.xml", "<svg></svg>", "root is <svg>"),
        ("words.xml", asap(("_0", [("x", 1), (2, 2), (3, 1)])), "not a number"),
        ("gap.xml", asap(("_0", [("", 1), (2, 2), (3, 1)])), "not a number"),
        ("nan.xml", asap(("_0", [("nan", 1), (2, 2), (3, 1)])), "finite"),
        ("inf.xml", asap(("_0", [("1e999", 1), (2, 2), (3, 1)])), "finite"),
        ("cut.geojson", '{"type": "FeatureCollection", "features": [', "not whole JSON"),
        ("number.geojson", "7", "not GeoJSON"),
        ("null.geojson", "null", "not GeoJSON"),
        ("text.geojson", '["a"]', "feature 0: expected a GeoJSON Feature"),
        ("other.geojson", '{"shapes": []}', "expected a GeoJSON Feature"),
        ("bare.geojson", '{"type": "Polygon", "coordinates": []}', "expected a GeoJSON Feature"),
        (
            "kind.geojson",
            [{"type": "Feature", "geometry": {"type": "Circle"}}],
            "geometry is 'Circle'",
        ),
        (
            "flat.geojson",
            [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[1, 2, 3]]}}],
            "pairs of finite numbers",
        ),
        (
            "none.geojson",
            [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": None}}],
            "no lists of coordinates",
        ),
        ("deep.geojson", "[" * 100_000, "not whole JSON"),
        ("notes.txt", "hello", "neither"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(path)
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"gone\.xml"):
        read_annotations(tmp_path / "gone.xml")
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(AnnotationError, match=r"folder\.xml"):
        read_annotations(tmp_path / "folder.xml")


# Shares of tiles

coordinates = st.integers(0, 40).map(float)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9, unique=True)


@settings(deadline=None, max_examples=80)
@given(outlines=st.lists(polygons, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_shares_equal_shapelys_plain_intersection(
    outlines: list[list[tuple[float, float]]], seed: int
) -> None:
    area = shapely.union_all([shapely.make_valid(shapely.Polygon(points)) for points in outlines])
    area = shapely.union_all(
        [part for part in shapely.get_parts(area) if shapely.get_dimensions(part) == 2]
    )
    x, y = np.random.default_rng(seed).uniform(-5, 40, (2, 30))
    boxes = shapely.box(x, y, x + 6, y + 6)
    expected = [shapely.intersection(area, box).area / 36 for box in boxes]
    assert share_inside(area, boxes) == pytest.approx(np.array(expected), abs=1e-9)


def test_shares_equal_counted_pixels() -> None:
    # A star with a hole, rasterised at a fine step by shapely's point test.
    angle = np.linspace(0, 2 * np.pi, 15)[:-1]
    radius = np.where(np.arange(14) % 2, 45, 20)
    star = shapely.Polygon(np.c_[50 + radius * np.cos(angle), 50 + radius * np.sin(angle)])
    star = star.difference(shapely.Point(50, 50).buffer(8))
    x, y = np.meshgrid(np.arange(0, 100, 20.0), np.arange(0, 100, 20.0))
    boxes = shapely.box(x.ravel(), y.ravel(), x.ravel() + 20, y.ravel() + 20)
    places = (np.arange(0, 100, 0.2) + 0.1).astype(float)
    px, py = np.meshgrid(places, places)
    inside = shapely.contains_xy(star, px, py).reshape(5, 100, 5, 100).mean((1, 3))
    assert share_inside(star, boxes) == pytest.approx(inside.ravel(), abs=0.01)


def test_no_area_and_no_boxes_give_no_shares() -> None:
    assert list(share_inside(shapely.MultiPolygon(), shapely.box([0, 1], 0, [1, 2], 1))) == [0, 0]
    assert len(share_inside(shapely.box(0, 0, 1, 1), np.array([], object))) == 0
