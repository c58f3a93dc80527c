"""``sslpath search``: a tile to its nearest neighbours."""

import argparse
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslpath.commands.shared import (
    command,
    count,
    imagenet_encoder,
    imagenet_options,
    open_table,
    positive,
    say,
    shown,
    table_options,
    warn,
)
from sslpath.errors import ConfigError, DataError, DescriptorError, WeightsError, counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from PIL.Image import Image

    from sslpath.commands.shared import Commands

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # of Pillow, with 8 bits or fewer
COARSEST = 2.0  # times as coarse as tiles: a coarser image is no picture of such a tile


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    p = command(
        commands,
        "search",
        run,
        "a tile to its nearest neighbours",
        "Find the tiles most like a query and save them as a gallery. The query is a tile of\n"
        "the table, SLIDE_ID:X,Y (the tile that covers this level-0 pixel), or an image file: of\n"
        "the size and um per pixel of the table's tiles, or of any size with --query-mpp. An\n"
        "image needs --run, the network that made the descriptors (and the ImageNet weights, if\n"
        "its trunk is frozen).",
        "  sslpath search phantom_003:2000,1500 tiles.parquet --descriptors d/spatial\n"
        "  sslpath search tile.png tiles.parquet --descriptors d/spatial --run runs/a\n",
    )
    p.add_argument("query", metavar="QUERY-TILE", help="SLIDE_ID:X,Y or an image file")
    table_options(p)
    p.add_argument("--descriptors", type=Path, required=True, metavar="DIR")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("gallery.png"),
        help="picture: .png, .pdf or .svg (default gallery.png)",
    )
    p.add_argument("--k", type=count, default=8, help="neighbours (default 8)")
    p.add_argument(
        "--keep-own",
        action="store_true",
        help="also search the query's own patient, which flatters any descriptor",
    )
    p.add_argument(
        "--run", type=Path, dest="run_dir", metavar="RUN", help="network for an image query"
    )
    p.add_argument(
        "--query-mpp",
        type=positive,
        metavar="UM",
        help="um per pixel of an image query; its middle, as wide as a tile, is the query",
    )
    p.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="search in an index of the descriptors (`sslpath index`), approximately, without "
        "reading them all",
    )
    p.add_argument(
        "--probes", type=count, default=32, help="lists of the index to search (default 32)"
    )
    imagenet_options(p)


