"""How fast sslpath is, as ratios within one run: to a ceiling, and to what others do.

    python benchmarks/speed.py [--only PART ...] [--slide SVS] [--out FILE]

Every part gives the same work to several ways of doing it, checks that their outputs agree, warms
each once, and then lets them take turns. A row holds the median over the turns of the ratio to the
part's reference, and the lowest and highest ratio. Absolute rates are printed, not recorded: they
are the machine's.

- ``reading``: tiles of 224 px from a JPEG TIFF (and an SVS, if given): `Slide.read` against the
  loop over OpenSlide's `read_region` that others have, tiffslide, libvips, and decoding alone.
- ``descriptors``: from slides to files, against the same network on pixels that are there already.
- ``training``: from slides, against bare steps of the same network on random tensors, and against
  the loop of tutorials (two forward passes a pair, float32).
- ``retrieval``: ten nearest with the own slide left out, against FAISS (flat) and scikit-learn.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import openslide
import pyvips
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from sslpath.augment import Augmentation, augment
from sslpath.datasets.phantom import make_phantom
from sslpath.embed import embed_encoder
from sslpath.imagenet import random_encoder
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss, pair_loss
from sslpath.neighbours import neighbours, unit_length
from sslpath.results import row, write_results
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.tiling import tile_slides
from sslpath.training import autocast_of, train

Way = Callable[[], Any]
TURNS = 5
MPP, TILE_PX = 0.5, 224


def take_turns(part: str, ways: dict[str, Way], work: int, unit: str) -> list[dict[str, Any]]:
    """Time each way in turn; rows of ratios to the first, which is the reference."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                rates[name].append(work / (time.perf_counter() - start))
    reference = next(iter(ways))
    rows = []
    for name, measured in rates.items():
        ratios = [a / b for a, b in zip(measured, rates[reference], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{part:34} {name:34} {statistics.median(measured):12,.0f} {unit:9}/s "
              f"{middle:7.2f} [{low:.2f}, {high:.2f}]", flush=True)  # fmt: skip
        about = {"versus": reference, "work": f"{work:,} {unit}"}
        rows.append(
            row(name, f"rate, over {reference}", middle, low, high, TURNS, 0, part, **about)
        )
    return rows


# Reading


def reading(slides: list[Path]) -> list[dict[str, Any]]:
    """Tiles row by row, and in random order."""
    rows = []
    for path in slides:
        slide = Slide(path, mpp=MPP)
        width, height = slide.dimensions
        corners = [
            (x, y)
            for y in range(0, height - TILE_PX + 1, TILE_PX)
            for x in range(0, width - TILE_PX + 1, TILE_PX)
        ]
        shuffled = [corners[i] for i in np.random.default_rng(0).permutation(len(corners))]
        ways = readers(path, slide)
        for x, y in corners[:: max(1, len(corners) // 20)]:
            wanted = ways["OpenSlide loop"](x, y)
            for name, read in ways.items():
                if not np.array_equal(read(x, y), wanted):
                    raise SystemExit(f"{name} reads other pixels from {path} at {x}, {y}")
        for order, places in (("row by row", corners), ("random", shuffled)):
            timed = {name: partial(read_all, read, places) for name, read in ways.items()}
            timed["JPEG decoding alone"] = decoding(path, places)
            name = f"reading, {path.suffix[1:]}, {order}"
            rows += take_turns(name, timed, len(places), "tiles")
    return rows


def readers(path: Path, slide: Slide) -> dict[str, Callable[[int, int], NDArray[np.uint8]]]:
    """Ways to read a tile of level 0."""
    import tiffslide

    opened, tiff = openslide.OpenSlide(str(path)), tiffslide.TiffSlide(str(path))
    image = pyvips.Image.tiffload(str(path), page=0)
    size = (TILE_PX, TILE_PX)

    def vips(x: int, y: int) -> NDArray[np.uint8]:
        data = pyvips.Region.new(image).fetch(x, y, *size)
        return np.frombuffer(data, np.uint8).reshape(*size, -1)

    return {
        "OpenSlide loop": lambda x, y: np.array(opened.read_region((x, y), 0, size).convert("RGB")),
        "sslpath": lambda x, y: slide.read(x, y, TILE_PX, MPP),
        "tiffslide": lambda x, y: np.array(tiff.read_region((x, y), 0, size).convert("RGB")),
        "libvips": vips,
    }


def read_all(read: Callable[[int, int], Any], places: list[tuple[int, int]]) -> None:
    """Read all tiles."""
    for x, y in places:
        read(x, y)


def decoding(path: Path, places: list[tuple[int, int]]) -> Way:
    """Decode as many JPEG pixels as the tiles have, from memory: no reader can be faster."""
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = tiff.pages[0]
        tables = page.tags["JPEGTables"].value[:-2] if "JPEGTables" in page.tags else b"\xff\xd8"
        count = round(len(places) * TILE_PX**2 / (page.tilewidth * page.tilelength))
        blocks = []
        for offset, length in zip(page.dataoffsets[:count], page.databytecounts, strict=False):
            file.seek(offset)
            blocks.append(tables + file.read(length)[2:])
    return lambda: [Image.open(io.BytesIO(block)).load() for block in blocks]


# Descriptors and training


def descriptors(slides: list[Path]) -> list[dict[str, Any]]:
    """A folder of slides to a folder of descriptors."""
    encoder = random_encoder("resnet18", input_px=TILE_PX)
    tiles, _ = tile_slides(
        [Slide(p, mpp=MPP) for p in slides], mpp=MPP, tile_px=TILE_PX, max_tiles=150, progress=False
    )
    source, there = open_source(tiles), open_source(tiles).read(tiles)

    def whole(workers: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            embed_encoder(tiles, source, encoder, folder, workers=workers, progress=False)

    ways = {"the network alone": lambda: encoder.encode(there), "sslpath": lambda: whole(0)}
    return take_turns("descriptors, ResNet-18", ways, len(tiles), "tiles")


def training(slides: list[Path]) -> list[dict[str, Any]]:
    """Steps from slides on disk."""
    config = TrainConfig(
        near_tiles=2, far_tiles=6, steps=12, slides_per_batch=len(slides), tiles_per_slide=32,
        checkpoint_every=1000,
    )  # fmt: skip
    model = ModelConfig("resnet18", trunk="scratch", input_px=TILE_PX)
    tiles, _ = tile_slides(
        [Slide(p, mpp=MPP) for p in slides], mpp=MPP, tile_px=TILE_PX, progress=False
    )
    source, batch = open_source(tiles), config.slides_per_batch * config.tiles_per_slide
    images = torch.rand(batch, 3, TILE_PX, TILE_PX)
    near = torch.block_diag(*[torch.ones(8, 8)] * (batch // 8)).bool().fill_diagonal_(False)
    halves = torch.arange(batch // 2) % 2 == 0

    def bare(augmented: bool) -> None:
        network, generator = SiameseNetwork(model).train(), torch.Generator().manual_seed(0)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(config.steps):
            x = augment((images * 255).byte(), generator, Augmentation()) if augmented else images
            with autocast_of(network):
                z = network(x)
            step(optimiser, contrastive_loss(z, near, ~near, config.margin).total)

    def tutorial() -> None:
        network = SiameseNetwork(model).train().to(memory_format=torch.contiguous_format)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(config.steps):
            one, other = network(images[: batch // 2]), network(images[batch // 2 :])
            step(optimiser, pair_loss(one, other, halves, config.margin).total)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as run:
            train(tiles, config, model, run, source=source, device="cpu", progress=False)

    ways = {
        "bare steps": lambda: bare(False), "bare steps, augmented": lambda: bare(True),
        "sslpath": whole, "tutorial loop": tutorial,
    }  # fmt: skip
    return take_turns("training, ResNet-18", ways, batch * config.steps, "images")


def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of learning."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


# Retrieval


def retrieval(tiles: int, length: int) -> list[dict[str, Any]]:
    """Ten nearest tiles of other slides, for 1,000 queries."""
    rng = np.random.default_rng(0)
    database = unit_length(rng.standard_normal((tiles, length)))
    slide = np.repeat(np.arange(100), tiles // 100)
    drawn = np.sort(rng.choice(tiles, 1000, replace=False))
    queries = database[drawn]

    def by_faiss() -> NDArray[np.int64]:
        index, found = faiss.IndexFlatL2(length), np.empty((len(drawn), 10), np.int64)
        index.add(database)
        for one in np.unique(slide[drawn]):
            here = np.flatnonzero(slide[drawn] == one)
            at = np.searchsorted(slide, [one, one + 1])
            other = faiss.IDSelectorNot(faiss.IDSelectorRange(*map(int, at)))
            asked = faiss.SearchParameters(sel=other)
            found[here] = index.search(queries[here], 10, params=asked)[1]
        return found

    def by_sklearn() -> NDArray[np.int64]:
        found = np.empty((len(drawn), 10), np.int64)
        for one in np.unique(slide[drawn]):
            here, others = np.flatnonzero(slide[drawn] == one), np.flatnonzero(slide != one)
            fitted = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(database[others])
            found[here] = others[fitted.kneighbors(queries[here], return_distance=False)]
        return found

    def by_torch() -> NDArray[np.int64]:
        x, groups = torch.from_numpy(database), torch.from_numpy(slide)
        found = []
        for start in range(0, len(drawn), 128):
            rows = drawn[start : start + 128]
            likeness = x[rows] @ x.T
            likeness[groups[rows][:, None] == groups] = -torch.inf
            found.append(likeness.topk(10, dim=1).indices)
        return torch.cat(found).numpy()

    ways: dict[str, Way] = {
        "FAISS, flat": by_faiss,
        "sslpath": lambda: neighbours(queries, database, slide[drawn], slide)[0],
        "scikit-learn, brute force": by_sklearn,
        "PyTorch, in blocks": by_torch,
    }
    answers = {name: way() for name, way in ways.items()}
    for name, found in answers.items():
        same = float((found == answers["sslpath"]).mean())
        if same < 0.999:
            raise SystemExit(f"{name} finds other neighbours: {same:.4f} are the same")
    return take_turns(f"retrieval, {tiles:,} x {length}", ways, len(drawn), "queries")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("reading", "descriptors", "training", "retrieval")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--slide", type=Path, help="an SVS to read as well")
    parser.add_argument("--work", type=Path, default=Path("out/speed"))
    parser.add_argument("--out", type=Path, default=Path("data/results/benchmarks.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    phantoms = [make_phantom(options.work, f"phantom_{i}", seed=i) for i in range(2)]
    rows: list[dict[str, Any]] = []
    if "reading" in options.only:
        rows += reading([phantoms[0], *([options.slide] if options.slide else [])])
    if "descriptors" in options.only:
        rows += descriptors(phantoms)
    if "training" in options.only:
        rows += training(phantoms)
    if "retrieval" in options.only:
        for tiles, length in ((10_000, 128), (100_000, 128), (10_000, 2048)):
            rows += retrieval(tiles, length)
    write_results(options.out, rows)


if __name__ == "__main__":
    main()
