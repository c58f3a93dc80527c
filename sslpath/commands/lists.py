"""Users' own lists, as CSV: pixel sizes of slides, and the patient of each slide.

Spreadsheets write CSV in several ways: with commas, semicolons or tabs, with headings in capitals,
in UTF-8, UTF-16 or the encoding of Windows. All of these are read. What a list says is checked
against the slides at hand.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sslpath.commands.shared import say, warn
from sslpath.errors import ConfigError, PixelSizeError, SlideError

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.slides import Slide

NUMBER = re.compile(r"\d+\.?\d*(e[+-]?\d+)?|\.\d+", re.IGNORECASE | re.ASCII)
SPLITS = ("train", "test")
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")  # what programs write for no value


def read_list(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by heading, in small letters; all values as text.

    Args:
        path: The file.
        needed: Headings that it must have.

    Raises:
        ConfigError: If it cannot be read, or lacks a heading.
    """
    try:
        text = _text(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"Cannot read {path} as CSV: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read {path} as CSV: it is not text ({error}).") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].lower().startswith("sep="):  # Excel's note to itself
        lines = lines[1:]
    if not lines:
        raise ConfigError(f"{path} is empty; it needs the columns {', '.join(needed)}.")
    try:
        delimiter = max(",;\t", key=lines[0].count)
        table = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    except csv.Error as error:
        raise ConfigError(f"Cannot read {path} as CSV: {error}.") from error
    headings = ["_".join(cell.lower().split()) for cell in table[0]]
    missing = [name for name in needed if name not in headings]
    if missing:
        raise ConfigError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table[0])}."
        )
    twice = [name for name in needed if headings.count(name) > 1]
    if twice:
        raise ConfigError(f"{path} has two columns {', '.join(twice)}. Keep one.")
    if len(table) == 1:
        warn(f"{path} has headings and no row")
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if len(cells) > len(headings) and any(cell.strip() for cell in cells[len(headings) :]):
            raise ConfigError(
                f"{path}, row {number} has more cells than the {len(headings)} headings: "
                f"{delimiter.join(cells)[:80]!r}. Write numbers with a decimal point."
            )
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(headings, (cell.strip() for cell in cells), strict=False))
        rows.append({name: row.get(name, "") for name in headings})
    return rows


