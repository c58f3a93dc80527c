"""Files of outlines as annotation tools write them: ASAP XML and GeoJSON, read into polygons.

- ASAP: polygons, splines and rectangles. Splines are read as the polygons of their points, as
  ASAP does when it makes masks. Points are put into their ``Order``; a group that lies in another
  one brings the outer group's name along.
- GeoJSON: feature collections, lists of features, single features and bare geometries, of QuPath
  (classes of all versions) and of other tools, also compressed with gzip.

An area is what its outline winds around at least once, the rule that ASAP fills by, so a loop
within a loop is not a hole. Only areas count: points, lines, and QuPath's detections (cells,
tiles, TMA cores) are passed over. What was passed over or left out is said in notes, and where
points and lines lie is kept, as they may mark tumour.
"""

import ast
import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from sslpath.errors import AnnotationError, counted
from sslpath.slide_files import same

UNNAMED = "unnamed"
EMPTY = shapely.MultiPolygon()
MAX_BYTES = 1 << 30  # of an unpacked file: a small one can claim any size
GEOMETRIES = (
    *("Point", "MultiPoint", "LineString", "MultiLineString"),
    *("Polygon", "MultiPolygon", "GeometryCollection"),
)
# Kinds of annotations in ASAP. Of any other kind it is not known whether it has an area.
ASAP_AREAS = ("polygon", "spline", "rectangle")
ASAP_POINTS, ASAP_LINES = ("dot", "point", "pointset"), ("measurement", "line", "polyline")
# QuPath's kinds of objects that are measured or found, not drawn. Versions before 0.3 say it in
# the feature's id.
NOT_DRAWN = {"detection", "cell", "tile", "tma_core", "tma core", "root"}
OLD_IDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
    "PathAnnotationObject": "annotation",
}
# Where tools write the class of a feature, QuPath first.
CLASS_KEYS = (
    *("classification", "classification.name", "classification_name", "class", "class_name"),
    *("name", "label"),
)


@dataclass(frozen=True)
class Outline:
    """An outlined area, or what was drawn without one.

    Attributes:
        name: Its class or group.
        area: A valid (multi)polygon, level-0 px; of a closed line what it goes round, of other
            lines and of points the line or the points.
        within: The groups that its group lies in, the nearest first.
    """

    name: str
    area: BaseGeometry
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """What a file holds.

    Attributes:
        outlines: The areas.
        loose: Points and lines.
        notes: What was left out.
    """

    outlines: list[Outline]
    loose: list[Outline]
    notes: list[str]


