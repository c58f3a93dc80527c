"""Every kind of bad input that a slide tool meets, and what the user is told about each.

A case makes its bad file in a folder of its own and uses it as a user would. `CASES` says which
error it must give, by its kind and a part of its message.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import tifffile
from conftest import MPP, draw_tissue, write_lossless, write_slide
from PIL import Image
from safetensors.torch import load_file, save_file

from sslpath.annotations import read_annotations
from sslpath.commands.lists import with_mpp
from sslpath.datasets.bucket import place_of
from sslpath.datasets.camelyon16 import unpack_outlines
from sslpath.descriptors import load_slide, write_descriptors
from sslpath.errors import (
    AnnotationError,
    BusyError,
    ConfigError,
    DataError,
    DescriptorError,
    PixelSizeError,
    SlideError,
    TableError,
    TileReadError,
    WeightsError,
)
from sslpath.figures import save, slide_with_grid
from sslpath.files import only_one
from sslpath.imagenet import load_imagenet
from sslpath.model import HEADER, ModelConfig, SiameseNetwork, load_model, save_model
from sslpath.slides import Slide
from sslpath.sources import ZipTiles
from sslpath.table import load_tiles, save_tiles
from sslpath.tiling import tile_slide, tile_slides


class Case(NamedTuple):
    """A bad input.

    Attributes:
        name: What it is.
        use: Makes it in a folder, and uses it.
        error: What it must raise.
        says: A part of the message, as a regular expression.
    """

    name: str
    use: Callable[[Path], Any]
    error: type[Exception]
    says: str


def tile(path: Path, **settings: Any) -> pd.DataFrame:
    """Tile a slide, a broken one being an error."""
    how: dict[str, Any] = {"mpp": MPP, "tile_px": 64, "progress": False, "on_error": "raise"}
    return tile_slides([Slide(path)], **(how | settings))[0]


def section(folder: Path, name: str = "slide.tif") -> Path:
    return write_lossless(folder / name, [draw_tissue(600, 600)])


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# Slides


def no_file(folder: Path) -> Any:
    return tile(folder / "missing.svs")


def empty(folder: Path) -> Any:
    return tile(written(folder / "empty.svs", ""))


def text(folder: Path) -> Any:
    return tile(written(folder / "text.svs", "This is not a slide.\n" * 100))


def a_folder(folder: Path) -> Any:
    (folder / "folder.svs").mkdir()
    return tile(folder / "folder.svs")


def symlink_loop(folder: Path) -> Any:
    (folder / "circle.svs").symlink_to(folder / "circle.svs")
    return tile(folder / "circle.svs")


def no_permission(folder: Path) -> Any:
    path = section(folder, "secret.tif")
    path.chmod(0)
    return tile(path)


def cut_tiles(folder: Path) -> Any:
    data = section(folder, "whole.tif").read_bytes()  # its directory comes first
    return tile(written(folder / "short.tif", data[: len(data) // 2]))


def cut_directory(folder: Path) -> Any:
    data = write_slide(folder / "whole.tif", draw_tissue(600, 600)).read_bytes()
    return tile(written(folder / "shorter.tif", data[: len(data) // 2]))


def no_directory(folder: Path) -> Any:
    return tile(written(folder / "no-directory.tif", b"II*\0\0\0\0\0"))


def loop_of_directories(folder: Path) -> Any:
    # One directory of one tag (width) whose successor is itself.
    entry = bytes.fromhex("0001 0300 01000000 10000000")
    body = b"II*\0" + (8).to_bytes(4, "little") + b"\1\0" + entry + b"\x08\0\0\0"
    return tile(written(folder / "loop.tif", body))


def no_tiles(folder: Path) -> Any:
    tifffile.imwrite(folder / "strips.tif", draw_tissue(300, 300), metadata=None)
    return tile(folder / "strips.tif")


def level_of_no_size(folder: Path) -> Any:
    path = section(folder, "flat.tif")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(0)
    return tile(path)


def absurd_size(folder: Path) -> Any:
    path = section(folder, "absurd.tif")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in (("Image", 1_500_000), ("Tile", 500_000)):  # still 3 x 3 tiles
            for side in ("Width", "Length"):
                tiff.pages[0].tags[name + side].overwrite(value)
    return tile(path)


def read_damaged(folder: Path, harm: Callable[[Path, int, int], None], compression: str) -> Any:
    """Damage the level-0 tile at (256, 0), see that its neighbour is read, and read it."""
    if compression == "jpeg":
        path = write_slide(folder / "damaged.tif", draw_tissue(1024, 512))
    else:
        path = write_lossless(folder / "damaged.tif", [draw_tissue(1024, 512)])
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = 256 // page.tilewidth
        start, length = page.dataoffsets[index], page.databytecounts[index]
        counts = page.tags["TileByteCounts"].valueoffset + 4 * index
    harm(path, start, length if compression == "jpeg" else counts)
    slide = Slide(path)
    assert slide.read(768, 0, 128, MPP).shape == (128, 128, 3)
    return slide.read(256, 0, 128, MPP)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def bad_jpeg(folder: Path) -> Any:
    return read_damaged(folder, lambda path, at, n: overwrite(path, at, b"\xa5" * n), "jpeg")


def tile_of_no_bytes(folder: Path) -> Any:
    # OpenSlide takes a length of zero as "not scanned"; one byte is neither.
    return read_damaged(
        folder, lambda path, at, counts: overwrite(path, counts, struct.pack("<I", 1)), "zlib"
    )


def vanishing(folder: Path) -> Any:
    slide = Slide(section(folder, "gone.tif"))
    slide.read(0, 0, 64, MPP)
    slide.path.unlink()
    return slide.read(64, 0, 64, MPP)


def zero_resolution(folder: Path) -> Any:
    path = section(folder, "resolution.tif")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("XResolution", "YResolution"):
            tiff.pages[0].tags[name].overwrite((1, 0))
    return tile(path)


def absurd_pixel_size(folder: Path) -> Any:
    return tile(write_slide(folder / "dpi.tif", draw_tissue(300, 300), mpp=352.8))


def uniform(name: str, value: int) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        image = np.full((600, 600, 3), value, np.uint8)
        return tile(write_lossless(folder / f"{name}.tif", [image]))

    return use


def tagged(name: str, tag: tuple[int, int, int, int], **how: Any) -> Callable[[Path], Any]:
    """A slide with one tag more: its number, type, count, and value."""

    def use(folder: Path) -> Any:
        plain = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
        image = how.pop("image", draw_tissue(600, 600))
        tifffile.imwrite(folder / name, image, extratags=[(*tag, True)], **(plain | how))
        return Slide(folder / name, MPP).read(0, 0, 64, MPP)

    return use


def listed(rows: str) -> Callable[[Path], Any]:
    """Pixel sizes of a list for the slide ``slide``."""

    def use(folder: Path) -> Any:
        path = written(folder / "mpp.csv", f"wsi,mpp\n{rows}\n")
        return with_mpp([Slide(section(folder))], str(path))

    return use


def over_a_slide(folder: Path) -> Any:
    path = section(folder)
    before = path.read_bytes()
    try:
        return save_tiles(tile(path), path)
    finally:
        assert path.read_bytes() == before


def over_a_picture(folder: Path) -> Any:
    Image.new("RGB", (64, 64)).save(folder / "gallery.png")
    slide = Slide(section(folder))
    return save(slide_with_grid(slide, tile(slide.path)), folder / "gallery.png")


def contradicting_rows(folder: Path) -> Any:
    tiles = tile(section(folder))
    other = pd.concat([tiles, tiles.assign(label=1)])
    other.attrs = tiles.attrs
    save_tiles(other, folder / "tiles.parquet")
    return load_tiles(folder / "tiles.parquet")


def same_stem(folder: Path) -> Any:
    (folder / "other").mkdir()
    paths = [section(folder), section(folder / "other")]
    return tile_slides([Slide(p) for p in paths], mpp=MPP, tile_px=64, progress=False)


# Annotations


def annotated(name: str, data: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: read_annotations(written(folder / name, data))


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<ASAP_Annotations>&b;</ASAP_Annotations>"
)


def outside(folder: Path) -> Any:
    square = {"type": "Polygon", "coordinates": [[[9e5, 9e5], [9e5, 1e6], [1e6, 1e6]]]}
    feature = {"type": "Feature", "geometry": square, "properties": {"name": "tumour"}}
    path = written(folder / "far.geojson", json.dumps({"features": [feature]}))
    drawn = read_annotations(path)
    return tile_slide(Slide(section(folder)), mpp=MPP, tile_px=64, annotations=drawn)


# Archives and downloads


def climbing_key(folder: Path) -> Any:
    return place_of("CAMELYON16/../../.bashrc", "CAMELYON16/", folder)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def exploding_outlines(folder: Path) -> Any:
    bomb = archive(folder / "outlines.zip", {"tumor_001.xml": bytes(210_000_000)})
    return unpack_outlines(bomb, folder / "out")


def tile_of_zip(folder: Path, data: bytes) -> Any:
    path = archive(folder / "tiles.zip", {"a.png": data})
    rows = pd.DataFrame({"x": [0]})
    return ZipTiles(path, "a.png", tile_px=50).read(rows)


def exploding_tile(folder: Path) -> Any:
    return tile_of_zip(folder, bytes(50_000_000))


def huge_image(folder: Path) -> Any:
    made = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(made, "PNG")
    return tile_of_zip(folder, made.getvalue())


# Weights and checkpoints


class Malice:
    """What a pickle does when it is loaded: here it would leave a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def malicious_pickle(folder: Path) -> Any:
    path = written(folder / "weights.pth", pickle.dumps(Malice(folder / "proof")))
    try:
        return load_imagenet("resnet18", path)
    finally:
        assert not (folder / "proof").exists(), "the pickle was executed"


def checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.safetensors"
    save_model(SiameseNetwork(ModelConfig("mine", feature_dim=8)), path)
    return path


def cut_checkpoint(folder: Path) -> Any:
    path = checkpoint(folder)
    return load_model(written(path, path.read_bytes()[:-100]))


def other_architecture(folder: Path) -> Any:
    return load_model(checkpoint(folder), arch="resnet50")


def other_length(folder: Path) -> Any:
    return load_model(checkpoint(folder), descriptor_dim=64)


def lying_header(folder: Path) -> Any:
    path = checkpoint(folder)
    config = {"arch": "mine", "feature_dim": 10**6, "hidden": 10**6}
    save_file(load_file(path), path, {HEADER: json.dumps(config)})
    return load_model(path)


# Descriptors


def descriptors(folder: Path) -> Path:
    return write_descriptors(folder, "a", np.ones((50, 128)), np.zeros((50, 2), int))


def cut_descriptors(folder: Path) -> Any:
    path = descriptors(folder)
    return load_slide(written(path, path.read_bytes()[: path.stat().st_size // 2]))


def nan_descriptors(folder: Path) -> Any:
    path = descriptors(folder)
    with h5py.File(path, "r+") as file:
        file["features"][3, 4] = np.nan
    return load_slide(path)


def exploding_descriptors(folder: Path) -> Any:
    path = folder / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10**10, 128), "f4", chunks=(1024, 128), compression="gzip")
        file.create_dataset("coords", data=np.zeros((1, 2), int))
    return load_slide(path)


# Folders


def busy_folder(folder: Path) -> Any:
    with only_one(folder):  # a second handle is refused, as another process would be
        return write_in(folder)


def write_in(folder: Path) -> Any:
    with only_one(folder):
        return None


DEEP = draw_tissue(600, 600).astype(np.uint16) * 257
FOUR = np.dstack([draw_tissue(600, 600), draw_tissue(600, 600)[..., :1]])
PLANES = np.stack([draw_tissue(600, 600)] * 2)
CASES = [
    Case("slide that is not there", no_file, SlideError, r"No slide at .*missing\.svs"),
    Case("empty file", empty, SlideError, r"empty\.svs is empty \(0 bytes\)"),
    Case("text renamed to .svs", text, SlideError, r"text\.svs is not a slide"),
    Case("folder in place of a slide", a_folder, SlideError, r"folder\.svs is a folder"),
    Case("symbolic link to itself", symlink_loop, SlideError, r"Cannot reach .*circle\.svs"),
    Case("slide without permission", no_permission, SlideError, r"secret\.tif"),
    Case("TIFF cut in its tiles", cut_tiles, SlideError, r"short\.tif.*copy it again"),
    Case("TIFF cut before its directory", cut_directory, SlideError, r"shorter\.tif"),
    Case("TIFF without a directory", no_directory, SlideError, r"no-directory\.tif"),
    Case("TIFF whose directories go in a circle", loop_of_directories, SlideError, r"loop\.tif"),
    Case("TIFF of strips, not tiles", no_tiles, SlideError, r"strips\.tif.*data convert"),
    Case("level of zero size", level_of_no_size, SlideError, r"flat\.tif"),
    Case("header of absurd size", absurd_size, SlideError, r"absurd\.tif claims.*--max-places"),
    Case("damaged JPEG tile", bad_jpeg, TileReadError, r"\(256, 0\).*damaged\.tif"),
    Case("tile cut short", tile_of_no_bytes, TileReadError, r"\(256, 0\).*damaged\.tif"),
    Case("slide that vanishes while it is read", vanishing, SlideError, r"No slide at .*gone\.tif"),
    Case("pixel size of 1/0", zero_resolution, PixelSizeError, r"resolution\.tif.*mpp-override"),
    Case("pixel size of a printer", absurd_pixel_size, PixelSizeError, r"dpi\.tif.*mpp-override"),
    Case("image that is to be turned", tagged("turned.tif", (274, 3, 1, 6)), SlideError,
         r"turned\.tif must be rotated.*data convert"),
    Case("16 bits a sample", tagged("deep.tif", (274, 3, 1, 1), image=DEEP), SlideError,
         r"deep\.tif has samples of 16 bits.*data convert"),
    Case("fourth channel that is no transparency",
         tagged("four.tif", (274, 3, 1, 1), image=FOUR, extrasamples=["unspecified"]), SlideError,
         r"four\.tif has 4 channels"),
    Case("stack of planes", tagged("stack.tif", (274, 3, 1, 1), image=PLANES), SlideError,
         r"stack\.tif is a stack of 2 images"),
    Case("compression that OpenSlide lacks",
         tagged("lzma.tif", (274, 3, 1, 1), compression="lzma"), SlideError,
         r"lzma\.tif is compressed as LZMA"),
    Case("pixel size with a comma", listed('slide.tif,"0,25"'), ConfigError, "not a number"),
    Case("pixel size with its unit", listed("slide.tif,0.25um"), ConfigError, "not a number"),
    Case("pixel size of no slide", listed("sldie.tif,0.25"), ConfigError, "no slide has this name"),
    Case("two pixel sizes of one slide", listed("slide,0.25\nSLIDE.TIF,0.5"), ConfigError,
         "gives slide two pixel sizes"),
    Case("table over a slide", over_a_slide, TableError, r"end in \.parquet"),
    Case("figure over another picture", over_a_picture, ConfigError, r"gallery\.png is there"),
    Case("rows of one tile that differ", contradicting_rows, TableError, "rows of one tile"),
    Case("white slide", uniform("white", 255), SlideError, r"No tile of .*white\.tif"),
    Case("black slide", uniform("black", 0), SlideError, r"No tile of .*black\.tif"),
    Case("two slides of one name", same_stem, ConfigError, "have the id 'slide'"),
    Case("XML cut short", annotated("a.xml", "<ASAP_Annot"), AnnotationError, r"a\.xml.*valid XML"),
    Case("XML bomb", annotated("a.xml", BOMB), AnnotationError, r"a\.xml defines XML entities"),
    Case("XML of another program", annotated("a.xml", "<svg/>"), AnnotationError, "not from ASAP"),
    Case("JSON that is no GeoJSON", annotated("a.json", "[1]"), AnnotationError, "Feature"),
    Case("outlines beside the slide", outside, AnnotationError, r"far\.geojson lie outside"),
    Case("bucket that leads out of the folder", climbing_key, DataError, "does not belong in"),
    Case("archive of outlines that explodes", exploding_outlines, DataError, "was not unpacked"),
    Case("tile in a zip that explodes", exploding_tile, TileReadError, "would unpack to"),
    Case("image of a billion pixels", huge_image, TileReadError, r"a\.png in .*tiles\.zip"),
    Case("pickle that runs code", malicious_pickle, WeightsError, r"weights\.pth.*was not read"),
    Case("checkpoint cut short", cut_checkpoint, WeightsError, "as safetensors"),
    Case("checkpoint of another network", other_architecture, WeightsError, "has arch 'mine'"),
    Case("checkpoint of another length", other_length, WeightsError, "has descriptor_dim 128"),
    Case("checkpoint that lies about its size", lying_header, WeightsError, "own header"),
    Case("descriptors cut short", cut_descriptors, DescriptorError, r"a\.h5.*sslpath embed"),
    Case("descriptors with NaN", nan_descriptors, DescriptorError, "hold NaN"),
    Case("descriptors that claim 5 TB", exploding_descriptors, DescriptorError, "claims 5,120 GB"),
    Case("folder in which another run works", busy_folder, BusyError, "Another process"),
]  # fmt: skip