def run(options: argparse.Namespace) -> int:
    """``sslpath search``."""
    import numpy as np
    import pandas as pd

    from sslpath.descriptors import read_descriptors
    from sslpath.figure_style import check_picture
    from sslpath.figures import gallery, save
    from sslpath.retrieval import check_each_once
    from sslpath.retrieval import search as nearest

    check_picture(options.out)
    tiles, source = open_table(options)
    check_each_once(tiles)
    # A query may be too long for the name of a file, which Path.is_file() does not survive.
    image = os.path.isfile(options.query)  # noqa: PTH113
    if not image and options.query_mpp is not None:
        raise ConfigError(
            "--query-mpp is for an image: a tile of the table has its own pixel size."
        )
    at = -1 if image else _position(options.query, tiles)
    descriptors: NDArray[np.float32] | None = None
    if options.index is None:
        descriptors, found = read_descriptors(options.descriptors, tiles, missing="drop")
        if at >= 0 and not found[at]:
            read_descriptors(options.descriptors, tiles.iloc[[at]])  # which says what is lacking
        if not found.all():
            warn(
                f"left out {(~found).sum()} of {counted(len(tiles), 'tile')}, without a descriptor"
            )
        at = int(found[:at].sum()) if at >= 0 else at
        tiles = tiles[found].reset_index(drop=True)
    own = None
    if image:
        picture = _picture(Path(options.query), tiles, options.query_mpp)
        query, title, label = _encode_query(options, picture, tiles), options.query, None
    else:
        one = tiles.iloc[at]
        picture = source.read(tiles.iloc[[at]])[0]
        if descriptors is None:
            query = read_descriptors(options.descriptors, tiles.iloc[[at]])[0]
        else:
            query = descriptors[at]
        title, label = f"{one['slide_id']}:{one['x']},{one['y']}", one["label"]
        own = None if options.keep_own else str(one["patient_id"])
    options.k = min(options.k, len(tiles))
    # One more, for the query itself: it is no neighbour, and may be found with --keep-own.
    if descriptors is not None:
        positions, distances = nearest(query, descriptors, tiles, options.k + 1, exclude=own)
    else:
        positions, distances = _in_index(options, tiles, query, own)
    kept = np.flatnonzero((positions >= 0) & (positions != at))[: options.k]
    hits, distances = tiles.iloc[positions[kept]], distances[kept]
    if hits.empty and options.index is not None:
        raise ConfigError(
            f"No tile of another patient in the {options.probes} lists of {options.index} that "
            "were searched; a higher --probes searches more."
        )
    if hits.empty:
        raise ConfigError(
            f"Nothing to find: {options.tiles} has no tile of another patient with a descriptor. "
            "--keep-own searches the query's own patient too."
        )
    if options.index is not None and len(hits) < options.k:
        warn(f"{len(hits)} of {options.k} found in the lists searched; raise --probes for more")
    say(f"query {shown(title)} ({_label(label)})")
    for row, distance in zip(hits.itertuples(), distances, strict=True):
        say(f"  {distance:.3f}  {shown(str(row.slide_id))}:{row.x},{row.y} ({_label(row.label)})")
    known = [
        -1 if label is None or pd.isna(label) or pd.isna(other) else int(other == label)
        for other in hits["label"]
    ]
    figure = gallery(
        picture[None],
        {"found": source.read(hits)[None]},
        {"found": [known]},
        names=[title],
    )
    save(figure, options.out)
    say(f"gallery in {options.out}")
    return 0


def _in_index(
    options: argparse.Namespace,
    tiles: "pd.DataFrame",
    query: "NDArray[np.float32]",
    own: str | None,
) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
    """Positions and distances of the nearest tiles in the index."""
    from sslpath.descriptor_files import provenance_or_nothing
    from sslpath.index import Index

    index = Index(options.index, tiles)
    if index.about["made_by"] != provenance_or_nothing(options.descriptors, tiles):
        raise DescriptorError(
            f"The index in {options.index} is not from the descriptors in {options.descriptors}; "
            "rebuild it with `sslpath index`."
        )
    asked, groups = (None, None) if own is None else ([own], tiles["patient_id"].to_numpy(object))
    positions, distances = index.neighbours(
        query, asked, groups, options.k + 1, probes=options.probes
    )
    return positions[0], distances[0]


def _label(value: Any) -> str:
    import pandas as pd

    return "unknown" if value is None or pd.isna(value) else ("tumour" if value == 1 else "other")


def _position(text: str, tiles: "pd.DataFrame") -> int:
    """Row of the tile that SLIDE_ID:X,Y names: the one that covers this level-0 pixel."""
    slide_id, _, place = text.rpartition(":")
    try:
        x, y = (int(part) for part in place.split(","))
    except ValueError as error:
        raise ConfigError(
            f"The query {text!r} is neither an image file nor SLIDE_ID:X,Y with level-0 pixels."
        ) from error
    own = tiles[tiles["slide_id"] == slide_id]
    if own.empty:
        known = ", ".join(tiles["slide_id"].unique()[:5])
        raise ConfigError(f"The table has no slide {slide_id!r}; it has {known} ...")
    if max(abs(x), abs(y)) > 2**40:
        raise ConfigError(f"No slide is so large that {x},{y} would lie on it.")
    inside = own[(own["x"] <= x) & (x < own["x"] + own["size"])
                 & (own["y"] <= y) & (y < own["y"] + own["size"])]  # fmt: skip
    if inside.empty:
        near = own.iloc[((own["x"] - x) ** 2 + (own["y"] - y) ** 2).argmin()]
        raise ConfigError(
            f"No tile of {slide_id} covers {x},{y}; the nearest is {slide_id}:{near.x},{near.y}."
        )
    return int(inside.index[0])


