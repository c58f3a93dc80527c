"""Outlines: ASAP XML and GeoJSON, broken and hostile files; shapely and pixels as oracles."""

import gzip
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry.base import BaseGeometry

from sslpath.annotations import (
    Annotations,
    annotation_files,
    annotations_of,
    load_annotations,
    read_annotations,
    reading_of,
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
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
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


@pytest.mark.parametrize("kind", ["Dot", "PointSet", "Measurement"])
def test_points_and_lines_are_passed_over_and_a_file_of_nothing_else_is_warned_of(
    tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path / "a.xml", asap(("_0", list(SQUARE)), kind=kind))
    with pytest.warns(UserWarning, match=r"a\.xml holds no area, only points and lines \(1\)"):
        read = read_annotations(path)
    assert read.regions == {}


def test_points_are_put_into_their_order(tmp_path: Path) -> None:
    corners = box_points(0, 0, 20, 10)
    text = asap(("_0", [corners[0], corners[2], corners[1], corners[3]]))
    shuffled = text.replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"')
    read = read_annotations(write(tmp_path / "a.xml", shuffled.replace('Order="x"', 'Order="2"')))
    assert read.tumour.equals(shapely.box(0, 0, 20, 10))


@pytest.mark.parametrize("order", ["0", "", "first"])
def test_points_whose_order_tells_nothing_stay_as_listed(tmp_path: Path, order: str) -> None:
    text = re.sub(r'Order="\d+"', f'Order="{order}"', asap(("_0", list(SQUARE))))
    assert read_annotations(write(tmp_path / "a.xml", text)).tumour.equals(shapely.Polygon(SQUARE))


def test_orders_are_numbers_not_texts(tmp_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 13)[:-1]
    corners: list[tuple[object, object]] = [
        (50 + 40 * np.cos(a), 50 + 40 * np.sin(a)) for a in angle
    ]
    read = read_annotations(write(tmp_path / "a.xml", asap(("_0", corners))))
    assert read.tumour.area == pytest.approx(shapely.Polygon(corners).area)


GROUPS = """<AnnotationGroups>
<Group Name="Grade 3" PartOfGroup="Carcinoma"/><Group Name="Carcinoma" PartOfGroup="None"/>
<Group Name="lumen" PartOfGroup="exclude"/><Group Name="exclude" PartOfGroup="Carcinoma"/>
<Group Name="left" PartOfGroup="right"/><Group Name="right" PartOfGroup="left"/>
</AnnotationGroups>"""


def test_a_group_means_what_the_nearest_group_around_it_means(tmp_path: Path) -> None:
    drawn = asap(
        ("Grade 3", list(SQUARE)), ("lumen", box_points(30, 30, 60, 60)),
        ("left", box_points(200, 200, 300, 300)),
    )  # fmt: skip
    path = write(
        tmp_path / "a.xml", re.sub("<AnnotationGroups>.*</AnnotationGroups>", GROUPS, drawn)
    )
    read = read_annotations(path)
    assert {name: read.reading(name) for name in read.regions} == {
        "Grade 3": "tumour",
        "lumen": "cut out",
        "left": "region",
    }
    assert read.tumour.area == 100 * 100 - 30 * 30
    assert read_annotations(path, tumour=["right"]).tumour.equals(shapely.box(200, 200, 300, 300))


def test_normal_tissue_inside_a_tumour_is_taken_out_of_it_and_around_it_is_not(
    tmp_path: Path,
) -> None:
    inside = asap(("metastases", list(SQUARE)), ("normal", box_points(30, 30, 60, 60)))
    read = read_annotations(write(tmp_path / "inside.xml", inside))
    assert read.tumour.area == 100 * 100 - 30 * 30
    assert read.excluded.is_empty  # so tiles in it are labelled 0
    around = asap(("metastases", list(SQUARE)), ("normal", box_points(0, 0, 500, 500)))
    read = read_annotations(write(tmp_path / "around.xml", around))
    assert read.tumour.area == 100 * 100


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


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": {"names": ["Tumor"], "name": "old"}}, "Tumor"),
        ({"classification": '{"name": "Tumor", "color": [200, 0, 0]}'}, "Tumor"),
        ({"classification": '{"names": ["Tumor", "Negative"]}'}, "Tumor: Negative"),
        ({"classification": "{'name': 'Tumor', 'color': [200, 0, 0]}"}, "Tumor"),
        ({"classification": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ({"classification": {"name": "  Tumor\t"}}, "Tumor"),
        ({"classification": {}, "name": "Tumor"}, "Tumor"),
        ({"classification": None, "name": " ", "label": "Tumor"}, "Tumor"),
    ],
)
def test_classes_are_read_as_each_version_of_qupath_and_geopandas_write_them(
    tmp_path: Path, properties: dict[str, object], name: str
) -> None:
    drawn = feature(shapely.box(0, 0, 2, 2), objectType="annotation", **properties)
    read = read_annotations(write(tmp_path / "a.geojson", [drawn]))
    assert list(read.regions) == [name]
    assert read.tumour.area == 4


@pytest.mark.parametrize(
    "cell",
    [
        feature(shapely.box(0, 0, 2, 2), objectType="cell", classification={"name": "Tumor"}),
        feature(shapely.box(0, 0, 2, 2), objectType="detection", classification={"name": "Tumor"}),
        feature(shapely.box(0, 0, 2, 2), objectType="tile", classification={"name": "Tumor"}),
        feature(shapely.box(0, 0, 2, 2), object_type="Detection", name="Tumor"),
        feature(shapely.box(0, 0, 2, 2), name="Tumor") | {"id": "PathCellObject"},
        feature(shapely.box(0, 0, 2, 2), name="Tumor") | {"nucleusGeometry": None},
    ],
)
def test_detections_of_qupath_are_not_outlines(tmp_path: Path, cell: dict[str, object]) -> None:
    outline = feature(shapely.box(10, 10, 13, 13), name="Tumor") | {"id": "PathAnnotationObject"}
    path = write(tmp_path / "a.geojson", [cell, cell, outline])
    with pytest.warns(UserWarning, match=r"passed over 2 detections"):
        assert read_annotations(path).tumour.area == 9


@pytest.mark.parametrize(
    "geometry",
    [
        shapely.box(0, 0, 3, 3),
        shapely.MultiPolygon([shapely.box(0, 0, 3, 3)]),
        shapely.GeometryCollection([shapely.Point(1, 1), shapely.box(0, 0, 3, 3)]),
    ],
)
def test_a_bare_geometry_is_read_as_an_outline_without_a_name(
    tmp_path: Path, geometry: BaseGeometry
) -> None:
    read = read_annotations(write(tmp_path / "a.geojson", shapely.to_geojson(geometry)))
    assert {name: area.area for name, area in read.regions.items()} == {"unnamed": 9}


def test_packed_files_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    text = json.dumps([feature(shapely.box(0, 0, 2, 2), name="Tumor")])
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.geojson").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "c.json").write_bytes(text.encode("utf-16"))
    (tmp_path / "d.xml.gz").write_bytes(gzip.compress(asap(("_0", list(SQUARE))).encode()))
    areas = [read_annotations(path).tumour.area for path in sorted(tmp_path.iterdir())]
    assert areas == [4, 4, 4, 10_000]


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


# Names


@pytest.mark.parametrize(
    ("reading", "names"),
    [
        (
            "tumour",
            "Tumor|tumour| TUMOR |Tumors|Tumor: Positive|Tumor: Negative|Invasive tumor|tumor_1|"
            "tumour grade 2|Tumor region 3|Tumor*|Metastasis|metastases|metastatic cancer|"
            "invasive ductal carcinoma|Tumor cells|lymph node metastasis|_0|_1|Micrometastasis|"
            "Macrometastases|ITC|Isolated tumor cells|Melanoma|Cholangiocarcinoma|metástasis|"
            "Non-small cell carcinoma|tumor_0|Neoplastic cells|Karzinom",
        ),
        (
            "region",
            "Tumor bed|Tumor stroma|Peritumoral|Tumor-infiltrating lymphocytes|Tumor border|Stroma|"
            "Stroma: Tumor|Immune cells|Necrosis|Region*|Other|unnamed|None|tissue|artifact|"
            "class_1|abnormal|12|*|Tumor?|Tumor (-)|tumor -|Tumor: absent|tumor: none|N tumor|"
            "tumor n/a|non-invasive carcinoma|carcinoma in situ|benign tumor|not normal|"
            "tumor negative",
        ),
        (
            "normal",
            "normal|Normal tissue|negative|Negative|benign|Benign glands|healthy mucosa|"
            "normal stroma|benign duct|Normal breast|Tumor-free stroma|tumor free|Non-tumor|"
            "no tumor|Nontumor|tissue w/o tumor|w/o tumor|s/ tumor|0 metastases|Metastasenfrei|"
            "no evidence of residual tumor|non-neoplastic|kein Tumor",
        ),
        (
            "cut out",
            "_2|Exclude|exclusion|Excluded area|Ignore*|ignored|cut-out|cut out|cut_out|Holes|"
            "to exclude|artifact (exclude)",
        ),
    ],
)
def test_names_are_read_as_people_mean_them(reading: str, names: str) -> None:
    assert {name: reading_of(name) for name in names.split("|")} == dict.fromkeys(
        names.split("|"), reading
    )


def test_names_of_tumour_that_are_given_replace_the_default() -> None:
    given = ["Lesion", "ROI"]
    named = {name: reading_of(name, given) for name in ("LESION", "lesion: big", " ROI", "Tumor")}
    assert named == {
        "LESION": "tumour",
        "lesion: big": "tumour",
        " ROI": "tumour",
        "Tumor": "region",
    }
    assert reading_of("_2", given) == "cut out"
    for spelt in ("Tumour", "Tumor", "tumour: small"):
        assert reading_of(spelt, [spelt]) == "tumour"
    assert reading_of("normal", ["Normal"]) == "tumour"  # what is given comes first
    combined, apart = (unicodedata.normalize(form, "tumör") for form in ("NFC", "NFD"))
    assert reading_of(combined, [apart]) == "tumour"


# Files of a folder


def test_files_are_found_by_the_name_of_the_slide_in_all_its_forms(tmp_path: Path) -> None:
    square = json.dumps([feature(shapely.box(0, 0, 2, 2), name="Tumor")])
    for name, slide_id in {
        "a.geojson": "a",
        "b.JSON": "B",
        "c.svs.geojson": "c",
        "d.2.geojson": "d.2",
        "e.tif.xml.gz": "E",
        unicodedata.normalize("NFD", "fälle.geojson"): unicodedata.normalize("NFC", "Fälle"),
    }.items():
        (tmp_path / name).write_text(square)
        found = annotation_files([slide_id], tmp_path)[slide_id]
        assert [path.name for path in found] == [name]


def test_files_that_are_hidden_or_named_otherwise_are_not_a_slides(tmp_path: Path) -> None:
    for name in ("._a.geojson", ".a.xml", "a.txt", "a.2.geojson", "aa.geojson", "a.backup.json"):
        (tmp_path / name).touch()
    assert annotation_files(["a"], tmp_path) == {"a": []}


def test_slides_that_differ_in_capitals_alone_have_the_file_of_just_that_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "case.xml").touch()
    found = annotation_files(["case", "Case", "other"], tmp_path)
    assert found == {"case": [tmp_path / "case.xml"], "Case": [], "other": []}


