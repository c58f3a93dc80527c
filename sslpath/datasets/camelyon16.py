"""Camelyon16: get it, and know which slide is what, in either layout of the data set.

Copies differ. The bucket of today holds ``images/``, ``annotations/`` and
``evaluation/reference.csv``; older ones ``training/normal``, ``training/tumor``,
``testing/images``, ``testing/reference.csv`` and the outlines in ``lesion_annotations.zip``; names
may have capitals. So slides are known by their names alone: ``normal_001``, ``tumor_001``,
``test_001``. 399 slides are of 399 patients, so leaving out the slide leaves out the patient.

What this module does not do: look at pixels; outlines are what labels come from, not masks.
"""

import csv
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from sslpath.datasets.bucket import (
    Lost,
    Remote,
    download_all,
    place_of,
    read_checksums,
)
from sslpath.datasets.download import fetch
from sslpath.datasets.registry import CAMELYON16
from sslpath.errors import ConfigError, DataError, SlideError
from sslpath.files import atomic_path, only_one
from sslpath.slides import Slide

URL, PREFIX = CAMELYON16.url, CAMELYON16.file
# In these slides not all tumour is outlined (README of the data): the rest is unknown, not normal.
NOT_EXHAUSTIVE = frozenset(
    {f"tumor_{n:03d}" for n in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67)}
    | {f"tumor_{n:03d}" for n in (79, 85, 92, 95, 110)}
    | {"test_114"}
)
# normal_086 was relabelled tumor_111, test_049 is a duplicate; copies may still hold them.
REMOVED = frozenset({"normal_086", "test_049"})
NAME = re.compile(r"(normal|tumor|test)_(\d{3})", re.IGNORECASE)
CENTRES = {"0": "Radboud", "1": "Utrecht"}
# um a pixel of the two scanners, and how far a slide may be from it.
SCANNERS = {"Radboud": 0.243, "Utrecht": 0.226}
MPP_TOLERANCE = 0.006
MANIFEST = "slides.csv"
COLUMNS = ("slide_id", "patient_id", "split", "class", "outlined", "centre", "path", "outlines")
MAX_OUTLINE_BYTES = 200_000_000  # of one file in an archive of outlines
ARCHIVE, CHECKSUMS = "lesion_annotations.zip", "checksums.md5"
ALWAYS = {ARCHIVE, CHECKSUMS, "reference.csv", "license.txt", "readme.md"}


@dataclass(frozen=True)
class CamelyonSlide:
    """What is known of a slide.

    Attributes:
        slide_id: Such as ``tumor_001``, in small letters.
        path: The image.
        split: The official one.
        tumour: Whether it holds tumour; None of a test slide without ``reference.csv``.
        exhaustive: Whether all tumour is outlined.
        centre: ``Radboud`` or ``Utrecht``, if ``reference.csv`` tells; ``slides.csv`` has that of
            the other slides too, by their pixel size.
        outlines: The ASAP XML, if there is one.
    """

    slide_id: str
    path: Path
    split: Literal["train", "test"]
    tumour: bool | None
    exhaustive: bool
    centre: str | None
    outlines: Path | None


def slide_id_of(path: str | Path, ending: str) -> str | None:
    """The slide that a file of the data set belongs to, or None if it is named otherwise.

    Example:
        >>> slide_id_of("training/tumor/Tumor_001.tif", ".tif")
        'tumor_001'
        >>> slide_id_of("masks/tumor_001_mask.tif", ".tif") is None
        True
    """
    name = Path(path).name.lower()
    stem = name.removesuffix(ending)
    return stem if stem != name and NAME.fullmatch(stem) else None


def fetch_camelyon16(
    folder: str | Path,
    files: Iterable[Remote],
    *,
    url: str = URL,
    workers: int = 4,
    verify: bool = False,
    strict: bool = False,
) -> tuple[list[CamelyonSlide], list[Lost]]:
    """Download files of Camelyon16, unpack outlines, and write down which slide is what.

    Args:
        folder: Where they go; it also gets ``slides.csv``.
        files: Of the bucket, see :func:`choose`.
        url: Address of the bucket.
        workers: See :func:`sslpath.datasets.bucket.download_all`.
        verify: Likewise.
        strict: Likewise.

    Returns:
        The slides of the folder, and the files that did not come.

    Raises:
        DataError: If nothing comes, or what comes is not Camelyon16.
        BusyError: If another process fetches into the folder.
    """
    folder, files = Path(folder), list(files)
    _check_manifest(folder / MANIFEST)
    sums: dict[str, str] = {}
    for one in files:
        if Path(one.key).name.lower() == CHECKSUMS:
            sums |= read_checksums(fetch(f"{url}/{one.key}").decode("utf-8", "replace"))
    how: dict[str, Any] = {"workers": workers, "verify": verify, "strict": strict}
    with only_one(folder):
        lost = download_all(files, url, PREFIX, folder, checksums=sums, **how)
        for one in files:
            place = place_of(one.key, PREFIX, folder)
            if place.name.lower() == ARCHIVE and place.exists():
                unpack_outlines(place, folder / "annotations")
        slides = [_with_centre(one) for one in find_camelyon16(folder)]
        write_manifest(slides, folder / MANIFEST)
    return slides, lost