def read_outlines(path: Path) -> Drawn:
    """The outlines of a file, its points and lines, and notes on what was left out.

    Raises:
        AnnotationError: If the file is missing, damaged, hostile, or something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"Cannot read annotations {path}: {error.strerror}.") from error
    ending = path.suffix.lower()
    if ending == ".gz":
        data, ending = _unpacked(data, path), Path(path.stem).suffix.lower()
    if ending == ".xml":
        return _asap(data, path)
    if ending in (".geojson", ".json"):
        return _geojson(data, path)
    raise AnnotationError(f"{path}: annotations are ASAP .xml or .geojson; this ending is neither.")


def _unpacked(data: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"{path} is not complete gzip ({error}). Copy it again.") from error
    if len(unpacked) > MAX_BYTES:
        raise AnnotationError(
            f"{path} unpacks to more than {MAX_BYTES >> 20} MB. If that is right, unpack it first."
        )
    return unpacked


def _asap(data: bytes, path: Path) -> Drawn:
    try:
        root: Element = defusedxml.ElementTree.fromstring(data)
    except defusedxml.DefusedXmlException as error:
        raise AnnotationError(
            f"{path} defines XML entities, which attacks do but ASAP never does; it was not read."
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{path} is not valid XML ({error}). Export it from ASAP again."
        ) from error
    if _tag(root) != "asap_annotations":
        raise AnnotationError(
            f"{path} is XML, but not from ASAP: its root is <{root.tag}>, not <ASAP_Annotations>. "
            "Export the outlines as GeoJSON instead."
        )
    parents = {clean(g.get("Name")): clean(g.get("PartOfGroup")) for g in _tagged(root, "group")}
    drawn = Drawn([], [], [])
    for annotation in _tagged(root, "annotation"):
        kind = (annotation.get("Type") or "Polygon").strip().lower()
        where = f"{path}, annotation {annotation.get('Name')!r}"
        group = clean(annotation.get("PartOfGroup")) or UNNAMED
        # Each list of coordinates is an outline by itself.
        for listed in _tagged(annotation, "coordinates") or [annotation]:
            ring = _in_order(listed)
            if kind in ASAP_AREAS:
                area = _area([ring], where, drawn.notes)
            else:
                area = _loose(_points(ring, where), kind)
                if kind not in (*ASAP_POINTS, *ASAP_LINES):
                    drawn.notes.append(f"{where}: left out, as its type {kind!r} is not known.")
            if area is not None:
                to = drawn.outlines if kind in ASAP_AREAS else drawn.loose
                to.append(Outline(group, area, _around(group, parents)))
    return _with_notes(drawn, path, detections=0)


def _tag(element: Element) -> str:
    """The tag of an element in small letters, without a namespace."""
    return str(element.tag).rpartition("}")[2].lower()


def _tagged(root: Element, tag: str) -> list[Element]:
    return [element for element in root.iter() if _tag(element) == tag]


def _loose(points: NDArray[np.float64], kind: str = "") -> BaseGeometry | None:
    """Where points or a line lie; of a closed line what it goes round, None without points."""
    if not len(points):
        return None
    if kind in ASAP_POINTS or len(points) < 2:
        return shapely.MultiPoint(points)
    closed = kind not in ASAP_LINES if kind else bool((points[0] == points[-1]).all())
    if closed and len(np.unique(points, axis=0)) >= 3:
        return _wound(points)
    return shapely.LineString(points)


def _in_order(annotation: Element) -> list[tuple[str | None, str | None]]:
    """The points of an annotation by their ``Order``; as listed, if that orders nothing."""
    corners = _tagged(annotation, "coordinate")
    try:
        order = [float(corner.get("Order", "")) for corner in corners]
    except ValueError:
        order = []
    if len(set(order)) == len(corners):
        corners = [corners[i] for i in np.argsort(order)]
    return [(corner.get("X"), corner.get("Y")) for corner in corners]


def _around(group: str, parents: dict[str, str]) -> tuple[str, ...]:
    """The groups that a group lies in, the nearest first."""
    found: list[str] = []
    outer = parents.get(group, "")
    while outer not in ("None", "", group, *found):  # a file may nest groups in a circle
        found.append(outer)
        outer = parents.get(outer, "")
    return tuple(found)


def _geojson(data: bytes, path: Path) -> Drawn:
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid JSON ({error}). Export it again.") from error
    features = root.get("features", [root]) if isinstance(root, dict) else root
    if not isinstance(features, list):
        raise AnnotationError(f"{path} is JSON, but not GeoJSON: it has no list of features.")
    drawn, detections = Drawn([], [], []), 0
    for i, feature in enumerate(features):
        where = f"{path}, feature {i}"
        if isinstance(feature, dict) and feature.get("type") in GEOMETRIES:
            feature = {"type": "Feature", "geometry": feature}
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise AnnotationError(
                f"{where}: expected a GeoJSON Feature with a geometry. Export from QuPath "
                "as GeoJSON, or write it with sslpath.annotations.write_geojson."
            )
        properties = _as_dict(feature.get("properties"))
        if _kind_of_object(feature, properties) in NOT_DRAWN:
            detections += 1
            continue
        name = _class_of(properties)
        for part in _single(feature.get("geometry"), where):
            if part["type"] == "Polygon":
                area = _area(part["coordinates"], where, drawn.notes)
            elif part["type"].endswith("Point"):
                points = part["coordinates"]
                points = points if part["type"] == "MultiPoint" else [points]
                area = _loose(_points(points, where), "point")
            else:
                area = _loose(_points(part["coordinates"], where))
            if area is not None:
                to = drawn.outlines if part["type"] == "Polygon" else drawn.loose
                to.append(Outline(name, area))
    return _with_notes(drawn, path, detections)


def _decoded(value: Any) -> Any:
    """A value; of the text of an object or a list, as GeoPandas writes them, what it says."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        for read in (json.loads, ast.literal_eval):  # some leave it to Python to write the text
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
    return value


