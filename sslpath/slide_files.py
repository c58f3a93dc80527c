"""Finding slides in folders, and slides by the names that users' own lists give them."""

import difflib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

from sslpath.errors import ConfigError, DataError, SlideError
from sslpath.handles import open_slide
from sslpath.slides import SUFFIXES, Slide

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def find_slides(places: Iterable[str | Path] | str | Path) -> list[Slide]:
    """The slides that ``places`` name: files as they are, folders searched for slide files.

    Hidden files of a folder are passed over; Macs leave some beside each file (``._case.svs``).
    OpenSlide opens a whole DICOM series from any of its files, so all of them are one slide. It is
    called like its folder, or like its first file if the folder holds other series too.

    Args:
        places: Files and folders, or a single one.

    Raises:
        DataError: If a folder holds no slide.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.svs", "a.tif", "._a.tif", "notes.txt"):
        ...     (folder / name).touch()
        >>> [slide.slide_id for slide in find_slides(folder)]
        ['a', 'b']
    """
    listed = [Path(places)] if isinstance(places, str | Path) else [Path(one) for one in places]
    paths = [path for place in listed for path in (_inside(place) if place.is_dir() else [place])]
    # Other files stay apart by their place in the list: one listed twice is a mistake to report.
    groups: dict[tuple[Path, str], list[Path]] = {}
    whole: set[tuple[Path, str]] = set()
    for i, path in enumerate(paths):
        series = _series(path) if path.suffix.lower() == ".dcm" else f"{i}"
        groups.setdefault((path.parent, series or str(path)), []).append(path)
        if series:
            whole.add((path.parent, series))
    # Files that cannot be opened, each a series of its own, do not count.
    in_folder = Counter(folder for folder, _ in whole)
    slides = [
        Slide(files[0], slide_id=folder.resolve().name)
        if len(files) > 1 and in_folder[folder] == 1
        else Slide(files[0])
        for (folder, _), files in groups.items()
    ]
    return _readable_of_two(slides)


def _readable_of_two(slides: list[Slide]) -> list[Slide]:
    """Of slides of one name in one folder the readable one: the others were converted to it."""
    alike = Counter((slide.path.parent, slide.slide_id) for slide in slides)
    kept = []
    for slide in slides:
        if alike[slide.path.parent, slide.slide_id] > 1 and not _opens(slide.path):
            twins = [one for one in slides if one.slide_id == slide.slide_id and one is not slide]
            if any(_opens(one.path) for one in twins):
                warnings.warn(
                    f"{slide.path} cannot be opened and is passed over: {twins[0].path.name} "
                    "beside it has the same name.",
                    stacklevel=3,
                )
                continue
        kept.append(slide)
    return kept


def _opens(path: Path) -> bool:
    try:
        open_slide(path)
    except SlideError:
        return False
    return True


def _inside(folder: Path) -> list[Path]:
    """The slide files of a folder; its images are mentioned, as they may be slides to be."""
    files = sorted(
        path
        for path in folder.iterdir()
        # A link that leads nowhere is a slide that is missing, to be reported like any other.
        if not path.name.startswith(".") and (path.is_file() or path.is_symlink())
    )
    slides = [path for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if any(path.suffix.lower() == ".vms" for path in slides):
        images = []  # such a slide consists of JPEGs
    convert = "`sslpath data convert IMAGE --mpp UM_PER_PIXEL`"
    if slides and images:
        warnings.warn(
            f"{folder}: images are skipped ({len(images)}, such as {images[0].name}). {convert} "
            "makes a slide of an image.",
            stacklevel=3,
        )
    elif images:
        raise DataError(
            f"No slides in {folder}, only images ({len(images)}, such as {images[0].name}). Make "
            f"a slide of each with {convert}."
        )
    elif not slides:
        raise DataError(f"No slides in {folder}: no file ends in {', '.join(sorted(SUFFIXES))}.")
    return slides


def _series(path: Path) -> str:
    """Which DICOM series a file belongs to; empty if it cannot be opened."""
    try:
        properties = open_slide(path).handle.properties
    except SlideError:
        return ""
    return str(properties.get("dicom.SeriesInstanceUID", path))


def same(name: str) -> str:
    r"""A form in which names are compared: neither capitals, nor space, nor encoding matter.

    Macs write accents as characters of their own (NFD), other systems do not.

    Example:
        >>> same(" Tumör ") == same("Tumo\u0308r")
        True
    """
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def slides_named(
    names: Iterable[str], slides: Mapping[str, str], where: str, *, others: bool = False
) -> dict[str, str]:
    r"""The slide that each name means: its id or its file, also with a path of any system.

    Args:
        names: Names as people list them, such as ``case``, ``CASE.svs`` or ``C:\slides\case.svs``.
        slides: File name by id; empty where there is no file.
        where: What lists the names, for messages.
        others: Whether names may mean slides that are not at hand; these are left out.

    Raises:
        ConfigError: If a name means no slide, or may mean several.

    Example:
        >>> slides_named(["CASE.svs", "/old/b.tif"], {"case": "case.svs", "b": "b.tif"}, "a.csv")
        {'CASE.svs': 'case', '/old/b.tif': 'b'}
    """
    folded: dict[str, set[str]] = {}
    for slide_id, file in slides.items():
        for own in {slide_id, file} - {""}:
            folded.setdefault(same(own), set()).add(slide_id)
    found: dict[str, str] = {}
    for name in names:
        file = PureWindowsPath(name).name  # the last part of a path of any system
        exact = next((n for n in (name, file) if n in slides), None)
        meant = {exact} if exact else folded.get(same(name)) or folded.get(same(file)) or set()
        if len(meant) > 1:
            raise ConfigError(f"{where}: {name!r} may mean {' or '.join(sorted(meant))}.")
        if meant:
            found[name] = meant.pop()
        elif not others:
            close = difflib.get_close_matches(file, slides, 1) or list(slides)[:5]
            raise ConfigError(
                f"{where} names {name!r}, but no slide has this name. Slides are named after their "
                f"files, with or without the ending: {', '.join(close)}."
            )
    return found