def test_a_slide_with_two_files_is_refused_and_without_any_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", asap())
    write(tmp_path / "a.tif.json", [])
    with pytest.raises(AnnotationError, match=r"Slide a has several annotations: .*Keep one"):
        annotations_of("a", tmp_path)
    assert annotations_of("b", tmp_path) is None


# Odd and hostile files


def winding(points: list[tuple[float, float]], x: float, y: float) -> float:
    """How many times points go round a place: the angle they sweep, seen from there."""
    angle = np.unwrap(np.arctan2(*(np.array([*points, points[0]]) - (x, y)).T[::-1]))
    return (angle[-1] - angle[0]) / (2 * np.pi)


TWICE = [(100, 100), (900, 100), (900, 900), (100, 900), (100, 100)]
TWICE += [(300, 300), (700, 300), (700, 700), (300, 700), (300, 300)]


@pytest.mark.parametrize("direction", [1, -1])
def test_a_ring_that_winds_twice_has_no_hole(tmp_path: Path, direction: int) -> None:
    ring = [*TWICE, TWICE[0]][::direction]
    drawn = write(tmp_path / "a.xml", asap(("_0", ring)))
    geometry = {"type": "Polygon", "coordinates": [ring]}
    other = [{"type": "Feature", "geometry": geometry, "properties": {"name": "Tumor"}}]
    for path in (drawn, write(tmp_path / "a.geojson", other)):
        assert read_annotations(path).tumour.area == pytest.approx(800 * 800)


