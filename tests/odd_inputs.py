"""Odd inputs that are read as they are meant, or as it is said: see `bad_inputs` for the others.

A case makes its input in a folder of its own, uses it as a user would, and returns what came of
it. `CASES` says what that must be, and of what the user must be warned, if of anything.
"""

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyvips
from conftest import MPP, write_lossless, write_scn, write_slide
from numpy.typing import NDArray

from sslpath.commands.lists import with_mpp, with_patients
from sslpath.slide_files import find_slides
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import load_tiles, save_tiles
from sslpath.tiling import tile_slides


class Case(NamedTuple):
    """An odd input.

    Attributes:
        name: What it is.
        use: Makes it in a folder, uses it, and returns what came of it.
        gives: What must come of it.
        warns: A part of the warning, as a regular expression; empty if there is none.
    """

    name: str
    use: Callable[[Path], object]
    gives: object
    warns: str = ""


SQUARE = [(200, 100), (400, 100), (400, 300), (200, 300)]  # four tiles
RIGHT = "4 tumour, 16 other"
NONE = "0 tumour, 20 other"
UNKNOWN = "0 tumour, 0 other"


def tissue(width: int = 500, height: int = 400) -> NDArray[np.uint8]:
    """Tissue from edge to edge."""
    image = np.full((height, width, 3), (222, 150, 190), np.uint8)
    image[::7, ::5] = (95, 60, 135)
    return image


def section(folder: Path, name: str = "case.tif") -> Path:
    """A slide of 20 tiles of 100 px."""
    return write_lossless(folder / name, [tissue()])


def labels(folder: Path, slide: Slide | None = None, **settings: Any) -> str:
    """How many tiles of the slide in a folder are labelled what, by the outlines beside it."""
    slide = slide or Slide(section(folder))
    how = {"mpp": MPP, "tile_px": 100, "progress": False, "on_error": "raise"}
    tiles, _ = tile_slides([slide], annotations_dir=folder, **(how | settings))
    return "{} tumour, {} other".format(*((tiles["label"] == value).sum() for value in (1, 0)))


