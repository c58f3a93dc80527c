"""Outlines drawn by pathologists: ASAP XML (Camelyon) and GeoJSON (QuPath), in level-0 px.

Which outline means what is told by its name, the ASAP group or the GeoJSON class:

| name (case does not matter) | meaning |
| --- | --- |
| ``_0``, ``_1``; ``tumor...``, ``tumour...``, ``metastas...`` | tumour |
| ``_2``; ``exclu...``, ``ignore...`` | cut out: neither tumour nor normal |
| any other | a region, such as ``stroma``: normal where it is not tumour |

But: only areas count. Points and lines are passed over, splines and rectangles of ASAP are read
as the polygons of their points.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry.base import BaseGeometry

from sslpath.errors import AnnotationError
from sslpath.files import write_json

TUMOUR = re.compile(r"_0$|_1$|tumou?r|metastas", re.IGNORECASE)
EXCLUDED = re.compile(r"_2$|exclu|ignore", re.IGNORECASE)
UNNAMED = "unnamed"
EMPTY = shapely.MultiPolygon()


@dataclass(frozen=True)
class Annotations:
    """The outlines of one slide, as shapely polygons in level-0 px.

    ``Annotations()`` without any region says: looked at, and no tumour.

    Attributes:
        regions: Area by name, as drawn; areas of two names may overlap.
        path: The file they come from, for messages.

    Example:
        >>> square = shapely.box(0, 0, 10, 10)
        >>> drawn = Annotations({"tumour grade 2": square, "exclude": shapely.box(0, 0, 10, 5)})
        >>> drawn.tumour.area, drawn.excluded.area
        (50.0, 50.0)
    """

    regions: Mapping[str, BaseGeometry] = field(default_factory=dict)
    path: str = "annotations"

    @cached_property
    def tumour(self) -> BaseGeometry:
        """The union of all tumour regions, less what is excluded."""
        drawn = [area for name, area in self.regions.items() if TUMOUR.match(name)]
        return areas_only(shapely.difference(shapely.union_all(drawn), self.excluded))

    @cached_property
    def excluded(self) -> BaseGeometry:
        """The union of all regions that are cut out."""
        drawn = [area for name, area in self.regions.items() if EXCLUDED.match(name)]
        return areas_only(shapely.union_all(drawn))

    @property
    def kinds(self) -> dict[str, BaseGeometry]:
        """The regions that name a kind of tissue: all but the excluded."""
        return {name: area for name, area in self.regions.items() if not EXCLUDED.match(name)}


def read_annotations(path: str | Path) -> Annotations:
    """Read ASAP ``.xml`` or ``.geojson`` / ``.json``.

    Polygons that cross themselves are repaired (as shapely's ``make_valid`` does); those of fewer
    than 3 different points have no area and are left out with a warning.

    Raises:
        AnnotationError: If the file is missing, damaged, hostile, or something else.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"Cannot read annotations {path}: {error.strerror}.") from error
    if path.suffix.lower() == ".xml":
        outlines = _asap(data, path)
    elif path.suffix.lower() in (".geojson", ".json"):
        outlines = _geojson(data, path)
    else:
        raise AnnotationError(
            f"{path}: annotations are ASAP .xml or .geojson; this ending is neither."
        )
    areas: dict[str, list[BaseGeometry]] = {}
    for name, area in outlines:
        areas.setdefault(name, []).append(area)
    return Annotations(
        {name: areas_only(shapely.union_all(drawn)) for name, drawn in areas.items()}, str(path)
    )


def annotation_files(slide_id: str, folder: str | Path) -> list[Path]:
    """Files named like a slide; capitals do not matter, as copies of Camelyon differ in them."""
    names = {f"{slide_id}{ending}".lower() for ending in (".xml", ".geojson")}
    return sorted(path for path in Path(folder).iterdir() if path.name.lower() in names)


def annotations_of(slide_id: str, folder: str | Path) -> Annotations | None:
    """Read the annotations of a slide from a folder, if it has any there.

    Raises:
        AnnotationError: If there are several, or they cannot be read.
    """
    found = annotation_files(slide_id, folder)
    if len(found) > 1:
        raise AnnotationError(
            f"Slide {slide_id} has several annotations: {', '.join(map(str, found))}. Keep one."
        )
    return read_annotations(found[0]) if found else None