def _picture(path: Path, tiles: "pd.DataFrame", mpp: float | None) -> "NDArray[np.uint8]":
    """The image at a path as a tile of the table: what its middle shows, if its scale is given."""
    import numpy as np
    from PIL import Image

    from sslpath.slides import MPP_RANGE

    tile_px, tile_mpp = int(tiles.attrs["tile_px"]), float(tiles.attrs["mpp"])
    image = _rgb(path)
    if mpp is None:
        if image.size != (tile_px, tile_px):
            raise DataError(
                f"{path} is {image.width} x {image.height} px; tiles of the table are {tile_px} x "
                f"{tile_px} px at {tile_mpp:g} um a pixel. Cut one out at this scale, or say with "
                "--query-mpp how many um a pixel of the image spans."
            )
        return np.array(image)
    low, high = MPP_RANGE[0], min(MPP_RANGE[1], COARSEST * tile_mpp)
    if not low <= mpp <= high:
        raise DataError(
            f"--query-mpp {mpp:g}: an image for tiles of {tile_mpp:g} um a pixel has {low:g} to "
            f"{high:g} um a pixel; a coarser one lacks the detail that the network needs."
        )
    side = tile_px * tile_mpp / mpp
    if side > min(image.size) + 0.5:
        raise DataError(
            f"{path} is {image.width} x {image.height} px, {image.width * mpp:.0f} x "
            f"{image.height * mpp:.0f} um at {mpp:g} um a pixel; a tile of the table spans "
            f"{tile_px * tile_mpp:.0f} um. Take a larger section."
        )
    if abs(side - tile_px) <= 0.5:  # as it is, as a slide is read
        left, top = ((length - tile_px) // 2 for length in image.size)
        return np.array(image.crop((left, top, left + tile_px, top + tile_px)))
    side = min(side, *image.size)
    x, y = ((length - side) / 2 for length in image.size)
    box = (x, y, x + side, y + side)
    return np.array(image.resize((tile_px, tile_px), Image.Resampling.BICUBIC, box=box))


def _rgb(path: Path) -> "Image":
    """An image in the colours that one sees: upright, on white where it is transparent."""
    from PIL import Image, ImageOps

    from sslpath.sources import UNREADABLE

    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # of which a camera's first is the picture
                raise DataError(
                    f"{path} has {frames} frames or pages; save the one you want separately."
                )
            if image.mode not in MODES:
                raise DataError(
                    f"{path} has pixels of mode {image.mode!r} (16 bits, print colours, ...), "
                    "which can be shown in more than one way. Save it as 8-bit RGB."
                )
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (*UNREADABLE, struct.error, TypeError) as error:
        raise DataError(f"Cannot read {path} as an image: {error}. PNG and JPEG work.") from error
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def _encode_query(
    options: argparse.Namespace, picture: "NDArray[np.uint8]", tiles: "pd.DataFrame"
) -> "NDArray[np.float32]":
    import numpy as np

    from sslpath.descriptor_files import provenance_or_nothing
    from sslpath.embed import load_run
    from sslpath.imagenet import check_provenance

    if options.run_dir is None:
        raise ConfigError("An image query needs --run, the network that made the descriptors.")
    network, about = load_run(options.run_dir)
    made_by = provenance_or_nothing(options.descriptors, tiles)
    if made_by.get("network") != about["network"]:
        raise WeightsError(
            f"The descriptors in {options.descriptors} were not made by the network of "
            f"{options.run_dir}, so an image that it encodes cannot be compared with them. "
            f"Name the run that made them, or embed the tiles with --run {options.run_dir}."
        )
    if network.trunk is not None:
        return np.asarray(network.encode(picture[None])[0])
    options.arch = network.config.encoder.get("arch", options.arch)
    options.input_px = network.config.encoder.get("input_px", options.input_px)
    options.depths = bool(network.config.encoder.get("blocks"))
    encoder = imagenet_encoder(options)
    check_provenance(network.config.encoder, encoder.provenance, str(options.run_dir))
    return np.asarray(network.encode(encoder.encode(picture[None]))[0])