def _with_centre(one: CamelyonSlide) -> CamelyonSlide:
    """Tell the centre by the scanner's pixel size where ``reference.csv`` does not say it."""
    if one.centre is not None:
        return one
    try:
        return replace(one, centre=centre_of(Slide(one.path).mpp))
    except SlideError:  # a broken slide is for `sslpath tile` to report
        return one


def choose(
    files: Iterable[Remote],
    slides: Sequence[str] = (),
    limit: int | None = None,
    masks: bool = False,
) -> list[Remote]:
    """The files of the bucket that some slides need.

    Args:
        files: As :func:`sslpath.datasets.bucket.list_bucket` gives them.
        slides: Names or patterns, such as ``tumor_001`` or ``test_0*``; all if empty.
        limit: At most so many slides, normal, tumour and test ones in turn.
        masks: Whether their masks are wanted; labels come from outlines.

    Raises:
        ConfigError: If a name or pattern fits no slide.
        DataError: If there is no slide at all.

    Example:
        >>> keys = ("images/normal_001.tif", "images/test_002.tif", "annotations/test_002.xml")
        >>> chosen = choose([Remote(key, 1) for key in keys], ["TEST_*"])
        >>> [one.key for one in chosen]
        ['images/test_002.tif', 'annotations/test_002.xml']
    """
    files = list(files)
    images = {name: one for one in files if (name := slide_id_of(one.key, ".tif"))}
    names = sorted(set(images) - REMOVED)
    if not names:
        raise DataError("The bucket holds no slide of Camelyon16 under this prefix.")
    for pattern in slides:
        if not any(fnmatch(name, pattern.lower()) for name in names):
            raise ConfigError(
                f"No slide is called {pattern!r}. Slides are called like {names[0]}; a pattern "
                "such as `tumor_0*` names several."
            )
    if slides:
        names = [n for n in names if any(fnmatch(n, pattern.lower()) for pattern in slides)]
    if limit is not None:
        kinds = ([n for n in names if n.startswith(k)] for k in ("normal", "tumor", "test"))
        turns = chain.from_iterable(zip_longest(*kinds))
        names = [n for n in turns if n is not None][:limit]
    wanted = set(names)

    def needed(key: str) -> bool:
        image, outlines = slide_id_of(key, ".tif"), slide_id_of(key, ".xml")
        mask = slide_id_of(key, "_mask.tif") if masks else None
        return bool(wanted & {image, outlines, mask}) or Path(key).name.lower() in ALWAYS

    return [one for one in files if needed(one.key)]


def split_of(slide_id: str) -> Literal["train", "test"]:
    """The official split of a slide, by its name."""
    return "test" if slide_id.lower().startswith("test") else "train"


