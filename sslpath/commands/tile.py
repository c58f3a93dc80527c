"""``sslpath tile``: slides to a table of tiles."""

import argparse
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import command, count, positive, report, say, scheduler_option, warn
from sslpath.errors import ConfigError, DataError, PixelSizeError, SlideError

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.commands.shared import Commands
    from sslpath.slides import Slide

SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide"),
    *(".bif", ".vms", ".vmu", ".dcm", ".czi"),
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
DEFAULTS: dict[str, Any] = {"mpp": 0.5, "tile_px": 224, "min_tissue": 0.5}
# Tiles of a zip are cut already, and labelled: these options have nothing to act on.
FOR_SLIDES = (
    *("mpp", "tile_px", "stride_px", "min_tissue", "max_tiles", "annotations"),
    *("not_exhaustive", "no_tumour", "mpp_override", "preview", "camelyon16"),
)
# What a copy of Camelyon16 says itself.
OF_CAMELYON16 = ("annotations", "not_exhaustive", "no_tumour", "patients")


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "tile",
        run,
        "slides to a table of tiles",
        "Cut the tissue of slides into a grid of tiles and write one table (Parquet).\n"
        "Pixels stay in the slides; the table says where. A zip in the layout of the IDC data\n"
        "set is a source too; of the options, --patients applies to it. Patients are split into\n"
        "train and test by a hash of their id (about 60 : 40), so the split is the same\n"
        "everywhere; --patients overrides it. All .dcm files of a DICOM series are one slide,\n"
        "called like the folder that holds it. Called again after it was stopped, the command\n"
        "goes on: slides that are done wait in a folder beside the table, ending in .parts.",
        "  sslpath tile slides/ --annotations slides/ --mpp 0.5 --tile-px 224 --out tiles.parquet\n"
        "  sslpath tile IDC_regular_ps50_idx5.zip --out idc.parquet\n",
    )
    p.add_argument(
        "slides",
        nargs="+",
        type=Path,
        metavar="SLIDE",
        help="slides, folders of slides, or one IDC zip",
    )
    p.add_argument("--out", type=Path, required=True, help="the table to write (.parquet)")
    p.add_argument("--mpp", type=positive, help="um per pixel of tiles (default 0.5)")
    p.add_argument("--tile-px", type=count, help="side of a tile (default 224)")
    p.add_argument("--stride-px", type=count, help="step of the grid (default: the tile's side)")
    p.add_argument("--min-tissue", type=float, help="tissue a tile needs (default 0.5)")
    p.add_argument(
        "--max-tiles", type=count, help="keep at most so many tiles a slide, evenly drawn"
    )
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="ASAP .xml or .geojson files named like the slides",
    )
    p.add_argument(
        "--not-exhaustive",
        nargs="+",
        metavar="SLIDE_ID",
        help="slides where what is not outlined is unknown, not normal",
    )
    p.add_argument(
        "--no-tumour",
        nargs="+",
        metavar="SLIDE_ID",
        help="slides known to hold no tumour; without an annotation their labels are 0",
    )
    p.add_argument(
        "--camelyon16",
        action="store_const",
        const=True,
        help="SLIDE is a copy of Camelyon16, in either layout: its outlines, the slides that are "
        "not outlined in full, those without tumour, patients and split are known",
    )
    p.add_argument(
        "--mpp-override",
        metavar="MPP|CSV",
        help="um per level-0 px: a number, for the slides that do not say theirs; or a CSV with "
        "the columns wsi,mpp, for the slides that it names, whatever they say",
    )
    p.add_argument(
        "--patients",
        type=Path,
        metavar="CSV",
        help="columns slide_id,patient_id and, if you like, split (train or test)",
    )
    p.add_argument(
        "--preview", type=Path, metavar="DIR", help="save each slide with its grid as PNG"
    )
    p.add_argument("--workers", type=count, default=2, help="processes (default 2)")
    scheduler_option(p)
    p.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="SECONDS",
        help="with several workers: a slide that takes longer counts as broken (default 600)",
    )
    p.add_argument(
        "--max-places",
        type=count,
        default=20_000_000,
        metavar="N",
        help="a slide whose grid has more places than this counts as broken: its header claims an "
        "absurd size (default 20 million)",
    )
    p.add_argument("--strict", action="store_true", help="stop at the first broken slide")


