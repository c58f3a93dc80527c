"""Odd inputs are read as they are meant, or the user is warned."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MPP
from odd_inputs import (
    CASES,
    RIGHT,
    SQUARE,
    UNKNOWN,
    Case,
    asap,
    drawn,
    feature,
    labels,
    points,
    section,
)

from sslpath.errors import AnnotationError
from sslpath.slides import Slide
from sslpath.tiling import tile_slides


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_odd_input_is_read_as_it_is_meant_or_warned_of(case: Case, tmp_path: Path) -> None:
    if case.warns:
        with pytest.warns(UserWarning, match=case.warns):
            found = case.use(tmp_path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = case.use(tmp_path)
    assert found == case.gives


def test_no_two_cases_have_the_same_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def box(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]


ALL, TILE = box(0, 0, 500, 400), box(200, 100, 300, 200)
ELSEWHERE = box(0, 0, 100, 200)  # two other tiles


def called(*named: tuple[str, Any]) -> Callable[[Path], str]:
    """Labels by outlines of these names and points."""
    return drawn(*(feature({"name": name}, points) for name, points in named))


def rings(*members: Any) -> Callable[[Path], str]:
    """Labels by a polygon of these rings."""
    geometry = {"type": "Polygon", "coordinates": members}
    return drawn({"type": "Feature", "geometry": geometry, "properties": {"name": "Tumor"}})


def group(name: str, outer: str) -> Callable[[Path], str]:
    """Labels by an ASAP group within another."""
    groups = f'<Group Name="{name}" PartOfGroup="{outer}"/><Group Name="{outer}"/>'
    return asap((name, "Polygon", points(ELSEWHERE)), ("Tumor", "Polygon", points()), groups=groups)


def xml(text: str) -> Callable[[Path], str]:
    def use(folder: Path) -> str:
        (folder / "case.xml").write_text(text)
        return labels(folder)

    return use


TAGS = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in SQUARE)
TAGS = f'<Annotation PartOfGroup="Tumor"><Coordinates>{TAGS}</Coordinates></Annotation>'
SIX, EIGHT = "6 tumour, 14 other", "8 tumour, 12 other"
FURTHER = [
    ("tumour in normal tissue, a pixel too wide",
     called(("Normal", box(0, 0, 400, 400)), ("Tumor", box(200, 100, 401, 300))),
     "4 tumour, 14 other", ""),  # two on its rim
    ("normal island in tumour in normal tissue",
     called(("Normal", ALL), ("Tumor", SQUARE), ("Normal", TILE)), "3 tumour, 17 other", ""),
    ("tumour in a normal island in tumour",
     called(("Tumor", ALL), ("Normal", SQUARE), ("Tumor", TILE)), "17 tumour, 3 other", ""),
    ("an island that denies tumour",
     called(("Tumor", ALL), ("Non-tumor", SQUARE)), "16 tumour, 4 other", ""),
    ("an island of normal stroma",
     called(("Tumor", ALL), ("normal stroma", SQUARE)), "16 tumour, 4 other", ""),
    ("a name that denies tumour", called(("Tumor", SQUARE), ("w/o tumor", ELSEWHERE)), RIGHT, ""),
    ("a name in doubt",
     called(("Tumor", SQUARE), ("Tumor?", ELSEWHERE)), RIGHT, "Not read .*Tumor[?]"),
    ("cut out, in two words",
     called(("Tumor", ALL), ("cut out", SQUARE)), "16 tumour, 0 other", ""),
    ("a group without tumour within tumour", group("Tumor-free", "Tumor"), RIGHT, ""),
    ("a group of another tissue within tumour", group("Stroma", "Tumor"), RIGHT, ""),
    ("a group without a meaning within tumour", group("region 2", "Tumor"), SIX, ""),
    ("an old detection whose id was moved",
     drawn(feature({"id": "PathCellObject", "name": "Tumor"})), UNKNOWN, "passed over 1 detection"),
    ("an old detection told by its kind",
     drawn(feature({"objectType": "PathDetectionObject", "name": "Tumor"})), UNKNOWN, "detection"),
    ("a closed line of tumour beside an area",
     drawn(feature({"name": "Stroma"}, ELSEWHERE),
           feature({"name": "Tumor"}, [*SQUARE, SQUARE[0]], "LineString")),
     "0 tumour, 16 other", "1 mark without an area .* named Tumor"),
    ("a point of tumour in its area",
     drawn(feature({"name": "Tumor"}), feature({"name": "Tumor"}, [250, 150], "Point")), RIGHT,
     "1 mark without an area .* named Tumor"),
    ("a point of tumour elsewhere",
     drawn(feature({"name": "Tumor"}), feature({"name": "Tumor"}, [50, 50], "Point")),
     "4 tumour, 15 other", "1 mark without an area .* named Tumor"),
    ("an area in ASAP spelt in small letters", asap(("Tumor", "polygon ", points())), RIGHT, ""),
    ("an unknown kind in ASAP",
     asap(("Stroma", "Polygon", points(ELSEWHERE)), ("Tumor", "Blob", points())),
     "0 tumour, 16 other", "its type 'blob' is not known"),
    ("tags of ASAP in small letters",
     xml(f"<asap_annotations>{TAGS.lower()}</asap_annotations>".replace('x="', 'X="')
         .replace('y="', 'Y="').replace("partofgroup", "PartOfGroup")), RIGHT, ""),
    ("tags of ASAP in a namespace",
     xml(f'<ASAP_Annotations xmlns="urn:x">{TAGS}</ASAP_Annotations>'), RIGHT, ""),
    ("a ring beside the first one", rings(SQUARE, ELSEWHERE), SIX, "read 1 ring beside the first"),
    ("an island in a hole", rings(ALL, SQUARE, TILE), "17 tumour, 3 other", "read 1 ring"),
    ("a hole that is drawn twice", rings(ALL, SQUARE, SQUARE), "16 tumour, 4 other", ""),
    ("half of a character", called(("Tumor \ud83d", SQUARE)), RIGHT, ""),
    ("a class that is NaN",
     drawn(feature({"classification": float("nan"), "name": float("nan"), "label": "Tumor"})),
     RIGHT, ""),
    ("a class under another key", drawn(feature({"class": "Tumor"})), RIGHT, ""),
    ("a class with a value", drawn(feature({"label": {"value": "Tumor"}})), RIGHT, ""),
    ("classes as the text of a list",
     drawn(feature({"classification": '["Tumor", "Negative"]'})), RIGHT, ""),
    ("a third coordinate that is null",
     called(("Tumor", [(*point, None) for point in SQUARE])), RIGHT, ""),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:No outline has a name that means tumour")
@pytest.mark.parametrize(
    ("use", "gives", "warns"), [case[1:] for case in FURTHER], ids=[case[0] for case in FURTHER]
)
def test_an_odd_outline_labels_what_it_means(
    tmp_path: Path, use: Callable[[Path], str], gives: str, warns: str
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert use(tmp_path) == gives
    said = [str(one.message) for one in seen if issubclass(one.category, UserWarning)]
    said = [one for one in said if "No outline has a name" not in one]
    assert bool(said) == bool(warns), said
    assert re.search(warns, " ".join(said))


@pytest.mark.parametrize("geometry", ["Polygon", "GeometryCollection", 3, []])
def test_a_file_that_is_broken_in_a_new_way_takes_no_other_slide_along(
    tmp_path: Path, geometry: object
) -> None:
    slides = [Slide(section(tmp_path, f"{name}.tif")) for name in ("bad", "good")]
    bad = {"type": "Feature", "geometry": geometry, "properties": {}}
    (tmp_path / "bad.geojson").write_text(json.dumps([bad]))
    (tmp_path / "good.geojson").write_text(json.dumps([feature({"name": "Tumor"})]))
    how = {"mpp": MPP, "tile_px": 100, "progress": False, "annotations_dir": tmp_path}
    tiles, failed = tile_slides(slides, **how)
    assert [one.slide_id for one in failed] == ["bad"]
    assert (tiles["label"] == 1).sum() == 4


def test_slides_whose_outlines_say_nothing_are_named_beside_others_that_do(tmp_path: Path) -> None:
    slides = [Slide(section(tmp_path, f"{name}.tif")) for name in ("a", "b")]
    (tmp_path / "a.geojson").write_text(json.dumps([feature({"name": "Tumor"})]))
    (tmp_path / "b.geojson").write_text(json.dumps([feature({})]))
    how = {"mpp": MPP, "tile_px": 100, "progress": False, "annotations_dir": tmp_path}
    with pytest.warns(UserWarning, match="name that says what it is on 1 slide, .*: b"):
        tile_slides(slides, **how)


def test_coordinates_that_are_shares_of_the_slide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="fit into two pixels"):
        called(("Tumor", [(x / 500, y / 400) for x, y in SQUARE]))(tmp_path)


def test_a_slide_that_is_said_to_hold_no_tumour_and_has_some_is_refused(tmp_path: Path) -> None:
    (tmp_path / "case.geojson").write_text(json.dumps([feature({"name": "Tumor"})]))
    with pytest.raises(AnnotationError, match="case is said to hold no tumour"):
        labels(tmp_path, no_tumour=["case"])


def test_a_file_is_of_the_slide_that_is_called_like_it(tmp_path: Path) -> None:
    slides = [Slide(section(tmp_path, name)) for name in ("case.tif", "case.svs.tif")]
    (tmp_path / "case.svs.geojson").write_text(json.dumps([feature({"name": "Tumor"})]))
    how = {"mpp": MPP, "tile_px": 100, "progress": False, "annotations_dir": tmp_path}
    with pytest.warns(UserWarning, match="for 1 slide, .*: case[.]"):
        tiles, _ = tile_slides(slides, **how)
    assert tiles.groupby("slide_id")["label"].sum().to_dict() == {"case": 0, "case.svs": 4}


def test_a_region_never_contradicts_its_label(tmp_path: Path) -> None:
    called(("Tumor", ALL), ("Normal", SQUARE), ("unnamed", ALL))(tmp_path)
    how = {"mpp": MPP, "tile_px": 100, "progress": False, "annotations_dir": tmp_path}
    tiles, _ = tile_slides([Slide(tmp_path / "case.tif")], **how)
    assert set(zip(tiles["label"], tiles["region"], strict=True)) == {(1, "Tumor"), (0, "Normal")}
