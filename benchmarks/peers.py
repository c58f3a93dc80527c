"""A piece of work as each package does it: `speed.py` runs this in the package's environment.

    python peers.py PACKAGE PART SLIDE PLACES.npy

It prepares, prints "ready", and does the work each time that it reads a line, saying "done" after
it. If the line names a file, what came out is stored there.

- ``reading``: the tiles of 224 px at the places given, of level 0, one after the other.
- ``tissue``: a slide to the mask or outline of its tissue, and, of sslpath and LazySlide, the grid.
- ``descriptors``: all tiles of the slide through a ResNet-18 of random weights, stored.
- ``training``: steps of SimCLR on a folder of tiles (SLIDE), as many as PLACES says.
"""

import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TILE_PX, MPP, BATCH = 224, 0.5, 64


def openslide(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """The loop over `read_region` that CLAM and TRIDENT have."""
    from openslide import OpenSlide

    return loop(OpenSlide(str(slide)), places)


def openslide_cache(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """The same with a larger cache than OpenSlide's own: it holds a row of blocks."""
    from openslide import OpenSlide, OpenSlideCache

    opened = OpenSlide(str(slide))
    opened.set_cache(OpenSlideCache(128 << 20))
    return loop(opened, places)


def loop(opened: Any, places: Any) -> Callable[[], Any]:
    """Tile by tile."""
    size = (TILE_PX, TILE_PX)
    return lambda: (
        np.array(opened.read_region((int(x), int(y)), 0, size).convert("RGB")) for x, y in places
    )


def sslpath(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """Ours."""
    from sslpath import handles
    from sslpath.slides import Slide
    from sslpath.tiling import tile_slide

    if part == "tissue":

        def grid() -> Any:
            handles._pools.clear()  # opened anew each time, as by the others
            return len(tile_slide(Slide(slide, mpp=MPP), mpp=MPP, tile_px=TILE_PX))

        return grid
    opened = Slide(slide, mpp=MPP)
    return lambda: (opened.read(int(x), int(y), TILE_PX, MPP) for x, y in places)


def tiffslide(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """tiffslide, with OpenSlide's interface."""
    from tiffslide import TiffSlide

    return loop(TiffSlide(str(slide)), places)


def libvips(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """Pyvips' own TIFF reader, without its cache."""
    import pyvips

    image, size = pyvips.Image.tiffload(str(slide), page=0), (TILE_PX, TILE_PX)

    def tile(x: int, y: int) -> Any:
        data = pyvips.Region.new(image).fetch(x, y, *size)
        return np.frombuffer(data, np.uint8).reshape(*size, -1)

    return lambda: (tile(int(x), int(y)) for x, y in places)


def decoding(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """JPEG alone, from memory, as many pixels as the tiles have."""
    import simplejpeg
    import tifffile

    with tifffile.TiffFile(slide) as tiff, slide.open("rb") as file:
        page = tiff.pages[0]
        tables = page.tags["JPEGTables"].value[:-2] if "JPEGTables" in page.tags else b"\xff\xd8"
        count = round(len(places) * TILE_PX**2 / (page.tilewidth * page.tilelength))
        # The same memory for all: new memory would take its own time.
        pixels = np.empty((page.tilelength, page.tilewidth, 3), np.uint8)
        blocks = []
        for offset, length in zip(page.dataoffsets[:count], page.databytecounts, strict=False):
            file.seek(offset)
            blocks.append(tables + file.read(length)[2:])
    return lambda: (simplejpeg.decode_jpeg(block, buffer=pixels) for block in blocks)


def tiatoolbox(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """TIAToolbox."""
    from tiatoolbox.wsicore.wsireader import WSIReader

    def opened() -> Any:
        return WSIReader.open(slide, mpp=(MPP, MPP), power=20)  # which it finds in few files

    reader = opened()
    if part == "reading":
        size = (TILE_PX, TILE_PX)
        return lambda: (reader.read_rect((int(x), int(y)), size) for x, y in places)
    if part == "tissue":

        def mask() -> Any:
            return np.asarray(opened().tissue_mask("morphological").img)

        return mask
    from tiatoolbox.models.architecture.vanilla import CNNBackbone
    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig

    model = CNNBackbone("resnet18").eval()
    at = [{"units": "mpp", "resolution": MPP}]
    shape = (TILE_PX, TILE_PX)
    config = IOPatchPredictorConfig(
        input_resolutions=at, output_resolutions=at, patch_input_shape=shape, stride_shape=shape
    )

    def describe() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            engine = DeepFeatureExtractor(model, batch_size=BATCH, num_workers=0, verbose=False)
            out = engine.run(
                [opened()], patch_mode=False, ioconfig=config, save_dir=Path(folder) / "out",
                auto_get_mask=False, output_type="zarr", overwrite=True,
            )  # fmt: skip
            import zarr

            return zarr.open(str(next(iter(out.values()))), mode="r")["coordinates"].shape[0]

    return describe


def lazyslide(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """LazySlide, and wsidata under it."""
    import lazyslide as zs
    from wsidata import open_wsi

    def opened() -> Any:
        return open_wsi(str(slide), store=None)

    if part == "reading":
        reader = opened().reader
        size = (TILE_PX, TILE_PX)
        return lambda: (np.asarray(reader.get_region(int(x), int(y), *size)) for x, y in places)
    if part == "tissue":

        def outline() -> Any:
            one = opened()
            zs.pp.find_tissues(one)
            zs.pp.tile_tissues(one, TILE_PX, mpp=MPP)
            return len(one["tiles"])

        return outline
    import torch
    import torchvision
    from torchvision.transforms import v2

    prepare = v2.Compose([
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    model = torchvision.models.resnet18(weights=None).eval()
    model.fc = torch.nn.Identity()

    def describe() -> Any:
        one = opened()
        zs.pp.tile_tissues(one, TILE_PX, mpp=MPP, tissue_key=None, background_filter=False)
        zs.tl.feature_extraction(
            one, model, model_name="resnet18", transform=prepare, batch_size=BATCH, num_workers=0,
            pbar=False, device="cpu",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            one.write(Path(folder) / "slide.zarr")
        return len(one["tiles"])

    return describe


def histolab(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """Histolab."""
    from histolab.masks import TissueMask
    from histolab.slide import Slide
    from histolab.types import CoordinatePair

    opened = Slide(slide, processed_path=tempfile.mkdtemp())
    if part == "reading":
        boxes = [CoordinatePair(x, y, x + TILE_PX, y + TILE_PX) for x, y in places.tolist()]
        size = (TILE_PX, TILE_PX)
        return lambda: (
            np.asarray(opened.extract_tile(box, size, level=0).image.convert("RGB"))
            for box in boxes
        )
    return lambda: TissueMask()(Slide(slide, processed_path=tempfile.mkdtemp()))


def clam(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """The rule that CLAM finds tissue by: saturation, median of 7, threshold of 8, closing of 4."""
    import cv2
    import openslide

    def mask() -> Any:
        opened = openslide.OpenSlide(str(slide))
        level = opened.get_best_level_for_downsample(64)
        image = np.array(opened.read_region((0, 0), level, opened.level_dimensions[level]))
        saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]
        _, found = cv2.threshold(cv2.medianBlur(saturation, 7), 8, 255, cv2.THRESH_BINARY)
        found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8))
        return len(cv2.findContours(found, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0])

    return mask


def lightly(part: str, slide: Path, places: Any) -> Callable[[], Any]:
    """SimCLR of lightly, as its documentation writes it."""
    import torch
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    dataset = LightlyDataset(str(slide), transform=SimCLRTransform(input_size=TILE_PX))
    batch, steps = (int(n) for n in places)

    def learn() -> Any:
        torch.manual_seed(0)
        trunk = torchvision.models.resnet18(weights=None)
        trunk.fc = torch.nn.Identity()
        model = torch.nn.Sequential(trunk, SimCLRProjectionHead(512, 512, 128))
        loss, optimiser = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.06)
        # A batch of views is as many images as a batch of ours.
        drawn = torch.utils.data.RandomSampler(dataset, num_samples=steps * batch // 2)
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch // 2, sampler=drawn)
        for (one, other), _, _ in loader:
            value = loss(model(one), model(other))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        return steps

    return learn


PACKAGES = {
    f.__name__: f
    for f in (
        *(openslide, openslide_cache, sslpath, tiffslide, libvips, decoding),
        *(tiatoolbox, lazyslide, histolab, clam, lightly),
    )
}


def main() -> None:
    """Do the work, line by line."""
    warnings.filterwarnings("ignore")
    package, part, slide, places = sys.argv[1:]
    said, sys.stdout = sys.stdout, sys.stderr  # packages print
    work = PACKAGES[package](part, Path(slide), np.load(places))
    print("ready", file=said, flush=True)
    for line in sys.stdin:
        result = work()
        if line.strip():
            np.save(line.strip(), list(result) if isinstance(result, Iterator) else result)
        elif isinstance(result, Iterator):
            deque(result, maxlen=0)  # each tile is dropped when the next is read
        print("done", file=said, flush=True)


if __name__ == "__main__":
    main()