def _text(data: bytes) -> str:
    """Text in whatever encoding a spreadsheet writes."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def with_mpp(slides: "list[Slide]", text: str | None) -> "list[Slide]":
    """The slides with their pixel sizes: a number where they do not say, or a CSV's.

    Args:
        slides: The slides.
        text: What ``--mpp-override`` was given.

    Raises:
        ConfigError: If a size is no number, two rows contradict each other, or a name is no slide.
        PixelSizeError: If a size is not plausible.
    """
    from sslpath.slides import Slide, check_mpp

    if text is None:
        return slides
    if NUMBER.fullmatch(text.strip()):
        number = check_mpp(float(text), "--mpp-override")
        sizes = {slide.slide_id: number for slide in slides if _is_silent(slide)}
        if not sizes:
            warn(
                f"--mpp-override {text} changes nothing: every slide states its pixel size. A CSV "
                "with the columns wsi,mpp overrides what slides state."
            )
    elif re.fullmatch(r"[\d.,]+\s*\w*", text) and not Path(text).exists():
        raise ConfigError(
            f"--mpp-override {text} is not a number (um per pixel, such as 0.25), nor is it a file."
        )
    else:
        sizes = _sizes(Path(text), slides)
        stated = {slide.slide_id: _stated(slide) for slide in slides if slide.slide_id in sizes}
        for slide_id, size in sizes.items():
            was = stated[slide_id]
            if was is not None and abs(was - size) > 0.01 * size:
                say(f"{slide_id}: {size:g} um per pixel, not the {was:g} that the slide states")
    return [
        Slide(slide.path, sizes.get(slide.slide_id), slide_id=slide.slide_id) for slide in slides
    ]


def _is_silent(slide: "Slide") -> bool:
    """Whether a slide does not say its pixel size, or says one that cannot be."""
    try:
        float(slide.mpp)
    except PixelSizeError:
        return True
    except SlideError:  # broken: that is reported when it is tiled
        return False
    return False


def _stated(slide: "Slide") -> float | None:
    try:
        return slide.mpp
    except SlideError:
        return None


def _sizes(path: Path, slides: "list[Slide]") -> dict[str, float]:
    """Pixel sizes by slide, of a CSV with the columns wsi (a slide's name or file) and mpp."""
    from sslpath.slide_files import slides_named
    from sslpath.slides import check_mpp

    rows = read_list(path, ["wsi", "mpp"])
    ids = slides_named(
        (row["wsi"] for row in rows), {one.slide_id: one.path.name for one in slides}, str(path)
    )
    sizes: dict[str, float] = {}
    for row in rows:
        name, text = row["wsi"], row["mpp"]
        if not NUMBER.fullmatch(text):
            raise ConfigError(
                f"{path}: the mpp of {name} is {text!r}, not a number of um per pixel. Write "
                "it like 0.25; leave out slides whose size is not known."
            )
        size = check_mpp(float(text), f"{path}, {name}")
        if sizes.setdefault(ids[name], size) != size:
            raise ConfigError(
                f"{path} gives {ids[name]} two pixel sizes: {sizes[ids[name]]:g} and {size:g}. "
                "Keep one."
            )
    return sizes


def with_patients(tiles: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    """The table with the patients, and if the list says it the split, of a CSV.

    Slides that are not in the table are passed over.

    Raises:
        ConfigError: If a slide of the table has no patient, or two; or patients and splits cross.
    """
    from sslpath.slide_files import same, slides_named

    rows = read_list(path, ["slide_id", "patient_id"])
    sources = tiles.attrs["source"].get("slides", {})
    files = {
        name: Path(sources[name]["path"]).name if name in sources else ""
        for name in tiles["slide_id"].unique()
    }
    ids = slides_named((row["slide_id"] for row in rows), files, str(path), others=True)
    known: dict[str, tuple[str, str]] = {}
    spelt: dict[str, str] = {}
    for row in rows:
        if row["slide_id"] not in ids or same(row["patient_id"]) in MISSING:
            continue
        row["patient_id"] = _one_spelling(row["patient_id"], spelt)
        slide_id, said = ids[row["slide_id"]], (row["patient_id"], row.get("split", "").lower())
        if known.setdefault(slide_id, said) != said:
            raise ConfigError(f"{path} lists {slide_id} twice, with different patients or splits.")
    unknown = sorted(set(files) - set(known))
    if unknown:
        raise ConfigError(f"{path} does not name the patient of {', '.join(unknown[:5])}.")
    patient, split = ({name: said[i] for name, said in known.items()} for i in (0, 1))
    if any("split" in row for row in rows):
        _check_splits(known.values(), path)
    return tiles.assign(
        patient_id=tiles["slide_id"].map(patient).astype("str"),
        split=tiles["slide_id"].map(split).astype("str"),
    )


def _one_spelling(patient: str, spelt: dict[str, str]) -> str:
    """A patient as first spelt: spaces, capitals, or a decimal of Excel's make no other person."""
    from sslpath.slide_files import same

    plain = "".join(sign for sign in patient if unicodedata.category(sign) != "Cf")
    key = re.sub(r"^(\d+)\.0+$", r"\1", same(plain))
    first = spelt.setdefault(key, patient)
    if first != patient:
        warn(f"the patients {first!r} and {patient!r} are read as one")
    return first


def _check_splits(said: Iterable[tuple[str, str]], path: Path) -> None:
    sides: dict[str, str] = {}
    for patient, split in said:
        if split not in SPLITS or sides.setdefault(patient, split) != split:
            raise ConfigError(
                f"{path}: every slide needs a split of train or test, the same for all slides of a "
                f"patient; look at {patient} ({split or 'no split'})."
            )
