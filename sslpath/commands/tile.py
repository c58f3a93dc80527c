"""``sslpath tile``: slides to a table of tiles."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.lists import read_list, with_mpp, with_patients
from sslpath.commands.shared import (
    FAILED,
    check_folder,
    check_report,
    command,
    count,
    positive,
    report,
    say,
    scheduler_option,
    warn,
)
from sslpath.errors import ConfigError, DataError, SslpathError, counted

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.commands.shared import Commands
    from sslpath.slides import Slide

DEFAULTS: dict[str, Any] = {"mpp": 0.5, "tile_px": 224, "min_tissue": 0.5}
# Tiles of a zip are cut already, and labelled: these options have nothing to act on.
FOR_SLIDES = (
    *("mpp", "tile_px", "stride_px", "min_tissue", "max_tiles", "annotations", "tumour", "bounds"),
    *("not_exhaustive", "no_tumour", "mpp_override", "preview", "camelyon16", "scheduler"),
)
# What a copy of Camelyon16 says itself.
OF_CAMELYON16 = ("annotations", "tumour", "bounds", "not_exhaustive", "no_tumour", "patients")
# What has nothing to act on without annotations.
OF_ANNOTATIONS = ("tumour", "bounds", "not_exhaustive")


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "tile",
        run,
        "slides to a table of tiles",
        "Cut the tissue of slides into a grid of tiles and write one table (Parquet).\n"
        "Pixels stay in the slides; the table says where. A zip in the layout of the IDC data\n"
        "set works too; of the options, only --patients applies to it. Patients are split into\n"
        "train and test by a hash of their id (about 60 : 40), so the split is the same\n"
        "everywhere; --patients overrides it. All .dcm files of a DICOM series are one slide,\n"
        "named after the folder that holds them. Run again after it was stopped, the command\n"
        "continues: finished slides are kept in a folder beside the table, ending in .parts.",
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
    p.add_argument("--min-tissue", type=float, help="least share of tissue in a tile (default 0.5)")
    p.add_argument(
        "--max-tiles", type=count, help="keep at most this many tiles per slide, evenly drawn"
    )
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="ASAP .xml or .geojson files named like the slides",
    )
    p.add_argument(
        "--tumour",
        nargs="+",
        metavar="NAME",
        help="names of the outlines that mean tumour: QuPath classes, ASAP groups (default: "
        "words for tumour, such as Tumor, metastasis or Invasive carcinoma, and _0 and _1 of "
        "Camelyon16). Each run reports which names it found and how it read them",
    )
    p.add_argument(
        "--bounds",
        action="store_const",
        const=True,
        help="outlines are measured from the corner of the scanned area, not of the slide: QuPath "
        "writes them this way for slides larger than the scanned area (MRXS, SCN)",
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
        help="um per level-0 px: a number, for the slides that do not state it; or a CSV with "
        "the columns wsi,mpp, for the slides that it names, whatever they state",
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
    from sslpath.labels import names_read
    from sslpath.table import check_out, save_tiles, split_by_patient
    from sslpath.tiling import remove_parts

    failed = options.out.with_suffix(".failed.csv")
    check_out(options.out)
    check_report(failed)
    check_folder(parts_of(options.out))
    if options.preview is not None:
        check_folder(options.preview)
    if options.patients is not None:
        read_list(options.patients, ["slide_id", "patient_id"])  # now, not after hours
    failures: list[Any] = []
    is_zip = len(options.slides) == 1 and options.slides[0].suffix.lower() == ".zip"
    if is_zip:
        tiles = _tiles_of_zip(options)
    else:
        tiles, failures = _tile_slides(options)
    if options.patients is not None:
        tiles = with_patients(tiles, options.patients)
    if options.camelyon16:
        from sslpath.datasets.camelyon16 import split_of

        tiles["split"] = tiles["slide_id"].map(split_of).astype("str")
    chosen = tiles["split"].isin(["train", "test"]).all()
    if not chosen:
        tiles = split_by_patient(tiles)
    save_tiles(tiles, options.out)
    tumour, other = (int((tiles["label"] == value).sum()) for value in (1, 0))
    counts = f"{tumour:,} tumour, {other:,} other, {len(tiles) - tumour - other:,} unlabelled"
    say(
        f"{options.out}: {counted(len(tiles), 'tile')} of "
        f"{counted(tiles['slide_id'].nunique(), 'slide')} ({counts}); "
        f"train {(tiles['split'] == 'train').sum():,}, test {(tiles['split'] == 'test').sum():,}"
    )
    if names := names_read(tiles):
        say(f"{names}.")
    if len(set(tiles["split"])) == 1 and not chosen:
        warn(
            f"so few patients that all are in {tiles['split'].iloc[0]}: assign them with "
            "--patients to train and to test"
        )
    unseen = 0
    if options.preview is not None:
        unseen = _preview(tiles, options.preview)
    code = report(failures, failed, "slide", "gave no tiles") or (FAILED if unseen else 0)
    if not is_zip:
        remove_parts(parts_of(options.out))
    return code


def parts_of(table: Path) -> Path:
    """Where the tiles of slides that are done wait for the others."""
    return table.with_suffix(".parts")


def _flags(names: list[str]) -> str:
    """Options as they are typed."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _tiles_of_zip(options: argparse.Namespace) -> "pd.DataFrame":
    from sslpath.datasets.idc import idc_tiles

    given = [name for name in FOR_SLIDES if getattr(options, name) is not None]
    if given:
        raise ConfigError(
            f"The tiles of {options.slides[0]} are already cut and labelled: leave out "
            f"{_flags(given)}."
        )
    tiles = idc_tiles(options.slides[0])
    partial = tiles.attrs["source"]["partial_tiles_left_out"]
    say(f"Left out {counted(partial, 'tile')} cut off by the edge of a slide.")
    return tiles


