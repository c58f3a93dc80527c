"""Outlines drawn by pathologists: what they are called, and what counts as tumour.

What an outline means is told by its name: its class in QuPath, its group in ASAP.

| name (capitals do not matter) | read as |
| --- | --- |
| a word for tumour (``tumor``, ``metastases``, ``carcinoma`` ...), alone or with words such as \
``invasive``, ``grade 2``, ``region``; ``_0``, ``_1`` (Camelyon16) | ``tumour`` |
| ``normal``, ``benign``, ``healthy``, ``negative``; a name that denies tumour, such as \
``tumour-free stroma``, ``no tumour`` | ``normal``: not tumour, also where it is drawn inside a \
tumour |
| ``_2`` (Camelyon16); ``exclu...``, ``ignore...``, ``cut out``, ``hole`` | ``cut out``: neither \
tumour nor normal |
| any other, such as ``stroma`` or ``tumour border`` | ``region``: normal where no tumour is drawn |

Where outlines of tumour and of normal tissue overlap, the smaller one counts. Of a derived class of
QuPath, such as ``Tumor: Positive``, the base class counts. A group of ASAP whose name says nothing,
such as ``region 2``, means what the group around it means. Names of tumour can be given instead
(``--tumour`` on the command line, ``tumour=`` in Python): then these alone mean tumour.

How files are read stands in :mod:`sslpath.outlines`.
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from sslpath.errors import AnnotationError, counted
from sslpath.files import write_json
from sslpath.outlines import EMPTY, areas_only, read_outlines
from sslpath.slide_files import same
from sslpath.slides import SUFFIXES

Reading = Literal["tumour", "normal", "cut out", "region"]

TUMOUR = (
    r"tumou?rs?\d*|tumou?ral|tumores|tumeurs?|(?:micro|macro)?m[eé]t[aá]sta(?:s[ei]s?|sen|tic)|"
    r"cancers?|cancerous|\w*carcinomas?|\w*karzinome?|malignan\w*|neoplas\w*|melanomas?|"
    r"\w*sarcomas?|lymphomas?|itcs?"
)
TUMOUR_WORD = re.compile(TUMOUR)
# Words that leave the meaning of the word beside them as it is.
NEUTRAL_WORD = re.compile(
    r"invasive|infiltrating|primary|viable|solid|macro|micro|large|small|main|grade|pattern|stage|"
    r"type|class|area|areas|region|regions|nests?|cells?|tissue|epitheli\w+|annotation|outline|roi|"
    r"high|low|left|right|upper|lower|positive|ductal|lobular|squamous|[a-z]?\d+|[a-mt]|i+v?|"
    r"lymphoid|lymph|node|gland|glands|mucosa|isolated"
)
SAYS_NOTHING = re.compile(
    rf"{NEUTRAL_WORD.pattern}|groups?|annotations|outlines|polygon|rectangle|spline|none|unnamed"
)
NORMAL_WORD = re.compile(r"normal|negative|benign|healthy")
NORMAL_AMONG_OTHERS = re.compile(r"(?<!not )(?<!non )\b(?:normal|benign|healthy)\b")
# Tumour is denied right before the word, or right after it.
DENIED = re.compile(
    r"(?:\b(?:no|not|without|free of|absence of|kein\w*|nicht|sin|sans|senza|ohne|zero|non)\b|^0) "
    rf"(?:(?:evidence of|residual|viable|visible|definite|any) )*(?:{TUMOUR})\b|"
    rf"\bnon(?:{TUMOUR})\b|\b(?:{TUMOUR}) ?(?:free|frei|vrij|absent|none)\b"
)
DOUBTFUL = re.compile(r"\?|\([\s−–-]*\)|[−–-]\s*$")
DENIED_PART = re.compile(r"none|absent|no|nil|not present|n/?a|false|-")
CUT_OUT = re.compile(r"exclu|ignor|cut[\s_-]*outs?\b|holes?\b|.*\b(?:to exclude|excluded?)\W*$")
CAMELYON: dict[str, Reading] = {"_0": "tumour", "_1": "tumour", "_2": "cut out"}
MENTIONS_TUMOUR = re.compile(
    r"tumou?r|tumeur|m[eé]t[aá]sta|cancer|carcinom|karzinom|malignan|neoplas|melanom|sarcom|lymphoma"
)
ENDINGS = (".xml", ".geojson", ".json")


def reading_of(name: str, tumour: Collection[str] = (), within: Sequence[str] = ()) -> Reading:
    """What an outline of this name is read as; the table is in the module's docstring.

    Args:
        name: A class of QuPath or a group of ASAP.
        tumour: The names that mean tumour, whole or as a base class; the default rule if empty.
        within: Groups that the group lies in, the nearest first.

    Example:
        >>> [reading_of(name) for name in ("Tumor: Positive", "Tumor-free stroma", "Ignore*")]
        ['tumour', 'normal', 'cut out']
        >>> reading_of("Lesion", tumour=["lesion"])
        'tumour'
    """
    mine, says = {same(one) for one in tumour}, False
    for one in (name, *within):
        whole = same(one)
        base, *parts = (part.strip() for part in whole.split(":"))
        if mine and not says and (whole in mine or base in mine):
            return "tumour"
        found = _default_reading(base, parts)
        # What lies in a group that is cut out is cut out, whatever it is.
        if found == "cut out" or (not says and found not in ("region", "tumour" if mine else "")):
            return found
        says = says or (found == "region" and not says_nothing(base))
    return "region"


def says_nothing(name: str) -> bool:
    """Whether a name tells nothing of the tissue, such as ``region 2``.

    Example:
        >>> [says_nothing(name) for name in ("region 2", "unnamed", "Stroma")]
        [True, True, False]
    """
    return all(SAYS_NOTHING.fullmatch(word) for word in _words(same(name)))


def _words(name: str) -> list[str]:
    name = name.replace("w/o", "without").replace("s/ ", "sans ").replace("n/a", "na")
    return re.findall(r"[^\W_]+", name)


def _default_reading(name: str, parts: Sequence[str] = ()) -> Reading:
    if name in CAMELYON:
        return CAMELYON[name]
    if CUT_OUT.match(name):
        return "cut out"
    words = _words(name)
    plain = " ".join(words).replace("non small cell", "small cell")
    if DENIED.search(plain):
        return "normal"
    if DOUBTFUL.search(name) or any(DENIED_PART.fullmatch(part) for part in parts):
        return "region"
    marked = [word for word in plain.split() if not NEUTRAL_WORD.fullmatch(word)]
    if marked and all(TUMOUR_WORD.fullmatch(word) for word in marked):
        return "tumour"
    if marked and all(NORMAL_WORD.fullmatch(word) for word in marked):
        return "normal"
    if NORMAL_AMONG_OTHERS.search(plain) and not MENTIONS_TUMOUR.search(plain):
        return "normal"
    return "region"


@dataclass(frozen=True)
class Annotations:
    """The outlines of one slide, as shapely polygons in level-0 px.

    ``Annotations()`` without any region says: looked at, and no tumour.

    Attributes:
        regions: Area by name, as drawn; areas of two names may overlap.
        path: The file they come from, for messages.
        readings: What each name is read as; by the default rule where it is not given.
        groups: Names of groups of ASAP around the groups of the outlines.
        outlines: Each outline by itself, name and area; by default the regions.
        loose: Where points and lines mark tumour without an area.
        notes: What was left out in reading the file.

    Example:
        >>> square = shapely.box(0, 0, 10, 10)
        >>> drawn = Annotations({"tumour grade 2": square, "exclude": shapely.box(0, 0, 10, 5)})
        >>> drawn.tumour.area, drawn.excluded.area
        (50.0, 50.0)
    """

    regions: Mapping[str, BaseGeometry] = field(default_factory=dict)
    path: str = "annotations"
    readings: Mapping[str, Reading] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    outlines: tuple[tuple[str, BaseGeometry], ...] = ()
    loose: BaseGeometry = EMPTY

    @property
    def holds_no_area(self) -> bool:
        """Whether the file holds something, such as points, but no area: it labels no tile."""
        return bool(self.notes) and not self.regions

    def reading(self, name: str) -> Reading:
        """What a name is read as."""
        return self.readings.get(name) or reading_of(name)

    def _read_as(self, reading: Reading) -> BaseGeometry:
        drawn = [area for name, area in self.regions.items() if self.reading(name) == reading]
        return areas_only(shapely.union_all(drawn))

    @cached_property
    def tumour(self) -> BaseGeometry:
        """The union of all tumour regions, less what is cut out or is normal tissue inside them.

        Where outlines of tumour and of normal tissue overlap, the smaller one counts.
        """
        drawn = [
            (self.reading(name), part)
            for name, area in self.outlines or self.regions.items()
            for part in shapely.get_parts(area)
        ]
        tumour, normal = (
            np.array([part for reading, part in drawn if reading == kind], object)
            for kind in ("tumour", "normal")
        )
        at, of = shapely.STRtree(normal).query(tumour, "intersects")
        smaller = shapely.area(normal[of]) < shapely.area(tumour[at])
        for i in np.unique(at[smaller]):
            inside = normal[of[smaller & (at == i)]]
            tumour[i] = shapely.difference(tumour[i], shapely.union_all(inside))
        return areas_only(shapely.difference(shapely.union_all(tumour), self.excluded))

    @cached_property
    def excluded(self) -> BaseGeometry:
        """The union of all regions that are cut out."""
        return self._read_as("cut out")

    @property
    def kinds(self) -> dict[str, BaseGeometry]:
        """The regions that name a kind of tissue: all but the excluded."""
        return {n: area for n, area in self.regions.items() if self.reading(n) != "cut out"}

    def moved(self, x: float, y: float) -> "Annotations":
        """The same outlines, further right by ``x`` and further down by ``y`` level-0 px."""

        def there(area: BaseGeometry) -> BaseGeometry:
            return shapely.transform(area, lambda points: points + np.array([x, y]))

        return replace(
            self,
            regions={name: there(area) for name, area in self.regions.items()},
            outlines=tuple((name, there(area)) for name, area in self.outlines),
            loose=there(self.loose),
        )


def read_annotations(path: str | Path, tumour: Collection[str] = ()) -> Annotations:
    """Read ASAP ``.xml`` or ``.geojson`` / ``.json``, also packed as ``.gz``.

    Polygons that cross themselves are repaired: what they wind around is inside. Those that enclose
    no area are left out with a warning.

    Args:
        path: The file.
        tumour: The names that mean tumour; see :func:`reading_of`.

    Raises:
        AnnotationError: If the file is missing, damaged, hostile, or something else.
    """
    drawn = load_annotations(path, tumour)
    for note in drawn.notes:
        warnings.warn(note, stacklevel=2)
    return drawn


def load_annotations(path: str | Path, tumour: Collection[str] = ()) -> Annotations:
    """As :func:`read_annotations`, but what was left out is said in ``notes`` only."""
    drawn = read_outlines(Path(path))
    outlines, notes = drawn.outlines, drawn.notes
    areas: dict[str, list[BaseGeometry]] = {}
    readings: dict[str, Reading] = {}
    for outline in outlines:
        areas.setdefault(outline.name, []).append(outline.area)
        readings[outline.name] = reading_of(outline.name, tumour, outline.within)
    marks = [one for one in drawn.loose if reading_of(one.name, tumour, one.within) == "tumour"]
    if marks and outlines:
        notes.append(
            f"{path}: {counted(len(marks), 'mark')} without an area (points or lines) named "
            f"{', '.join(dict.fromkeys(one.name for one in marks))}: tiles there are unlabelled "
            "unless an outline says tumour."
        )
    return Annotations(
        {name: areas_only(shapely.union_all(each)) for name, each in areas.items()},
        str(path),
        readings,
        tuple(dict.fromkeys(group for outline in outlines for group in outline.within)),
        tuple(notes),
        tuple((outline.name, outline.area) for outline in outlines),
        shapely.union_all([one.area for one in marks]) if marks else EMPTY,
    )


def annotation_files(slide_ids: Iterable[str], folder: str | Path) -> dict[str, list[Path]]:
    """The files of a folder that are named like each slide; of most slides one or none.

    ``case.xml``, ``case.geojson``, ``case.geojson.gz`` and QuPath's ``case.svs.geojson`` are all
    named like the slide ``case``. Capitals and the encoding of accents do not matter, as copies
    differ in them. Hidden files are passed over.
    """
    ids = list(slide_ids)
    alike = Counter(same(slide_id) for slide_id in ids)
    files: dict[str, dict[Path, str]] = {}
    for path in sorted(Path(folder).iterdir()):
        name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
        if path.name.startswith(".") or name.suffix.lower() not in ENDINGS:
            continue
        stem = Path(name.stem)
        owns = {stem.name}
        # `case.svs.geojson` is of `case`, unless a slide is called `case.svs`.
        if stem.suffix.lower() in SUFFIXES and same(stem.name) not in alike:
            owns.add(stem.stem)
        for own in owns:
            files.setdefault(same(own), {})[path] = own
    return {
        slide_id: [
            path
            for path, own in files.get(same(slide_id), {}).items()
            # Two slides may differ in capitals alone: then capitals matter.
            if alike[same(slide_id)] == 1 or own == slide_id
        ]
        for slide_id in ids
    }


def the_file(slide_id: str, files: Sequence[Path]) -> Path | None:
    """The one file of a slide, or None.

    Raises:
        AnnotationError: If there are several.
    """
    if len(files) > 1:
        raise AnnotationError(
            f"Slide {slide_id} has several annotations: {', '.join(map(str, files))}. Keep one."
        )
    return files[0] if files else None


def annotations_of(
    slide_id: str, folder: str | Path, tumour: Collection[str] = ()
) -> Annotations | None:
    """Read the annotations of a slide from a folder, if it has any there.

    Raises:
        AnnotationError: If there are several, or they cannot be read.
    """
    path = the_file(slide_id, annotation_files([slide_id], folder)[slide_id])
    return None if path is None else read_annotations(path, tumour)


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
