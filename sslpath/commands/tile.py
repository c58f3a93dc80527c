"""``sslpath tile``: slides to a table of tiles."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import command, count, positive, report, say
from sslpath.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from sslpath.commands.shared import Commands

SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide"),
    *(".bif", ".vms", ".vmu", ".dcm", ".czi"),
}


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "tile",
        run,
        "slides to a table of tiles",
        "Cut the tissue of slides into a grid of tiles and write one table (Parquet).\n"
        "Pixels stay in the slides; the table says where. A zip in the layout of the IDC data\n"
        "set is a source too. Patients are split into train and test by a hash of their id\n"
        "(about 60 : 40), so the split is the same everywhere; --patients overrides it.",
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
    p.add_argument("--mpp", type=positive, default=0.5, help="um per pixel of tiles (default 0.5)")
    p.add_argument("--tile-px", type=count, default=224, help="side of a tile (default 224)")
    p.add_argument("--stride-px", type=count, help="step of the grid (default: the tile's side)")
    p.add_argument(
        "--min-tissue", type=float, default=0.5, help="tissue a tile needs (default 0.5)"
    )
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
        default=[],
        metavar="SLIDE_ID",
        help="slides where what is not outlined is unknown, not normal",
    )
    p.add_argument(
        "--no-tumour",
        nargs="+",
        default=[],
        metavar="SLIDE_ID",
        help="slides known to hold no tumour; without an annotation their labels are 0",
    )
    p.add_argument(
        "--mpp-override",
        metavar="MPP|CSV",
        help="um per level-0 px where slides do not say: a number for all, or a CSV "
        "with the columns wsi,mpp",
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
    p.add_argument("--strict", action="store_true", help="stop at the first broken slide")


def run(options: argparse.Namespace) -> int:
    """``sslpath tile``."""
    from sslpath.table import save_tiles

    if len(options.slides) == 1 and options.slides[0].suffix.lower() == ".zip":
        from sslpath.datasets.idc import idc_tiles

        tiles = idc_tiles(options.slides[0])
        failures: list[Any] = []
        partial = tiles.attrs["source"]["partial_tiles_left_out"]
        say(f"{partial} tiles cut off by a slide's edge were left out.")
    else:
        tiles, failures = _tile_slides(options)
    save_tiles(tiles, options.out)
    tumour, other = (int((tiles["label"] == value).sum()) for value in (1, 0))
    counts = f"{tumour:,} tumour, {other:,} other, {len(tiles) - tumour - other:,} unlabelled"
    say(
        f"{options.out}: {len(tiles):,} tiles of {tiles['slide_id'].nunique()} slides ({counts}); "
        f"train {(tiles['split'] == 'train').sum():,}, test {(tiles['split'] == 'test').sum():,}"
    )
    return report(failures, options.out.with_suffix(".failed.csv"), "slides gave no tiles")


def _tile_slides(options: argparse.Namespace) -> "tuple[pd.DataFrame, list[Any]]":
    from sslpath.slides import Slide
    from sslpath.table import split_by_patient
    from sslpath.tiling import tile_slides

    paths = find_slides(options.slides)
    overrides = _overrides(options.mpp_override, paths)
    tiles, failures = tile_slides(
        [Slide(path, overrides.get(path)) for path in paths],
        mpp=options.mpp,
        tile_px=options.tile_px,
        stride_px=options.stride_px,
        min_tissue=options.min_tissue,
        annotations_dir=options.annotations,
        not_exhaustive=options.not_exhaustive,
        no_tumour=options.no_tumour,
        max_tiles=options.max_tiles,
        workers=options.workers,
        on_error="raise" if options.strict else "record",
    )
    if tiles.empty:
        causes = "".join(f"\n  {failure.path}: {failure.error}" for failure in failures[:5])
        raise DataError(f"No tiles: no slide has tissue that could be read.{causes}")
    if options.patients is not None:
        tiles = _with_patients(tiles, options.patients)
    if not tiles["split"].isin(["train", "test"]).all():
        tiles = split_by_patient(tiles)
    if options.preview is not None:
        from sslpath.figures import save, slide_with_grid

        for path in paths:
            own = tiles[tiles["slide_id"] == path.stem]
            if len(own):
                slide = Slide(path, overrides.get(path))
                save(slide_with_grid(slide, own), options.preview / f"{path.stem}.png")
    return tiles, failures


def find_slides(places: list[Path]) -> list[Path]:
    """The slides that ``places`` name: files as they are, folders searched for slide files."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)
            if not inside:
                raise DataError(
                    f"No slides in {place}: no file ends in {', '.join(sorted(SLIDE_SUFFIXES))}."
                )
            found += inside
        else:
            found.append(place)
    return found


def _overrides(text: str | None, paths: list[Path]) -> dict[Path, float]:
    """Pixel sizes by slide: a number for all, or a CSV with the columns wsi,mpp."""
    if text is None:
        return {}
    try:
        return dict.fromkeys(paths, float(text))
    except ValueError:
        import pandas as pd
    table = _read_csv(Path(text), ["wsi", "mpp"])
    sizes = {Path(name).stem: value for name, value in zip(table["wsi"], table["mpp"], strict=True)}
    given = pd.to_numeric(pd.Series(sizes), errors="coerce").dropna().to_dict()
    return {path: float(given[path.stem]) for path in paths if path.stem in given}


def _read_csv(path: Path, columns: list[str]) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path} as CSV: {error}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ConfigError(f"{path} lacks the columns {missing}; it has {list(table)}.")
    return table


def _with_patients(tiles: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    table = _read_csv(path, ["slide_id", "patient_id"]).drop_duplicates("slide_id")
    table = table.set_index("slide_id")
    unknown = sorted(set(tiles["slide_id"]) - set(table.index))
    if unknown:
        raise ConfigError(f"{path} does not name the patient of {unknown[:5]}.")
    patients = tiles["slide_id"].map(table["patient_id"]).astype("str")
    tiles = tiles.assign(patient_id=patients)
    if "split" not in table:
        return tiles
    tiles = tiles.assign(split=tiles["slide_id"].map(table["split"]).fillna("").astype("str"))
    torn = tiles.groupby("patient_id")["split"].nunique()
    if (torn > 1).any() or not tiles["split"].isin(["train", "test"]).all():
        raise ConfigError(
            f"{path}: every slide needs a split of train or test, the same for all slides of a "
            f"patient; look at {list(torn[torn > 1].index[:5])}."
        )
    return tiles