def run(options: argparse.Namespace) -> int:
    """``sslpath tile``."""
    from sslpath.table import save_tiles, split_by_patient

    failures: list[Any] = []
    if len(options.slides) == 1 and options.slides[0].suffix.lower() == ".zip":
        tiles = _tiles_of_zip(options)
    else:
        tiles, failures = _tile_slides(options)
    if options.patients is not None:
        tiles = _with_patients(tiles, options.patients)
    if options.camelyon16:
        from sslpath.datasets.camelyon16 import split_of

        tiles["split"] = tiles["slide_id"].map(split_of).astype("str")
    if not tiles["split"].isin(["train", "test"]).all():
        tiles = split_by_patient(tiles)
    save_tiles(tiles, options.out)
    tumour, other = (int((tiles["label"] == value).sum()) for value in (1, 0))
    counts = f"{tumour:,} tumour, {other:,} other, {len(tiles) - tumour - other:,} unlabelled"
    say(
        f"{options.out}: {len(tiles):,} tiles of {tiles['slide_id'].nunique()} slides ({counts}); "
        f"train {(tiles['split'] == 'train').sum():,}, test {(tiles['split'] == 'test').sum():,}"
    )
    if len(set(tiles["split"])) == 1:
        warn(
            f"so few patients that all are {tiles['split'].iloc[0]}: choose their split with "
            "--patients to train and to test"
        )
    code = report(failures, options.out.with_suffix(".failed.csv"), "slides gave no tiles")
    shutil.rmtree(parts_of(options.out), ignore_errors=True)
    return code


def parts_of(table: Path) -> Path:
    """Where the tiles of slides that are done wait for the others."""
    return table.with_suffix(".parts")


def _tiles_of_zip(options: argparse.Namespace) -> "pd.DataFrame":
    from sslpath.datasets.idc import idc_tiles

    given = [name for name in FOR_SLIDES if getattr(options, name) is not None]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"The tiles of {options.slides[0]} are cut and labelled already: leave out {flags}."
        )
    tiles = idc_tiles(options.slides[0])
    partial = tiles.attrs["source"]["partial_tiles_left_out"]
    say(f"{partial} tiles cut off by a slide's edge were left out.")
    return tiles


def _tile_slides(options: argparse.Namespace) -> "tuple[pd.DataFrame, list[Any]]":
    from sslpath.tiling import tile_slides

    settings = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS.items()
    }
    slides = _camelyon16(options) if options.camelyon16 else find_slides(options.slides)
    slides = _with_mpp(slides, options.mpp_override)
    tiles, failures = tile_slides(
        slides,
        **settings,
        stride_px=options.stride_px,
        annotations_dir=options.annotations,
        not_exhaustive=options.not_exhaustive or (),
        no_tumour=options.no_tumour or (),
        max_tiles=options.max_tiles,
        max_places=options.max_places,
        workers=options.workers,
        timeout_s=options.timeout,
        on_error="raise" if options.strict else "record",
        scheduler=options.scheduler,
        parts=parts_of(options.out),
    )
    if tiles.empty:
        causes = "".join(f"\n  {failure.path}: {failure.error}" for failure in failures[:5])
        raise DataError(f"No tiles: no slide has tissue that could be read.{causes}")
    if options.preview is not None:
        from sslpath.figures import save, slide_with_grid

        for slide in slides:
            own = tiles[tiles["slide_id"] == slide.slide_id]
            if len(own):
                save(slide_with_grid(slide, own), options.preview / f"{slide.slide_id}.png")
    return tiles, failures


def _camelyon16(options: argparse.Namespace) -> "list[Slide]":
    """The slides of a copy of Camelyon16; sets the options that it knows."""
    from sslpath.datasets.camelyon16 import find_camelyon16
    from sslpath.slides import Slide

    given = [name for name in OF_CAMELYON16 if getattr(options, name) is not None]
    if given or len(options.slides) != 1 or not options.slides[0].is_dir():
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            "--camelyon16 takes one folder, a copy of Camelyon16, and says the rest itself: "
            + (f"leave out {flags}." if given else "name that folder alone.")
        )
    found = find_camelyon16(options.slides[0])
    folders = {one.outlines.parent for one in found if one.outlines is not None}
    if len(folders) > 1:
        raise DataError(
            f"The outlines are in several folders ({', '.join(map(str, sorted(folders)))}). Put "
            "them into one."
        )
    options.annotations = folders.pop() if folders else None
    options.not_exhaustive = [one.slide_id for one in found if not one.exhaustive]
    options.no_tumour = [one.slide_id for one in found if one.tumour is False]
    if any(one.tumour is None for one in found):
        warn("no reference.csv for some test slides: those without outlines stay unlabelled")
    if any(one.tumour and one.outlines is None for one in found):
        warn("some slides with tumour have no outlines: they stay unlabelled")
    return [Slide(one.path, slide_id=one.slide_id) for one in found]