whole = st.integers(0, 12)


@settings(deadline=None, max_examples=150)
@given(ring=st.lists(st.tuples(whole, whole), min_size=3, max_size=14))
def test_a_repair_keeps_inside_what_the_points_wind_around(
    ring: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ring")
    geometry = {"type": "Polygon", "coordinates": [ring]}
    write(folder / "a.geojson", {"type": "Feature", "geometry": geometry})
    write(folder / "a.xml", asap(("unnamed", list(ring))))
    x, y = np.random.default_rng(0).uniform(0, 12, (2, 60))
    inside = [round(winding(ring, *place)) != 0 for place in zip(x, y, strict=True)]
    for path in folder.iterdir():
        area = load_annotations(path).regions.get("unnamed", shapely.MultiPolygon())
        assert area.is_valid
        assert shapely.contains_xy(area, x, y).tolist() == inside


def test_a_hole_that_crosses_itself_or_its_ring_is_taken_out_as_drawn(tmp_path: Path) -> None:
    outer = [(0, 0), (100, 0), (100, 100), (0, 100)]
    bow = [(20, 20), (40, 40), (40, 20), (20, 40)]
    across = [(80, 40), (120, 40), (120, 60), (80, 60)]
    geometry = {"type": "Polygon", "coordinates": [outer, bow, across]}
    read = read_annotations(
        write(tmp_path / "a.geojson", {"type": "Feature", "geometry": geometry})
    )
    assert read.regions["unnamed"].area == pytest.approx(10_000 - 200 - 400)


def test_an_outline_whose_holes_leave_nothing_is_left_out_with_a_warning(tmp_path: Path) -> None:
    geometry = {"type": "Polygon", "coordinates": [SQUARE, box_points(0, 0, 200, 200)]}
    path = write(tmp_path / "a.geojson", {"type": "Feature", "geometry": geometry})
    with pytest.warns(UserWarning, match=r"feature 0: left out, as its holes cover all of it"):
        assert not read_annotations(path).regions


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
        ("cut.xml", asap(("_0", list(SQUARE)))[:150], "not valid XML"),
        ("empty.xml", "", "not valid XML"),
        ("other.xml", "<svg></svg>", "root is <svg>"),
        ("words.xml", asap(("_0", [("x", 1), (2, 2), (3, 1)])), "not a number"),
        ("gap.xml", asap(("_0", [("", 1), (2, 2), (3, 1)])), "not a number"),
        ("nan.xml", asap(("_0", [("nan", 1), (2, 2), (3, 1)])), "finite"),
        ("inf.xml", asap(("_0", [("1e999", 1), (2, 2), (3, 1)])), "finite"),
        ("cut.geojson", '{"type": "FeatureCollection", "features": [', "not valid JSON"),
        ("number.geojson", "7", "not GeoJSON"),
        ("null.geojson", "null", "not GeoJSON"),
        ("text.geojson", '["a"]', "feature 0: expected a GeoJSON Feature"),
        ("other.geojson", '{"shapes": []}', "expected a GeoJSON Feature"),
        ("bare.geojson", '{"type": "Polygon", "coordinates": null}', "no lists of coordinates"),
        ("geos.json", '{"type": "GeometryCollection", "geometries": 3}', "no lists of geometries"),
        ("huge.json", '{"type": "Polygon", "coordinates": [[[1%s, 2]]]}' % ("0" * 400), "number"),
        ("cut.json.gz", gzip.compress(b"[" * 999)[:20], "not complete gzip"),
        ("text.xml.gz", b"<ASAP_Annotations/>", "not complete gzip"),
        ("page.xml", '<?xml version="1.0" encoding="klingon"?><a/>', "not valid XML"),
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
        ("deep.geojson", "[" * 100_000, "not valid JSON"),
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


# Real files. The numbers were counted from their text, without the package: annotations by name,
# areas by the shoelace formula.

COUNTED = {
    "asap/camelyon16_tumor_009.xml": {"metastasis": ("tumour", 850_599_497)},
    "asap/camelyon16_tumor_039.xml": {
        "metastasis": ("tumour", 206_963_347),
        "negative": ("normal", 10_555_763),
    },
    "asap/camelyon16_tumor_085.xml": {"metastasis": ("tumour", 479_677_040)},
    "asap/tab_008_060_HE.xml": {
        "artifact": ("region", 11_331_884),
        "tissue": ("region", 72_968_260),
        "background": ("region", 73_701_266),
    },
    "asap/tissue_tumor_021.xml": {
        "tissue": ("region", 3_918_065_197),
        "negative": ("normal", 77_808_789),
    },
    "asap/wsidicom_asap-dot.xml": {},
    "asap/wsidicom_asap-pointset.xml": {},
    "asap/wsidicom_asap-polygon.xml": {"None": ("region", 28_616.8)},
    "geojson/coscialab_TD_01.geojson": {
        "class_1": ("region", 90_855.24),
        "class_2": ("region", 57_909.33),
    },
    "geojson/dlup_qupath05.geojson": {"UT": ("region", 51_687.5), "I": ("region", 117_310.5)},
    "geojson/histoqc_geojson_example.json": {
        "Tumor": ("tumour", 2_265_677_914),
        "Invborder": ("region", 1_545_939_628),
    },
    "geojson/histoqc_holed.geojson": {"unnamed": ("region", 7_827_735)},
    "geojson/large_image_sample.geojson": {"unnamed": ("region", 2168)},
    "geojson/qupath_core_polygon.geojson": {"unnamed": ("region", 54_694_790)},
    "geojson/wsidicom_qupath-ellipse.json": {"ellipse": ("region", 45_350.45)},
    "geojson/wsidicom_qupath-line.json": {},
    "geojson/wsidicom_qupath-polygon-cell-classified.json": {
        "Cell": ("region", 257.39),
        "Nucleus": ("region", 185.2),
    },
    "geojson/wsidicom_qupath-rectangle.json": {"rectangle": ("region", 210 * 176)},
}


@pytest.mark.parametrize("name", COUNTED)
def test_real_files_have_the_names_and_areas_counted_from_their_text(
    shared: Path, name: str
) -> None:
    read = load_annotations(shared / "real" / "annotations" / name)
    found = {key: (read.reading(key), area.area) for key, area in read.regions.items()}
    # Outlines that cross themselves or overlap: the formula counts what lies inside twice twice.
    assert found == {
        key: (how, pytest.approx(a, rel=2e-5)) for key, (how, a) in COUNTED[name].items()
    }


def test_normal_tissue_drawn_into_a_real_metastasis_is_taken_out_of_it(shared: Path) -> None:
    read = load_annotations(shared / "real/annotations/asap/camelyon16_tumor_039.xml")
    assert read.tumour.area == pytest.approx(206_963_347 - 10_555_763, rel=1e-5)


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