def feature(properties: Any, points: Any = SQUARE, kind: str = "Polygon", **more: Any) -> Any:
    rings = [points] if kind == "Polygon" else points
    geometry = {"type": kind, "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def drawn(*features: Any, name: str = "case.geojson") -> Callable[[Path], str]:
    """Labels by a GeoJSON file of this name and these features."""

    def use(folder: Path) -> str:
        text = json.dumps({"type": "FeatureCollection", "features": features}).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return labels(folder)

    return use


def asap(*outlines: tuple[str, str, Any], groups: str = "") -> Callable[[Path], str]:
    """Labels by an ASAP file of outlines: group, type, and points with their order."""

    def use(folder: Path) -> str:
        text = "".join(
            f'<Annotation Name="Annotation {i}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
            + "".join(f'<Coordinate Order="{at}" X="{x}" Y="{y}"/>' for at, (x, y) in points)
            + "</Coordinates></Annotation>"
            for i, (group, kind, points) in enumerate(outlines)
        )
        (folder / "case.xml").write_text(
            f"<ASAP_Annotations><Annotations>{text}</Annotations>"
            f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
        )
        return labels(folder)

    return use


def points(corners: Any = SQUARE) -> list[tuple[int, Any]]:
    return list(enumerate(corners))


TWICE = [*SQUARE, SQUARE[0], (250, 150), (350, 150), (350, 250), (250, 250), (250, 150)]
NESTED = '<Group Name="Grade 3" PartOfGroup="Tumor"/><Group Name="Tumor" PartOfGroup="None"/>'


def named(slide_name: str, file_name: str) -> Callable[[Path], str]:
    """Labels of a slide by a file of outlines, each of its own name."""

    def use(folder: Path) -> str:
        (folder / file_name).write_text(json.dumps([feature({"name": "Tumor"})]))
        return labels(folder, Slide(section(folder, slide_name)))

    return use


def with_option(name: str, **option: Any) -> Callable[[Path], str]:
    def use(folder: Path) -> str:
        (folder / "case.geojson").write_text(json.dumps([feature({"name": name})]))
        return labels(folder, **option)

    return use


def scanned_in_part(folder: Path, **option: Any) -> str:
    slide = Slide(write_scn(folder / "case.scn", tissue(), (700, 900)))
    (folder / "case.geojson").write_text(json.dumps([feature({"name": "Tumor"})]))
    return labels(folder, slide, **option)


# Scale and pixels


def narrow(folder: Path) -> int:
    """The shift, in px, of a tile at the far end of a slide of 40,001 x 601 px."""
    x = np.broadcast_to(np.arange(40_001), (601, 40_001))
    image = np.stack([abs(x % 400 - 200)] * 3, axis=2).astype(np.uint8)
    path = folder / "narrow.tif"
    how = {"tile": True, "pyramid": True, "compression": "deflate", "resunit": "cm"}
    pyvips.Image.new_from_array(image).tiffsave(str(path), xres=1e3 / MPP, yres=1e3 / MPP, **how)
    tile = Slide(path).read(39_600, 200, 100, 2 * MPP)[50, :, 0].astype(int)
    shifts = [np.abs(tile - abs((39_600 + 2 * np.arange(s, s + 100)) % 400 - 200)).mean()
              for s in range(-20, 21)]  # fmt: skip
    return int(np.argmin(shifts)) - 20


def sizes(text: str) -> Callable[[Path], dict[str, float | None]]:
    def use(folder: Path) -> dict[str, float | None]:
        section(folder)
        (folder / "mpp.csv").write_bytes(text.encode("cp1252"))
        slides = with_mpp(find_slides(folder), str(folder / "mpp.csv"))
        return {slide.slide_id: slide.mpp_override for slide in slides}

    return use


def patients(text: str) -> Callable[[Path], list[str]]:
    def use(folder: Path) -> list[str]:
        tiles, _ = tile_slides([Slide(section(folder))], mpp=MPP, tile_px=100, progress=False)
        (folder / "patients.csv").write_text(text, encoding="utf-16")
        tiles = with_patients(tiles, folder / "patients.csv")
        return [*tiles["patient_id"].unique(), *tiles["split"].unique()]

    return use


# Files of other systems


def hidden_files(folder: Path) -> list[str]:
    section(folder)
    for name in ("._case.tif", ".DS_Store", "._scan.dcm"):
        (folder / name).write_bytes(b"Mac OS X")
    return [slide.slide_id for slide in find_slides(folder)]


def windows_table(folder: Path) -> tuple[int, ...]:
    tiles, _ = tile_slides([Slide(section(folder))], mpp=MPP, tile_px=100, progress=False)
    tiles.attrs["source"]["slides"]["case"]["path"] = "C:\\slides\\case.tif"
    save_tiles(tiles, folder / "t.parquet")
    table = load_tiles(folder / "t.parquet")
    return open_source(table, folder).read(table).shape


def double_rows(folder: Path) -> int:
    tiles, _ = tile_slides([Slide(section(folder))], mpp=MPP, tile_px=100, progress=False)
    twice = pd.concat([tiles, tiles])
    twice.attrs = tiles.attrs
    save_tiles(twice, folder / "t.parquet")
    return len(load_tiles(folder / "t.parquet"))


def silent(folder: Path) -> float | None:
    write_slide(folder / "case.tif", tissue(), mpp=None)
    return with_mpp(find_slides(folder), "0.5")[0].mpp_override


TUMOR = {"classification": {"name": "Tumor"}}
CASES = [
    Case("class as QuPath up to 0.4 writes it", drawn(feature(TUMOR)), RIGHT),
    Case(
        "derived class as QuPath from 0.5 on writes it",
        drawn(feature({"classification": {"names": ["Tumor", "Positive"]}})),
        RIGHT,
    ),
    Case(
        "class as text, as GeoPandas writes it",
        drawn(feature({"classification": '{"name": "Tumor"}'})),
        RIGHT,
    ),
    Case("class with space around it", drawn(feature({"name": " Tumor "})), RIGHT),
    Case("a tumour by another word", drawn(feature({"name": "Invasive carcinoma"})), RIGHT),
    Case(
        "tumour that is said to be absent",
        drawn(feature({"name": "Tumor-free stroma"})),
        NONE,
        "No outline has a name that means tumour.*Tumor-free stroma",
    ),
    Case("outline without a class", drawn(feature({})), NONE, "region: unnamed"),
    Case("a name that is told", with_option("Lesion", tumour=["lesion"]), RIGHT),
    Case(
        "a name that is told with a slip",
        with_option("Tumor", tumour=["Tumour"]),
        NONE,
        "No outline is named Tumour",
    ),
    Case(
        "cells that QuPath detected",
        drawn(feature({"objectType": "cell", **TUMOR})),
        UNKNOWN,
        "passed over 1 detection ",
    ),
    Case(
        "points alone",
        drawn(feature(TUMOR, [[250, 150]], "MultiPoint")),
        UNKNOWN,
        "holds no area, only points and lines",
    ),
    Case("a bare geometry", drawn(feature(TUMOR), name="case.json"), RIGHT),
    Case("a packed file", drawn(feature(TUMOR), name="case.geojson.gz"), RIGHT),
    Case("a file named like the slide's file", named("case.tif", "case.tif.geojson"), RIGHT),
    Case(
        "an accent as a Mac writes it",
        named("f\u00e4lle.tif", unicodedata.normalize("NFD", "f\u00e4lle.geojson")),
        RIGHT,
    ),
    Case(
        "a slide without a file",
        named("case.tif", "other.geojson"),
        UNKNOWN,
        "for 1 slide, .*: case",
    ),
    Case(
        "points out of their order",
        asap(("Tumor", "Polygon", [points()[i] for i in (0, 2, 1, 3)])),
        RIGHT,
    ),
    Case("a ring that winds twice", asap(("Tumor", "Spline", points(TWICE))), RIGHT),
    Case("groups within groups", asap(("Grade 3", "Polygon", points()), groups=NESTED), RIGHT),
    Case(
        "normal tissue inside a tumour",
        asap(
            ("metastases", "Polygon", points([(0, 0), (500, 0), (500, 400), (0, 400)])),
            ("normal", "Polygon", points()),
        ),
        "16 tumour, 4 other",
    ),
    Case("outlines counted from the scanned area", scanned_in_part, NONE,
         "mostly outside of the scanned area.*--bounds"),
    Case(
        "the same, with --bounds",
        lambda folder: scanned_in_part(folder, bounds=True),
        RIGHT,
    ),
    Case("a narrow slide, far from its corner", narrow, 0),
    Case("a slide that does not say its pixel size, and a number", silent, 0.5),
    Case(
        "pixel sizes of a spreadsheet",
        sizes("sep=;\nWSI;Mpp\nC:\\s\\CASE.TIF;0.25\n"),
        {"case": 0.25},
    ),
    Case(
        "patients of a spreadsheet",
        patients("Slide_ID\tPatient_ID\tSplit\ncase.tif\tP1\tTrain\n"),
        ["P1", "train"],
    ),
    Case("hidden files", hidden_files, ["case"]),
    Case("a table made on Windows", windows_table, (20, 100, 100, 3)),
    Case("rows that are there twice", double_rows, 20, "has 20 rows twice"),
]  # fmt: skip