def find_slides(places: list[Path]) -> "list[Slide]":
    """The slides that ``places`` name: files as they are, folders searched for slide files.

    OpenSlide opens a whole DICOM series from any of its files, so all of them are one slide. It is
    called like its folder, or like its first file if the folder holds other series too.
    """
    from sslpath.slides import Slide

    paths = [path for place in places for path in (_inside(place) if place.is_dir() else [place])]
    # Other files stay apart by their place in the list: one listed twice is a mistake to report.
    groups: dict[tuple[Path, str], list[Path]] = {}
    for i, path in enumerate(paths):
        series = _series(path) if path.suffix.lower() == ".dcm" else f"{i}"
        groups.setdefault((path.parent, series), []).append(path)
    in_folder = Counter(folder for folder, _ in groups)
    return [
        Slide(files[0], slide_id=folder.resolve().name)
        if len(files) > 1 and in_folder[folder] == 1
        else Slide(files[0])
        for (folder, _), files in groups.items()
    ]


def _inside(folder: Path) -> list[Path]:
    """The slide files of a folder; its images are mentioned, as they may be slides to be."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    slides = [path for path in files if path.suffix.lower() in SLIDE_SUFFIXES]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if any(path.suffix.lower() == ".vms" for path in slides):
        images = []  # such a slide consists of JPEGs
    convert = "`sslpath data convert IMAGE --mpp UM_PER_PIXEL`"
    if slides and images:
        warn(
            f"{folder}: images are skipped ({len(images)}, such as {images[0].name}). {convert} "
            "makes a slide of an image."
        )
    elif images:
        raise DataError(
            f"No slides in {folder}, only images ({len(images)}, such as {images[0].name}). Make "
            f"a slide of each with {convert}."
        )
    elif not slides:
        raise DataError(
            f"No slides in {folder}: no file ends in {', '.join(sorted(SLIDE_SUFFIXES))}."
        )
    return slides


def _series(path: Path) -> str:
    """Which DICOM series a file belongs to; a file that cannot be opened is one of its own."""
    from sslpath.handles import open_slide

    try:
        properties = open_slide(path).handle.properties
    except SlideError:
        return str(path)
    return str(properties.get("dicom.SeriesInstanceUID", path))


def _with_mpp(slides: "list[Slide]", text: str | None) -> "list[Slide]":
    """The slides with their pixel sizes: a number where they do not say, or a CSV's."""
    from sslpath.slides import Slide, check_mpp

    if text is None:
        return slides
    try:
        number = check_mpp(float(text), "--mpp-override")
    except ValueError:
        sizes = _sizes(Path(text))
    else:
        sizes = {slide.slide_id: number for slide in slides if _is_silent(slide)}
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


def _sizes(path: Path) -> dict[str, float]:
    """Pixel sizes by slide, of a CSV with the columns wsi (a slide's name or file) and mpp."""
    import pandas as pd

    table = _read_csv(path, ["wsi", "mpp"]).set_index("wsi")["mpp"]
    sizes = pd.to_numeric(table, errors="coerce").dropna()
    names = {str(name): float(size) for name, size in sizes.items()}
    return {key: size for name, size in names.items() for key in (Path(name).stem, name)}


def _read_csv(path: Path, columns: list[str]) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path} as CSV: {error}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ConfigError(f"{path} lacks the columns {missing}; it has {list(table)}.")
    return pd.DataFrame({name: table[name].fillna("").str.strip() for name in table})


def _with_patients(tiles: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    table = _read_csv(path, ["slide_id", "patient_id"])
    columns = [name for name in ("slide_id", "patient_id", "split") if name in table]
    table = table[columns].drop_duplicates()
    table = table[table["slide_id"].isin(tiles["slide_id"])]
    torn = sorted(table.loc[table["slide_id"].duplicated(), "slide_id"].unique())
    if torn:
        raise ConfigError(f"{path} lists {torn[:5]} twice, with different patients or splits.")
    table = table.set_index("slide_id")
    unknown = sorted(set(tiles["slide_id"]) - set(table.index[table["patient_id"] != ""]))
    if unknown:
        raise ConfigError(f"{path} does not name the patient of {unknown[:5]}.")
    tiles = tiles.assign(
        patient_id=tiles["slide_id"].map(table["patient_id"]).astype("str"),
        split=tiles["slide_id"].map(table["split"]).astype("str") if "split" in table else "",
    )
    if "split" not in table:
        return tiles
    sides = tiles.groupby("patient_id")["split"].nunique()
    if (sides > 1).any() or not tiles["split"].isin(["train", "test"]).all():
        raise ConfigError(
            f"{path}: every slide needs a split of train or test, the same for all slides of a "
            f"patient; look at {list(sides[sides > 1].index[:5])}."
        )
    return tiles
