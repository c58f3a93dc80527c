"""``sslpath data``: get, make and convert data sets."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sslpath.commands.shared import command, count, positive, report, say, whole
from sslpath.errors import ConfigError, counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from sslpath.commands.shared import Commands
    from sslpath.imagenet import Encoder
    from sslpath.sources import TileSource


def add(commands: "Commands") -> None:
    """Add the arguments to the parser."""
    data = commands.add_parser("data", help="get, make and convert data sets").add_subparsers(
        metavar="WHAT", required=True
    )
    command(
        data,
        "list",
        data_list,
        "data sets that can be fetched or made",
        "List the data sets with size, licence and source.",
        "  sslpath data list\n",
    )
    p = command(
        data,
        "idc",
        data_idc,
        "download the IDC breast tiles",
        "Download the IDC archive (1.6 GB; resumes where it stopped) and verify it.",
        "  sslpath data idc --out data/cache\n",
    )
    p.add_argument("--out", type=Path, default=Path("data/cache"), metavar="DIR")
    p.add_argument("--verify", type=Path, metavar="ZIP", help="only check an archive that is there")
    p = command(
        data,
        "camelyon16",
        data_camelyon16,
        "download slides of Camelyon16",
        "Download slides of Camelyon16 from its public bucket, without an account: about 700 GB\n"
        "for all, so name slides or a number. Files come in parallel and are checked; one that\n"
        "broke off goes on when the command is called again. DIR/slides.csv says what each\n"
        "slide is: split, class, centre, and whether all its tumour is outlined.",
        "  sslpath data camelyon16 --out data/cache/camelyon16 --limit 6\n"
        "  sslpath data camelyon16 --out data/cache/camelyon16 --slides 'tumor_00*' test_001\n",
    )
    p.add_argument("--out", type=Path, default=Path("data/cache/camelyon16"), metavar="DIR")
    p.add_argument(
        "--slides",
        nargs="+",
        default=(),
        metavar="NAME",
        help="slides, or patterns such as 'tumor_0*' (default: all)",
    )
    p.add_argument(
        "--limit", type=count, help="at most so many slides, normal, tumour and test in turn"
    )
    p.add_argument("--masks", action="store_true", help="masks, too; labels come from outlines")
    p.add_argument("--plan", action="store_true", help="say what would come, and stop")
    p.add_argument("--workers", type=count, default=4, help="files at a time (default 4)")
    p.add_argument(
        "--verify", action="store_true", help="compare checksums of files that are there, too"
    )
    p.add_argument("--strict", action="store_true", help="stop at the first file that fails")
    p.add_argument("--url", help="a mirror of the bucket (default: the public one)")
    p = command(
        data,
        "phantom",
        data_phantom,
        "make synthetic slides",
        "Make phantom slides: pyramidal TIFF with ground truth as GeoJSON, from a seed.",
        "  sslpath data phantom --out data/cache/phantom\n",
    )
    p.add_argument("--out", type=Path, default=Path("data/cache/phantom"), metavar="DIR")
    p.add_argument("--slides", type=count, default=20)
    p.add_argument("--seed", type=whole, default=0)
    p.add_argument("--workers", type=count, default=2)
    p = command(
        data,
        "convert",
        data_convert,
        "an image to a pyramidal slide",
        "Make a tiled pyramidal TIFF that OpenSlide opens, with its pixel size, of an image that\n"
        "it refuses: JPEG, PNG, OME-TIFF and whatever libvips reads.",
        "  sslpath data convert section.jpg --mpp 0.8 --out section.tif\n",
    )
    p.add_argument("image", type=Path)
    p.add_argument("--mpp", type=positive, required=True, help="um per pixel of the image")
    p.add_argument(
        "--out",
        type=Path,
        help="slide to write (default: IMAGE.tif beside it, or IMAGE-slide.tif of a TIFF)",
    )
    p.add_argument("--quality", type=int, default=90, help="JPEG quality (default 90)")
    p = command(
        data,
        "features",
        data_features,
        "compute the ImageNet features that sslpath ships",
        "Compute MobileNetV2's ImageNet features of the demo's phantom tiles and write them in\n"
        "the compact form that sslpath ships, with their provenance. For maintainers.",
        "  sslpath data features --imagenet-weights mobilenet_v2.safetensors\n",
    )
    p.add_argument("--imagenet-weights", type=Path, required=True, metavar="FILE")
    p.add_argument("--phantom", type=Path, default=Path("data/cache/phantom"), metavar="DIR")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: where the package looks")
    p.add_argument("--workers", type=count, default=2)
    p.add_argument(
        "--views",
        action="store_true",
        help="of one augmented view of each training tile instead (default augmentation, seed 0)",
    )


def data_list(options: argparse.Namespace) -> int:
    """``sslpath data list``."""
    from sslpath.datasets.registry import DATASETS

    for one in DATASETS.values():
        say(f"{one.name:8} {one.gigabytes:.1f} GB  {one.content}\n{'':8} source: {one.source}")
        say(f"{'':8} licence: {one.licence}\n{'':8} get it: sslpath data {one.name} --out DIR")
    say("phantom  made here, about 10 MB a slide: synthetic lymph nodes with metastases")
    say(f"{'':8} make it: sslpath data phantom --out DIR")
    return 0


def data_idc(options: argparse.Namespace) -> int:
    """``sslpath data idc``."""
    from sslpath.datasets.idc import download_idc, verify_idc

    if options.verify is not None:
        verify_idc(options.verify)
        say(f"{options.verify}: every tile is whole.")
        return 0
    path = download_idc(options.out)
    say(f"{path} is complete. Next: sslpath tile {path} --out idc.parquet")
    return 0


def data_camelyon16(options: argparse.Namespace) -> int:
    """``sslpath data camelyon16``."""
    from sslpath.datasets.bucket import list_bucket
    from sslpath.datasets.camelyon16 import MANIFEST, PREFIX, URL, choose, fetch_camelyon16

    url = (options.url or URL).rstrip("/")
    files = choose(list_bucket(url, PREFIX), options.slides, options.limit, options.masks)
    size = sum(one.size for one in files) / 1e9
    say(f"{counted(len(files), 'file')}, {size:,.1f} GB, from {url} to {options.out}")
    if options.plan:
        for one in files:
            say(f"{one.size / 1e9:8.2f} GB  {one.key}")
        return 0
    slides, lost = fetch_camelyon16(
        options.out,
        files,
        url=url,
        workers=options.workers,
        verify=options.verify,
        strict=options.strict,
    )
    kinds = Counter((one.split, one.tumour) for one in slides)
    words = {True: "with tumour", False: "without", None: "of unknown class"}
    counts = ", ".join(f"{n} {split} {words[kind]}" for (split, kind), n in kinds.items())
    say(f"{options.out / MANIFEST}: {counted(len(slides), 'slide')} ({counts})")
    say(f"Next: sslpath tile {options.out} --camelyon16 --out camelyon16.parquet")
    return report(lost, options.out / "download.failed.csv", "file", "did not come")


def data_phantom(options: argparse.Namespace) -> int:
    """``sslpath data phantom``."""
    from sslpath.datasets.phantom import make_phantoms

    paths = make_phantoms(options.out, options.slides, options.seed, options.workers)
    say(f"{counted(len(paths), 'slide')} in {options.out}, each with its ground truth as .geojson")
    return 0


def data_convert(options: argparse.Namespace) -> int:
    """``sslpath data convert``."""
    from sslpath.convert import convert

    out = options.out or options.image.with_suffix(".tif")
    if options.out is None and options.image.suffix.lower() in (".tif", ".tiff"):
        out = options.image.with_name(f"{options.image.stem.removesuffix('.ome')}-slide.tif")
    if out.exists():
        raise ConfigError(f"{out} is there already. Delete it, or give the slide another --out.")
    convert(options.image, out, options.mpp, quality=options.quality)
    say(f"{out}: next, sslpath tile {out} --mpp {max(0.5, options.mpp):g} --out tiles.parquet")
    return 0


def data_features(options: argparse.Namespace) -> int:
    """``sslpath data features``."""
    from dataclasses import asdict

    from sslpath.augment import Augmentation
    from sslpath.datasets.phantom_features import SHIPPED, SHIPPED_VIEWS, write_shipped
    from sslpath.demo import demo_tiles
    from sslpath.descriptors import read_descriptors
    from sslpath.embed import embed_encoder
    from sslpath.imagenet import load_imagenet
    from sslpath.sources import open_source

    encoder = load_imagenet("mobilenet_v2", options.imagenet_weights, 224)
    tiles = demo_tiles(options.phantom, workers=options.workers)
    about = encoder.provenance
    if options.views:
        attrs = tiles.attrs
        tiles = tiles[tiles["split"] == "train"].reset_index(drop=True)
        tiles.attrs = attrs
        about = {**about, "augmentation": asdict(Augmentation()), "augmentation_seed": 0}
        features = _views(tiles, open_source(tiles), encoder)
    else:
        folder = options.phantom / "features"
        embed_encoder(tiles, open_source(tiles), encoder, folder)
        features = read_descriptors(folder, tiles)
    out = options.out or (SHIPPED_VIEWS if options.views else SHIPPED)
    cosine = write_shipped(out, tiles, features, open_source(tiles), about)
    size = out.stat().st_size / 1e6
    say(f"{out}: {features.shape[0]:,} x {features.shape[1]} numbers, {size:.1f} MB")
    say(f"mean cosine to the float32 features: {cosine:.5f}")
    return 0


def _views(
    tiles: "pd.DataFrame", source: "TileSource", encoder: "Encoder", batch: int = 64
) -> "NDArray[np.float32]":
    """Features of one augmented view of each tile."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from sslpath.augment import augment
    from sslpath.progress import hide_bar

    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in tqdm(range(0, len(tiles), batch), "views", disable=hide_bar(True)):
        pixels = torch.from_numpy(source.read(tiles.iloc[start : start + batch]))
        views = augment(pixels.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)
        parts.append(encoder.encode((views * 255).round().to(torch.uint8).numpy()))
    return np.concatenate(parts)