def write_geojson(regions: Mapping[str, BaseGeometry], path: str | Path) -> None:
    """Write regions as GeoJSON that QuPath opens: one feature a name, holes kept.

    Args:
        regions: Area by name, level-0 px.
        path: File to write, atomically.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "case-7.geojson"
        >>> write_geojson({"Tumor": shapely.box(0, 0, 20, 10)}, path)
        >>> read_annotations(path).tumour.area
        200.0
    """
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(area),
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, area in regions.items()
    ]
    write_json(path, {"type": "FeatureCollection", "features": features})


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


Outlines = Iterable[tuple[str, BaseGeometry]]


def _asap(data: bytes, path: Path) -> Outlines:
    """Name and polygon of each ``Annotation`` of an ASAP file."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(data)
    except ParseError as error:
        raise AnnotationError(
            f"{path} is not whole XML ({error}). Export it from ASAP again."
        ) from error
    except defusedxml.DefusedXmlException as error:
        raise AnnotationError(
            f"{path} defines XML entities, as attacks do and ASAP never does; it was not read."
        ) from error
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"{path} is XML, but not of ASAP: its root is <{root.tag}>, not <ASAP_Annotations>. "
            "Export the outlines as GeoJSON instead."
        )
    for annotation in root.iter("Annotation"):
        if annotation.get("Type", "Polygon") in ("Dot", "PointSet", "None"):
            continue
        where = f"{path}, annotation {annotation.get('Name')!r}"
        points = [(c.get("X"), c.get("Y")) for c in annotation.iter("Coordinate")]
        area = _polygon(points, [], where)
        if area is not None:
            yield annotation.get("PartOfGroup") or UNNAMED, area


def _geojson(data: bytes, path: Path) -> Outlines:
    """Name and area of each feature of a GeoJSON file."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not whole JSON ({error}). Export it again.") from error
    features = root.get("features", [root]) if isinstance(root, dict) else root
    if not isinstance(features, list):
        raise AnnotationError(f"{path} is JSON, but not GeoJSON: it has no list of features.")
    for i, feature in enumerate(features):
        where = f"{path}, feature {i}"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise AnnotationError(
                f"{where}: expected a GeoJSON Feature with a geometry. Export from QuPath "
                "as GeoJSON, or write it with sslpath.annotations.write_geojson."
            )
        name = _name(feature.get("properties"))
        for rings in _rings(feature.get("geometry"), where):
            area = _polygon(rings[0], rings[1:], where) if rings else None
            if area is not None:
                yield name, area


def _name(properties: Any) -> str:
    """The class of a feature: QuPath's ``classification.name``, else ``name``, else ``label``."""
    if not isinstance(properties, dict):
        return UNNAMED
    kind = properties.get("classification")
    names = [kind.get("name") if isinstance(kind, dict) else kind]
    names += [properties.get("name"), properties.get("label")]
    return next((str(name) for name in names if name not in (None, "")), UNNAMED)


def _rings(geometry: Any, where: str) -> list[Any]:
    """The polygons of a GeoJSON geometry, each a list of rings, the outer first."""
    if geometry is None:  # GeoJSON's way to say that a feature has no place
        return []
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind == "Polygon":
        found: Any = [geometry.get("coordinates")]
    elif kind == "MultiPolygon":
        found = geometry.get("coordinates")
    elif kind == "GeometryCollection":
        members = geometry.get("geometries") or []
        return [rings for member in members for rings in _rings(member, where)]
    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return []
    else:
        raise AnnotationError(f"{where}: its geometry is {kind!r}, which GeoJSON does not have.")
    if not isinstance(found, list) or not all(isinstance(rings, list) for rings in found):
        raise AnnotationError(f"{where}: its {kind} has no lists of coordinates.")
    return found


def _polygon(outer: Any, holes: list[Any], where: str) -> BaseGeometry | None:
    """A valid (multi)polygon, or None with a warning if the points span no area."""
    rings = [_points(ring, where) for ring in (outer, *holes)]
    if len(np.unique(rings[0], axis=0)) < 3:
        warnings.warn(f"{where}: left out, for it has fewer than 3 points.", stacklevel=4)
        return None
    holes = [ring for ring in rings[1:] if len(np.unique(ring, axis=0)) >= 3]
    return areas_only(shapely.Polygon(rings[0], holes))


def _points(ring: ArrayLike, where: str) -> NDArray[np.float64]:
    try:
        points = np.array(ring, np.float64)
    except (ValueError, TypeError) as error:
        raise AnnotationError(f"{where}: a coordinate is not a number ({error}).") from error
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise AnnotationError(f"{where}: its coordinates are not pairs of finite numbers.")
    return points[:, :2]
