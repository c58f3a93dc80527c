"""Files of outlines as annotation tools write them: ASAP XML and GeoJSON, read into polygons.

- ASAP: polygons, splines and rectangles. Splines are read as the polygons of their points, as
  ASAP does when it makes masks. Points are put into their ``Order``; a group that lies in another
  one brings the outer group's name along.
- GeoJSON: feature collections, lists of features, single features and bare geometries, of QuPath
  (classes of all versions) and of other tools, also compressed with gzip.

An area is what its outline winds around at least once, the rule that ASAP fills by, so a loop
within a loop is not a hole. Only areas count: points, lines, and QuPath's detections (cells,
tiles, TMA cores) are passed over. What was passed over or left out is said in notes.
"""

import ast
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry.base import BaseGeometry

from sslpath.errors import AnnotationError, counted

UNNAMED = "unnamed"
EMPTY = shapely.MultiPolygon()
MAX_BYTES = 1 << 30  # of an unpacked file: a small one can claim any size
GEOMETRIES = (
    *("Point", "MultiPoint", "LineString", "MultiLineString"),
    *("Polygon", "MultiPolygon", "GeometryCollection"),
)
ASAP_AREAS = ("Polygon", "Spline", "Rectangle")
# QuPath's kinds of objects that are measured or found, not drawn. Versions before 0.3 say it in
# the feature's id.
NOT_DRAWN = {"detection", "cell", "tile", "tma_core", "tma core", "root"}
OLD_IDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
}


class Outline(NamedTuple):
    """An outlined area.

    Attributes:
        name: Its class or group.
        area: A valid (multi)polygon, level-0 px.
        within: The groups that its group lies in, the nearest first.
    """

    name: str
    area: BaseGeometry
    within: tuple[str, ...] = ()


def read_outlines(path: Path) -> tuple[list[Outline], list[str]]:
    """The outlines of a file, and notes on what was left out.

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


def _asap(data: bytes, path: Path) -> tuple[list[Outline], list[str]]:
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
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"{path} is XML, but not from ASAP: its root is <{root.tag}>, not <ASAP_Annotations>. "
            "Export the outlines as GeoJSON instead."
        )
    parents = {clean(g.get("Name")): clean(g.get("PartOfGroup")) for g in root.iter("Group")}
    outlines: list[Outline] = []
    notes: list[str] = []
    passed: Counter[str] = Counter()
    for annotation in root.iter("Annotation"):
        kind = annotation.get("Type", "Polygon")
        if kind not in ASAP_AREAS:
            passed["points and lines"] += 1
            continue
        where = f"{path}, annotation {annotation.get('Name')!r}"
        area = _area([_in_order(annotation)], where, notes)
        if area is not None:
            group = clean(annotation.get("PartOfGroup")) or UNNAMED
            outlines.append(Outline(group, area, _around(group, parents)))
    return outlines, notes + _passed_over(passed, path, outlines)


def _in_order(annotation: Element) -> list[tuple[str | None, str | None]]:
    """The points of an annotation by their ``Order``; as listed, if that orders nothing."""
    corners = list(annotation.iter("Coordinate"))
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


def _geojson(data: bytes, path: Path) -> tuple[list[Outline], list[str]]:
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid JSON ({error}). Export it again.") from error
    features = root.get("features", [root]) if isinstance(root, dict) else root
    if not isinstance(features, list):
        raise AnnotationError(f"{path} is JSON, but not GeoJSON: it has no list of features.")
    outlines: list[Outline] = []
    notes: list[str] = []
    passed: Counter[str] = Counter()
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
            passed["detections"] += 1
            continue
        polygons = _polygons(feature.get("geometry"), where)
        passed["points and lines"] += not polygons
        areas = [_area(rings, where, notes) for rings in polygons]
        name = _class_of(properties)
        outlines += [Outline(name, area) for area in areas if area is not None]
    return outlines, notes + _passed_over(passed, path, outlines)


def _as_dict(value: Any) -> dict[str, Any]:
    """A JSON object; also of its text, which GeoPandas writes for objects inside of objects."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        for read in (json.loads, ast.literal_eval):  # some leave it to Python to write the text
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
    return value if isinstance(value, dict) else {}


def _kind_of_object(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """What QuPath calls the object: ``annotation``, ``detection``, ``cell`` ...; or nothing."""
    kind = properties.get("objectType", properties.get("object_type"))
    if isinstance(kind, str):
        return kind.strip().lower()
    return OLD_IDS.get(str(feature.get("id")), "cell" if "nucleusGeometry" in feature else "")


def _class_of(properties: dict[str, Any]) -> str:
    """The class of a feature: QuPath's ``classification``, else ``name``, else ``label``.

    QuPath up to 0.4 writes a class as ``name``, later ones write derived classes as ``names``.
    """
    kind = properties.get("classification")
    parts = _as_dict(kind)
    if isinstance(kind, str) and not parts:
        names: Any = kind
    else:
        names = parts.get("names") or parts.get("name") or kind
    if isinstance(names, list):
        names = ": ".join(clean(name) for name in names if clean(name))
    found = [names if isinstance(names, str | int) else None]
    found += [properties.get("name"), properties.get("label")]
    return next((clean(name) for name in found if clean(name)), UNNAMED)


def clean(name: Any) -> str:
    """A name without the space around it; empty if it is not a name."""
    return "" if name is None or isinstance(name, dict | list) else " ".join(str(name).split())


def _polygons(geometry: Any, where: str) -> list[Any]:
    """The polygons of a GeoJSON geometry, each a list of rings, the outer first."""
    if geometry is None:  # GeoJSON's way to say that a feature has no place
        return []
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind == "Polygon":
        found: Any = [geometry.get("coordinates")]
    elif kind == "MultiPolygon":
        found = geometry.get("coordinates")
    elif kind == "GeometryCollection":
        members = geometry.get("geometries")
        if not isinstance(members, list):
            raise AnnotationError(f"{where}: its GeometryCollection has no list of geometries.")
        return [rings for member in members for rings in _polygons(member, where)]
    elif kind in GEOMETRIES:
        return []
    else:
        raise AnnotationError(f"{where}: its geometry is {kind!r}, which GeoJSON does not have.")
    if not isinstance(found, list) or not all(isinstance(rings, list) for rings in found):
        raise AnnotationError(f"{where}: its {kind} has no lists of coordinates.")
    return found


def _passed_over(passed: Counter[str], path: Path, outlines: Sequence[Outline]) -> list[str]:
    """Notes on what was passed over, where that may surprise."""
    notes = []
    if passed["detections"]:
        notes.append(
            f"{path}: passed over {counted(passed['detections'], 'detection')} (cells, tiles or "
            "TMA cores); only annotations are outlines."
        )
    if passed["points and lines"] and not outlines:
        notes.append(
            f"{path} holds no area, only points and lines ({passed['points and lines']}), so it "
            "labels no tile."
        )
    return notes


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
            cut = shapely.union_all([_wound(ring) for ring in holes])
            area = areas_only(shapely.difference(_wound(outer), cut))
    except shapely.errors.ShapelyError as error:
        raise AnnotationError(f"{where}: its polygon cannot be repaired ({error}).") from error
    if not area.area > 0:
        what = "its holes cover all of it" if holes else "its points enclose no area"
        notes.append(f"{where}: left out, as {what}.")
        return None
    return area


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


def _points(ring: ArrayLike, where: str) -> NDArray[np.float64]:
    try:
        points = np.array(ring, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise AnnotationError(f"{where}: a coordinate is not a number ({error}).") from error
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise AnnotationError(f"{where}: its coordinates are not pairs of finite numbers.")
    return points[:, :2]