def _tile_slides(options: argparse.Namespace) -> "tuple[pd.DataFrame, list[Any]]":
    from sslpath.slide_files import find_slides
    from sslpath.tiling import tile_slides

    idle = [name for name in OF_ANNOTATIONS if getattr(options, name) is not None]
    if options.annotations is None and idle and not options.camelyon16:
        raise ConfigError(f"No outlines for {_flags(idle)} to act on: give --annotations too.")
    settings = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS.items()
    }
    slides = _camelyon16(options) if options.camelyon16 else find_slides(options.slides)
    slides = with_mpp(slides, options.mpp_override)
    tiles, failures = tile_slides(
        slides,
        **settings,
        stride_px=options.stride_px,
        annotations_dir=options.annotations,
        tumour=options.tumour or (),
        bounds=bool(options.bounds),
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
    return tiles, failures


def _preview(tiles: "pd.DataFrame", folder: Path) -> int:
    """A picture of each slide with its tiles; returns how many could not be made."""
    from sslpath.figures import save, slide_with_grid
    from sslpath.slides import Slide

    lost = 0
    for slide_id, where in tiles.attrs["source"]["slides"].items():
        slide = Slide(where["path"], where["mpp"], slide_id=slide_id)
        try:
            save(slide_with_grid(slide, tiles), folder / f"{slide_id}.png")
        except (SslpathError, OSError) as error:
            warn(f"no preview of {slide_id}: {error}")
            lost += 1
    return lost


def _camelyon16(options: argparse.Namespace) -> "list[Slide]":
    """The slides of a copy of Camelyon16; sets the options that it knows."""
    from sslpath.datasets.camelyon16 import find_camelyon16
    from sslpath.slides import Slide

    given = [name for name in OF_CAMELYON16 if getattr(options, name) is not None]
    if given or len(options.slides) != 1 or not options.slides[0].is_dir():
        raise ConfigError(
            "--camelyon16 takes one folder, a copy of Camelyon16, and sets the rest itself: "
            + (f"leave out {_flags(given)}." if given else "name that folder alone.")
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