def _as_dict(value: Any) -> dict[str, Any]:
    """A JSON object, or its text; of anything else an empty one."""
    value = _decoded(value)
    return value if isinstance(value, dict) else {}


def _kind_of_object(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """What QuPath calls the object: ``annotation``, ``detection``, ``cell`` ...; or nothing."""
    kind = properties.get("objectType", properties.get("object_type"))
    if isinstance(kind, str):
        return OLD_IDS.get(kind.strip(), kind.strip().lower())
    ids = (str(feature.get("id")), str(properties.get("id")))  # some tools move it
    found = next((OLD_IDS[one] for one in ids if one in OLD_IDS), "")
    return found or ("cell" if "nucleusGeometry" in feature else "")


def _class_of(properties: dict[str, Any]) -> str:
    """The class of a feature: QuPath's ``classification``, else ``name``, else ``label``.

    QuPath up to 0.4 writes a class as ``name``, later ones write derived classes as ``names``.
    """
    return next((n for key in CLASS_KEYS if (n := _name_in(properties.get(key)))), UNNAMED)


def _name_in(value: Any) -> str:
    """The name in a value of a property; empty if there is none."""
    value = _decoded(value)
    if isinstance(value, dict):
        keys = ("names", "name", "value", "label")
        return next((name for key in keys if (name := _name_in(value.get(key)))), "")
    if isinstance(value, list):
        return ": ".join(name for one in value if (name := _name_in(one)))
    return "" if same(clean(value)) in ("none", "null", "nan") else clean(value)


def clean(name: Any) -> str:
    """A name without the space around it; empty if it is not a name."""
    if name is None or isinstance(name, dict | list) or name != name:  # NaN is not itself
        return ""
    # Half of a character, which JSON can hold, can be written nowhere.
    whole = "".join("\ufffd" if "\ud800" <= sign <= "\udfff" else sign for sign in str(name))
    return " ".join(whole.split())


def _single(geometry: Any, where: str) -> list[dict[str, Any]]:
    """The points, lines and polygons of a GeoJSON geometry, each with a list of coordinates."""
    if geometry is None:  # GeoJSON's way to say that a feature has no place
        return []
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in GEOMETRIES:
        said = geometry if kind is None else kind
        raise AnnotationError(f"{where}: its geometry is {said!r}, which GeoJSON does not have.")
    key = "geometries" if kind == "GeometryCollection" else "coordinates"
    listed = geometry.get(key)
    if not isinstance(listed, list):
        raise AnnotationError(f"{where}: its {kind} has no lists of {key}.")
    if kind == "GeometryCollection":
        return [one for member in listed for one in _single(member, where)]
    if kind in ("MultiPolygon", "MultiLineString"):
        kind = kind.removeprefix("Multi")
        found = [{"type": kind, "coordinates": one} for one in listed]
    else:
        found = [{"type": kind, "coordinates": listed}]
    rings = [one["coordinates"] for one in found] if kind == "Polygon" else []
    if not all(isinstance(one, list) and all(isinstance(r, list) for r in one) for one in rings):
        raise AnnotationError(f"{where}: its {kind} has no lists of coordinates.")
    return found


def _with_notes(drawn: Drawn, path: Path, detections: int) -> Drawn:
    """With notes on what was passed over, where that may surprise."""
    if detections:
        drawn.notes.append(
            f"{path}: passed over {counted(detections, 'detection')} (cells, tiles or TMA cores); "
            "only annotations are outlines."
        )
    if drawn.loose and not drawn.outlines:
        drawn.notes.append(
            f"{path} holds no area, only points and lines ({len(drawn.loose)}), so it labels no "
            "tile."
        )
    return drawn


def _area(rings: list[Any], where: str, notes: list[str]) -> BaseGeometry | None:
    """A valid (multi)polygon, or None with a note if the rings enclose nothing."""
    outer, *holes = [_points(ring, where) for ring in rings or [[]]]
    if len(np.unique(outer, axis=0)) < 3:
        notes.append(f"{where}: left out, as it has fewer than 3 points.")
        return None
    holes = [ring for ring in holes if len(np.unique(ring, axis=0)) >= 3]
    try:
        area: BaseGeometry = shapely.Polygon(outer, holes)
        if not area.is_valid:
            area = _repaired(_wound(outer), [_wound(ring) for ring in holes], where, notes)
    except shapely.errors.ShapelyError as error:
        raise AnnotationError(f"{where}: its polygon cannot be repaired ({error}).") from error
    if not area.area > 0:
        what = "its holes cover all of it" if holes else "its points enclose no area"
        notes.append(f"{where}: left out, as {what}.")
        return None
    return area


def _repaired(
    area: BaseGeometry, holes: list[BaseGeometry], where: str, notes: list[str]
) -> BaseGeometry:
    """An outline less its holes, with those that are none: parts beside it, islands in a hole."""
    holes.sort(key=shapely.area, reverse=True)
    islands = []
    for i, hole in enumerate(holes):
        beside = shapely.area(shapely.intersection(hole, area)) < 0.01 * hole.area
        # A hole that is drawn twice is no island.
        within = any(
            hole.area < 0.9 * larger.area and shapely.covers(larger, hole) for larger in holes[:i]
        )
        if beside or within:
            islands.append(hole)
    if islands:
        notes.append(
            f"{where}: read {counted(len(islands), 'ring')} beside the first one, or within a "
            "hole, as further areas."
        )
    cut = shapely.union_all([hole for hole in holes if hole not in islands])
    return areas_only(shapely.union_all([shapely.difference(area, cut), *islands]))


def _wound(ring: NDArray[np.float64]) -> BaseGeometry:
    """What a ring winds around at least once, in whatever direction."""
    area = shapely.Polygon(ring)
    if area.is_valid:
        return area
    # Taken apart where it crosses itself, the ring bounds faces. Each lies inside or outside.
    faces = shapely.get_parts(shapely.polygonize([shapely.unary_union(shapely.LinearRing(ring))]))
    inside = [face for face in faces if _winding(ring, shapely.point_on_surface(face))]
    return areas_only(shapely.union_all(inside))


def _winding(ring: NDArray[np.float64], point: shapely.Point) -> int:
    """How many times a ring goes round a point that is not on it, anticlockwise."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    left = (x1 - x0) * (point.y - y0) - (point.x - x0) * (y1 - y0)
    up, down = (y0 <= point.y) & (point.y < y1), (y1 <= point.y) & (point.y < y0)
    return int((up & (left > 0)).sum()) - int((down & (left < 0)).sum())


def areas_only(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry as one valid (multi)polygon; its points and lines are dropped."""
    if not shapely.is_valid(geometry):
        geometry = shapely.make_valid(geometry)
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    parts = shapely.get_parts(geometry)
    # A collection may hold multipolygons: take it apart once more.
    flat = shapely.get_parts(parts)
    return shapely.union_all(flat[shapely.get_dimensions(flat) == 2]) if len(flat) else EMPTY


def _points(ring: Any, where: str) -> NDArray[np.float64]:
    try:
        points = np.array(ring, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise AnnotationError(f"{where}: a coordinate is not a number ({error}).") from error
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points[:, :2]).all():
        raise AnnotationError(f"{where}: its coordinates are not pairs of finite numbers.")
    return points[:, :2]