def find_camelyon16(folder: str | Path) -> list[CamelyonSlide]:
    """All slides of a copy of Camelyon16, in order of their names.

    Raises:
        DataError: If there is none, a slide or its outlines are there twice, or ``reference.csv``
            cannot be understood.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images, outlines = (_by_slide(files, ending) for ending in (".tif", ".xml"))
    images = {name: path for name, path in images.items() if name not in REMOVED}
    if not images:
        raise DataError(
            f"No slide of Camelyon16 in {folder}: none is called like normal_001.tif, "
            "tumor_001.tif or test_001.tif. Fetch some with `sslpath data camelyon16`."
        )
    known = read_reference([path for path in files if path.name.lower() == "reference.csv"])
    return [_slide(name, path, outlines.get(name), known) for name, path in images.items()]


def _slide(
    name: str, path: Path, outlines: Path | None, known: dict[str, tuple[bool, str | None]]
) -> CamelyonSlide:
    tumour, centre = known.get(name, (None, None))
    if not name.startswith("test"):
        tumour = name.startswith("tumor")
    return CamelyonSlide(
        slide_id=name,
        path=path,
        split=split_of(name),
        tumour=tumour,
        exhaustive=name not in NOT_EXHAUSTIVE,
        centre=centre,
        outlines=outlines,
    )


def _by_slide(files: Iterable[Path], ending: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        name = slide_id_of(path, ending)
        if name is None:
            continue
        other = found.setdefault(name, path)
        if other != path:
            raise DataError(f"{name}{ending} is there twice: {other} and {path}. Keep one.")
    return dict(sorted(found.items()))


def read_reference(paths: Iterable[Path]) -> dict[str, tuple[bool, str | None]]:
    """Whether each slide of ``reference.csv`` holds tumour, and its centre.

    The newer form has the header ``image,class,type,center``; the older has none, and starts each
    line with the slide and ``Tumor`` or ``Normal``.

    Raises:
        DataError: If a line is neither.
    """
    known: dict[str, tuple[bool, str | None]] = {}
    for path in paths:
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"Cannot read {path}: {error}.") from error
        columns = [cell.strip().lower() for cell in lines[0]] if lines else []
        headed = "image" in columns and "class" in columns
        image, kind = (columns.index(c) for c in ("image", "class")) if headed else (0, 1)
        at = columns.index("center") if headed and "center" in columns else None
        for number, line in enumerate(lines[headed:], start=1 + headed):
            if not any(cell.strip() for cell in line):
                continue
            cells = [cell.strip() for cell in line]
            name = re.sub(r"\.tif$", "", cells[image].lower()) if len(cells) > image else ""
            what = cells[kind].lower() if len(cells) > kind else ""
            if not NAME.fullmatch(name) or what not in ("tumor", "normal", "negative"):
                raise DataError(
                    f"{path}, line {number}, is no slide and its class: {','.join(line)[:80]!r}. "
                    "Fetch the file again."
                )
            centre = cells[at] if at is not None and len(cells) > at else ""
            known[name] = (what == "tumor", CENTRES.get(centre))
    return known


def centre_of(mpp: float) -> str | None:
    """The centre whose scanner has this pixel size, in um; None if neither has.

    Example:
        >>> centre_of(0.2430938), centre_of(0.2262), centre_of(0.5)
        ('Radboud', 'Utrecht', None)
    """
    near = {name: abs(mpp - of) for name, of in SCANNERS.items()}
    best = min(near, key=lambda name: near[name])
    return best if near[best] <= MPP_TOLERANCE else None


def unpack_outlines(archive: str | Path, folder: str | Path) -> list[Path]:
    """Take the outlines out of ``lesion_annotations.zip``, flat into ``folder``.

    Only files called like a slide are taken, under that name alone, whatever folder the archive
    says they belong to. Files that are there already are kept.

    Raises:
        DataError: If the archive is damaged, or one of its files is absurdly large.
    """
    bodies: dict[Path, bytes] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = slide_id_of(member.filename, ".xml")
                target = Path(folder) / f"{name}.xml"
                if name is None or target.exists():
                    continue
                if member.file_size > MAX_OUTLINE_BYTES:
                    raise DataError(
                        f"{member.filename} in {archive} would have {member.file_size / 1e6:.0f} "
                        "MB; outlines have a few. The archive was not unpacked."
                    )
                bodies[target] = opened.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{archive} is damaged: {error}. Delete it and fetch it again.") from error
    for target, body in bodies.items():
        with atomic_path(target) as temporary:
            temporary.write_bytes(body)
    return list(bodies)


def _check_manifest(path: Path) -> None:
    """Refuse a folder whose ``slides.csv`` is somebody else's, before anything is fetched."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline().strip() != ",".join(COLUMNS):
                raise DataError(
                    f"{path} is there, and is not the list that sslpath writes under this name. "
                    "Move it, or choose another folder."
                )


def write_manifest(slides: Iterable[CamelyonSlide], path: str | Path) -> None:
    """Write what is known as CSV; its first columns suit ``sslpath tile --patients``."""
    words = {True: "tumour", False: "normal", None: ""}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in slides:
            writer.writerow(
                [
                    *(one.slide_id, one.slide_id, one.split, words[one.tumour]),
                    *("all" if one.exhaustive else "in part", one.centre or ""),
                    *(one.path, one.outlines or ""),
                ]
            )
