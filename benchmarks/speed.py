"""How fast sslpath is, as ratios within one run: to a ceiling, and to what others do.

    python benchmarks/speed.py [--only PART ...] [--out FILE]

Every part gives the same work to several ways of doing it, checks that their outputs agree, warms
each once, and then lets them take turns. A row holds the median over the turns of the ratio to the
part's reference, and the lowest and highest ratio (of a recall, the quartiles of queries); `rate`
is the median of what this machine did a second, which another one does not. Other packages run in
environments of their own, which are made in --work (some GB).

- ``reading``: tiles of 224 px from a slide of a gigapixel in JPEG blocks, as TIFF and as SVS:
  `Slide.read` against the loop over OpenSlide's `read_region` that others have, tiffslide, libvips,
  TIAToolbox, LazySlide, histolab, and JPEG decoding alone. All pixels must be the same.
  And a slide that is not in JPEG, which OpenSlide reads either way.
- ``tissue``: that slide to its tissue, against CLAM's rule, TIAToolbox, LazySlide and histolab.
  Their masks differ, as their rules do.
- ``descriptors``: from slides to files, against the same network on pixels that are there already,
  TIAToolbox and LazySlide.
- ``training``: from slides, against bare steps of the same network on random tensors, the loop of
  tutorials (two forward passes a pair, float32), and lightly's SimCLR.
- ``pairs``: pairs learned from, against that loop: of a batch, all that are near or far count.
- ``retrieval``: ten nearest with the own slide left out, against FAISS (flat), scikit-learn and
  PyTorch.
- ``index``: the index on disk against exact search, with its recall; then both as commands.
- ``scheduler``: how many jobs a Dask scheduler hands out.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import faiss
import h5py
import numpy as np
import pandas as pd
import torch
from distributed import LocalCluster
from large_slides import gigapixel, without_jpeg
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from sslpath import handles
from sslpath.augment import Augmentation, augment
from sslpath.backbones import Precision, resolve_precision
from sslpath.batches import Batches
from sslpath.cluster import each
from sslpath.datasets.phantom import make_phantom
from sslpath.datasets.phantom_features import SHIPPED
from sslpath.embed import embed_encoder, store
from sslpath.imagenet import Encoder, random_encoder
from sslpath.index import build_index
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss, pair_loss
from sslpath.neighbours import neighbours, unit_length
from sslpath.results import read_results, row, write_results
from sslpath.retrieval import search
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.table import make_table, save_tiles
from sslpath.tiling import tile_slides
from sslpath.training import autocast_of, train

Way = Callable[[], Any]
TURNS, READ_ROWS = 5, 8
MPP, TILE_PX = 0.5, 224
LEARNER = ModelConfig("resnet18", trunk="scratch", input_px=TILE_PX)
NAMES = {
    "openslide": "OpenSlide loop", "openslide_cache": "OpenSlide loop, 128 MB cache",
    "sslpath": "sslpath", "tiffslide": "tiffslide",
    "libvips": "libvips", "decoding": "JPEG decoding alone", "tiatoolbox": "TIAToolbox",
    "lazyslide": "LazySlide", "histolab": "histolab", "clam": "CLAM's rule", "lightly": "lightly",
}  # fmt: skip
# What is installed for each, one call of pip after the other. histolab names versions of 2022,
# which no Python that runs sslpath has wheels of; it gets later ones.
TORCH = ("torch", "torchvision")
PEERS = {
    "tiatoolbox": [("tiatoolbox", *TORCH)],
    "lazyslide": [("lazyslide", *TORCH)],
    "histolab": [
        ("--no-deps", "histolab"),
        ("openslide-python", "openslide-bin", "scikit-image", "certifi"),
    ],
    "lightly": [("lightly", *TORCH)],
}
READING = ("tiatoolbox", "lazyslide", "histolab")
PACKAGES = ("openslide", "openslide_cache", "sslpath", "tiffslide", "libvips", *READING)
# Tiles, numbers of each, queries.
SIZES = (
    (10_000, 128, 1000), (10_000, 2048, 1000), (100_000, 128, 1000), (100_000, 2048, 200),
    (1_000_000, 128, 200),
)  # fmt: skip
# Runs a command and prints the most memory that it took, in KiB.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
TISSUE = ("tiatoolbox", "lazyslide", "histolab")
DESCRIBING = ("tiatoolbox", "lazyslide")


def take_turns(
    part: str,
    ways: dict[str, Way],
    work: float,
    unit: str,
    others: dict[str, int] | None = None,
    turns: int = TURNS,
) -> list[dict[str, Any]]:
    """Time each way in turn; rows of ratios to the first, which is the reference.

    ``others`` says which ways do another amount of ``work``.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            time.sleep(0.3)  # threads of the last way may still wait by spinning
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                done = (others or {}).get(name, work)
                rates[name].append(done / (time.perf_counter() - start))
    Worker.end_all()
    return ratios_of(part, rates, work, unit)


def ratios_of(
    part: str, rates: dict[str, list[float]], work: float, unit: str
) -> list[dict[str, Any]]:
    """Rows of ratios to the first way, turn by turn, from the rates of each way."""
    reference = next(iter(rates))
    rows = []
    for name, measured in rates.items():
        ratios = [a / b for a, b in zip(measured, rates[reference], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{part:34} {name:34} {statistics.median(measured):12,.2f} {unit:9}/s "
              f"{middle:7.2f} [{low:.2f}, {high:.2f}]", flush=True)  # fmt: skip
        rate = statistics.median(measured)
        about = {"versus": reference, "work": f"{work:,.4g} {unit}", "rate": rate, "unit": unit}
        n = len(measured)
        rows.append(row(name, f"rate, over {reference}", middle, low, high, n, 0, part, **about))
    return rows


# Packages, each in an environment of its own


class Worker:
    """A process that does a package's piece of work each time that it is called."""

    running: ClassVar[list["Worker"]] = []

    def __init__(self, package: str, part: str, slide: Path, places: Any, work: Path) -> None:
        given = work / f"{package} {part}.npy"
        np.save(given, places)
        words = (python_of(package, work), Path(__file__).with_name("peers.py"), package, part)
        log = (work / f"{package}.log").open("a")
        self.process = subprocess.Popen(
            [*map(str, words), slide, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True,
        )  # fmt: skip
        self.running.append(self)
        if self._answer() != "ready":
            raise SystemExit(f"{package} does not start; see {log.name}")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @classmethod
    def end_all(cls) -> None:
        """End all processes: together they would fill the memory."""
        while cls.running:
            process = cls.running.pop().process
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def start(self, result: str = "") -> None:
        """Begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(result + "\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Wait for the end."""
        if self._answer() != "done":
            raise SystemExit(f"{self.process.args} failed")

    def result(self) -> Any:
        """Do it, and tell what came out."""
        with tempfile.TemporaryDirectory() as folder:
            self.start(str(Path(folder) / "out.npy"))
            self.wait()
            return np.load(Path(folder) / "out.npy")

    def __call__(self) -> None:
        """Do it, and wait."""
        self.start()
        self.wait()


def python_of(package: str, work: Path) -> Path | str:
    """The Python of a package's environment, which is made if it is not there."""
    package = {"clam": "lazyslide"}.get(package, package)  # which has OpenCV
    if package not in PEERS:
        return sys.executable
    folder = work / "environments" / package
    if not (folder / "whole").exists():
        print(f"installing {package} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        for wanted in PEERS[package]:
            subprocess.run([*pip, "--disable-pip-version-check", *wanted], check=True)
        (folder / "whole").touch()
    return folder / "bin" / "python"


# Reading


def reading(
    large: Path,
    work: Path,
    what: str,
    packages: tuple[str, ...] = PACKAGES,
    *,
    all_orders: bool = False,
) -> list[dict[str, Any]]:
    """Tiles row by row; if ``all_orders`` in random order and by two processes, too.

    The slide is larger than all caches, and the tiles are, too: no turn finds what the last left.
    """
    rows = []
    width, height = Slide(large, mpp=MPP).dimensions
    corners = np.stack(np.mgrid[0 : height - TILE_PX : TILE_PX, 0 : width - TILE_PX : TILE_PX])
    corners = corners[::-1].reshape(2, -1).T  # x, y, row by row
    row = (width - TILE_PX) // TILE_PX
    together_px = corners[: READ_ROWS * row]
    scattered = np.random.default_rng(0).permutation(corners)[: len(together_px)]
    wanted = None
    for package in packages:
        found = Worker(package, "reading", large, scattered[:20], work).result()
        wanted = found if wanted is None else wanted
        if not np.array_equal(found, wanted):
            raise SystemExit(f"{package} reads other pixels from {large}")
    orders = {"row by row": together_px} | ({"random": scattered} if all_orders else {})
    for order, places in orders.items():
        ways: dict[str, Way] = {
            NAMES[one]: Worker(one, "reading", large, places, work)
            for one in (*packages, *(["decoding"] if packages == PACKAGES else []))
        }
        part = f"reading, {what}, {order}"
        rows += take_turns(part, ways, len(places), "tiles")
    if not all_orders:
        return rows
    halves = np.array_split(together_px, 2)
    ways = {
        NAMES[one]: partial(
            together, [Worker(one, "reading", large, half, work) for half in halves]
        )
        for one in packages
    }
    part = f"reading, {what}, two processes"
    return rows + take_turns(part, ways, len(together_px), "tiles")


def together(workers: list[Worker]) -> None:
    """All at once."""
    for one in workers:
        one.start()
    for one in workers:
        one.wait()


def tissue(large: Path, work: Path) -> list[dict[str, Any]]:
    """A slide to its tissue, opened anew each time."""
    width, height = Slide(large, mpp=MPP).dimensions
    ways: dict[str, Way] = {
        NAMES[one]: Worker(one, "tissue", large, [], work) for one in ("clam", "sslpath", *TISSUE)
    }
    return take_turns("tissue", ways, width * height / 1e9, "gigapixel")


# Descriptors and training


def precisions() -> list[Precision]:
    """What sslpath takes by itself on this machine, and what the others take."""
    own: Any = str(resolve_precision("auto", "resnet18")).removeprefix("torch.")
    return list(dict.fromkeys([own, "float32"]))


def descriptors(slide: Path, work: Path) -> list[dict[str, Any]]:
    """A slide, all of it, to a file of descriptors."""

    def tiled() -> pd.DataFrame:
        handles._pools.clear()  # opened anew each time, as by the others
        one = Slide(slide, mpp=MPP)
        return tile_slides([one], mpp=MPP, tile_px=TILE_PX, min_tissue=0, progress=False)[0]

    tiles, rows = tiled(), []
    there = open_source(tiles).read(tiles)
    for precision in precisions():
        encoder = random_encoder("resnet18", input_px=TILE_PX, precision=precision)

        def whole(encoder: Encoder = encoder) -> None:
            tiles = tiled()
            with tempfile.TemporaryDirectory() as folder:
                embed_encoder(tiles, open_source(tiles), encoder, folder, progress=False)

        ways: dict[str, Way] = {"the network alone": partial(encoder.encode, there)}
        ways["sslpath"] = whole
        counts = {}
        for one in DESCRIBING if precision == "float32" else ():
            worker = ways[NAMES[one]] = Worker(one, "descriptors", slide, [], work)
            counts[NAMES[one]] = int(worker.result())  # TIAToolbox goes beyond the edge
        rows += take_turns(
            f"descriptors, ResNet-18, {precision}", ways, len(tiles), "tiles", counts
        )
    return rows


def learning(slides: list[Path], precision: Precision) -> tuple[pd.DataFrame, TrainConfig]:
    """What is learned from, and how."""
    config = TrainConfig(
        near_tiles=2, far_tiles=6, steps=12, slides_per_batch=len(slides), tiles_per_slide=32,
        checkpoint_every=1000, precision=precision,
    )  # fmt: skip
    opened = [Slide(path, mpp=MPP) for path in slides]
    return tile_slides(opened, mpp=MPP, tile_px=TILE_PX, progress=False)[0], config


def bare(config: TrainConfig, augmented: bool) -> None:
    """Steps on random tensors."""
    images, batch = random_images(config)
    near = torch.block_diag(*[torch.ones(8, 8)] * (batch // 8)).bool().fill_diagonal_(False)
    network, generator = SiameseNetwork(LEARNER).train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(config.steps):
        x = augment((images * 255).byte(), generator, Augmentation()) if augmented else images
        with autocast_of(network, config.precision):
            z = network(x)
        step(optimiser, contrastive_loss(z, near, ~near, config.margin).total)


def tutorial(config: TrainConfig) -> None:
    """The loop of tutorials: two forward passes a pair."""
    images, batch = random_images(config)
    is_near = torch.arange(batch // 2) % 2 == 0
    network = SiameseNetwork(LEARNER).train().to(memory_format=torch.contiguous_format)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(config.steps):
        one, other = network(images[: batch // 2]), network(images[batch // 2 :])
        step(optimiser, pair_loss(one, other, is_near, config.margin).total)


def random_images(config: TrainConfig) -> tuple[torch.Tensor, int]:
    """A batch of no tiles, and how many there are."""
    batch = config.slides_per_batch * config.tiles_per_slide
    return torch.rand(batch, 3, TILE_PX, TILE_PX), batch


def from_slides(tiles: pd.DataFrame, config: TrainConfig) -> None:
    """As sslpath learns."""
    with tempfile.TemporaryDirectory() as run:
        train(
            tiles, config, LEARNER, run, source=open_source(tiles), device="cpu", progress=False
        )  # fmt: skip


def training(slides: list[Path], work: Path, precision: Precision) -> list[dict[str, Any]]:
    """Steps from slides on disk."""
    tiles, config = learning(slides, precision)
    batch = config.slides_per_batch * config.tiles_per_slide
    ways: dict[str, Way] = {
        "bare steps": partial(bare, config, False),
        "bare steps, augmented": partial(bare, config, True),
        "sslpath": partial(from_slides, tiles, config),
    }
    if precision == "float32":
        ways["tutorial loop"] = partial(tutorial, config)
        folder = pictures(tiles.iloc[: 2 * batch], work / "pictures" / "tiles")
        given = [batch, config.steps]
        ways["lightly"] = Worker("lightly", "training", folder.parent, given, work)
    done = batch * config.steps
    return take_turns(f"training, ResNet-18, {precision}", ways, done, "images", turns=3)


def pairs(slides: list[Path]) -> list[dict[str, Any]]:
    """Pairs that those steps learn from: in the loop of tutorials a tile has one partner."""
    tiles, config = learning(slides, "float32")
    batches = Batches(tiles, config, None)
    each = [batches[i] for i in range(config.steps)]
    ours = sum(int((one.near | one.far).sum()) // 2 for one in each)  # a mask holds a pair twice
    theirs = config.steps * config.slides_per_batch * config.tiles_per_slide // 2
    ways: dict[str, Way] = {
        "tutorial loop": partial(tutorial, config), "sslpath": partial(from_slides, tiles, config)
    }  # fmt: skip
    part = "pairs, ResNet-18, float32"
    return take_turns(part, ways, theirs, "pairs", {"sslpath": ours}, turns=3)


def pictures(tiles: pd.DataFrame, folder: Path) -> Path:
    """Tiles as JPEG files, for packages that do not read slides."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, tile in enumerate(open_source(tiles).read(tiles)):
        Image.fromarray(tile).save(folder / f"{i:04d}.jpg", quality=90)
    return folder


def step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of learning."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


# Retrieval


def retrieval(tiles: int, length: int, queried: int = 1000) -> list[dict[str, Any]]:
    """Ten nearest tiles of other slides."""
    rng = np.random.default_rng(0)
    database = unit_length(rng.standard_normal((tiles, length)))
    slide = np.repeat(np.arange(100), tiles // 100)
    drawn = np.sort(rng.choice(tiles // 10, queried, replace=False))  # of ten slides
    queries = database[drawn]

    def by_faiss() -> NDArray[np.int64]:
        found = np.empty((len(drawn), 10), np.int64)
        for one in np.unique(slide[drawn]):
            here = np.flatnonzero(slide[drawn] == one)
            start, end = np.searchsorted(slide, [one, one + 1])
            # Before and after the own slide: quicker than a search with a selector.
            parts = [(0, database[:start]), (end, database[end:])]
            both = [(at, *faiss.knn(queries[here], x, 10)) for at, x in parts if len(x)]
            squared = np.concatenate([near for _, near, _ in both], axis=1)
            rows = np.concatenate([at + these for at, _, these in both], axis=1)
            nearest = np.argsort(squared, axis=1)[:, :10]
            found[here] = np.take_along_axis(rows, nearest, axis=1)
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


def memory_of_search(tiles: int = 400_000) -> list[dict[str, Any]]:
    """The most memory that a search takes, over that of the descriptors."""
    found = np.random.default_rng(0).standard_normal((tiles, 128), np.float32)
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(100), tiles // 100)})
    seen, ended = [resident()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    search(found[0], found, table, exclude=0)
    ended.set()
    watcher.join()
    times = (max(seen) - seen[0]) / found.nbytes + 1
    print(f"memory of a search: {times:.2f} times the descriptors")
    about = row("sslpath", "memory, over the descriptors", times, None, None, 1, 0, "memory")
    return [about]


def resident() -> int:
    """Memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def like_tissue(tiles: int) -> NDArray[np.float32]:
    """Descriptors of 128 numbers, as many as one likes, that lie as real ones do.

    Each is one of a phantom tile (ImageNet features, PCA), moved a random share of the way to one
    of its ten nearest, and a tenth of that way anywhere.
    """
    with h5py.File(SHIPPED) as file:
        packed, scale = file["features"][:], file["scale"][:]
    real = unit_length(PCA(128, random_state=0).fit_transform((packed / 255.0) ** 2 * scale))
    rng = np.random.default_rng(0)
    near, _ = neighbours(real, real, k=11)
    one = rng.integers(len(real), size=tiles)
    way = real[near[one, rng.integers(1, 11, size=tiles)]] - real[one]
    noise = unit_length(rng.standard_normal(way.shape)) * np.linalg.norm(way, axis=1)[:, None]
    return unit_length(real[one] + rng.random((tiles, 1)) * way + 0.1 * noise)


def as_slides(path: Path, count: int, slides: int = 100) -> pd.DataFrame:
    """Tiles that overlap, of one slide under many names."""
    slide = Slide(path)
    where: dict[str, Any] = {"path": str(path.absolute()), "mpp": MPP, "stride_px": 1}
    where |= dict(zip(("width", "height"), slide.dimensions, strict=True))
    number = np.arange(count // slides)
    side = int(np.ceil(np.sqrt(len(number))))
    columns = {
        "slide_id": np.repeat([f"s{i}" for i in range(slides)], len(number)),
        "x": np.tile(number % side * ((where["width"] - TILE_PX) // side), slides),
        "y": np.tile(number // side * ((where["height"] - TILE_PX) // side), slides),
        "size": TILE_PX,
        "slide_mpp": MPP,
    }
    source = {"kind": "slides", "slides": dict.fromkeys(np.unique(columns["slide_id"]), where)}
    return make_table(columns, mpp=MPP, tile_px=TILE_PX, source=source)


def indexed(count: int, path: Path, work: Path) -> list[dict[str, Any]]:
    """Ten nearest tiles of other slides, by the index on disk."""
    found, tiles = like_tissue(count), as_slides(path, count)
    slide = tiles["slide_id"].factorize()[0]
    folder = work / f"descriptors {count}"
    store(tiles, found, folder, {"arch": "like tissue"})
    drawn = np.sort(np.random.default_rng(1).choice(count // 10, 200, replace=False))
    asked = found[drawn], slide[drawn]
    exact, _ = neighbours(asked[0], found, asked[1], slide)
    ways: dict[str, Way] = {"exact": lambda: neighbours(asked[0], found, asked[1], slide)}
    rows, part = [], f"index, {count:,} x 128"
    for code in ("bytes", "quarter"):
        out = work / f"index {count} {code}"
        index = build_index(tiles, folder, out, code=code, progress=False)
        size = sum(path.stat().st_size for path in out.iterdir()) / count
        for probes in (8, 32, 128):
            name = f"{code}, {probes} lists"
            ways[name] = partial(index.neighbours, *asked, slide, probes=probes)
            got = ways[name]()[0]
            share = [len(set(a) & set(b)) / 10 for a, b in zip(got, exact, strict=True)]
            low, high = np.percentile(share, [25, 75])
            about = {"bytes_per_tile": size, "cells": index.about["cells"]}
            rows.append(
                row(name, "recall of ten", float(np.mean(share)), float(low), float(high),
                    len(drawn), 0, part, **about)
            )  # fmt: skip
            print(f"{part:34} {name:34} recall {np.mean(share):.3f}, {size:.0f} bytes a tile")
    rows += take_turns(part, ways, len(drawn), "queries")
    return rows + commands(tiles, folder, work / f"index {count} bytes", work)


def commands(
    tiles: pd.DataFrame, folder: Path, index: Path, work: Path, turns: int = 3
) -> list[dict[str, Any]]:
    """One query by `sslpath search`: the start of Python, reading, a picture, and all memory."""
    table, part = work / "tiles.parquet", f"sslpath search, {len(tiles):,} x 128"
    save_tiles(tiles, table)
    query = f"{tiles['slide_id'][0]}:{tiles['x'][0]},{tiles['y'][0]}"
    search_it = (
        *(sys.executable, "-m", "sslpath.cli", "search", query, table),
        *("--descriptors", folder, "--out", work / "gallery.png"),
    )
    peaks: dict[str, int] = {}

    def call(name: str, *more: str | Path) -> None:
        peaks[name] = max(peaks.get(name, 0), peak_bytes(*search_it, *more))

    ways: dict[str, Way] = {
        "exact": partial(call, "exact"), "index": partial(call, "index", "--index", index)
    }  # fmt: skip
    rows = take_turns(part, ways, 1, "queries", turns=turns)
    return rows + [
        row(name, "memory, GB", peak / 1e9, None, None, turns + 1, 0, part)
        for name, peak in peaks.items()
    ]


def peak_bytes(*words: str | Path) -> int:
    """Run a command; the most memory that it took.

    It is started by a small process: a child begins with the memory of its parent, which counts.

    Raises:
        SystemExit: If the command fails.
    """
    command = [*map(str, words)]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, text=True
    )
    if measured.returncode:
        raise SystemExit(f"{command} failed")
    return int(measured.stdout) * 1024


def scheduled() -> list[dict[str, Any]]:
    """Jobs that do nothing, handed to workers of a Dask scheduler."""
    jobs = 2000
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:  # whose workers complain when it ends

        def hand_out() -> None:
            for _ in each(cluster.scheduler_address, abs, range(jobs)):
                pass

        return take_turns("scheduler", {"sslpath": hand_out}, jobs, "jobs")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = (
        *("reading-tif", "reading-svs", "reading-other", "tissue", "descriptors", "training"),
        *("pairs", "retrieval", "index", "scheduler"),
    )
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--work", type=Path, default=Path("out/speed"))
    parser.add_argument("--out", type=Path, default=Path("data/results/benchmarks.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    phantoms = [make_phantom(work, f"phantom_{i}", seed=i) for i in range(2)]
    large = [gigapixel(phantoms[0], work / f"large.{ending}") for ending in ("tif", "svs")]
    do = {
        "reading-tif": lambda: reading(large[0], work, "tif", all_orders=True),
        "reading-svs": lambda: reading(large[1], work, "svs"),
        "reading-other": lambda: reading(
            without_jpeg(phantoms[0], work / "deflate.tif"), work, "tif without JPEG",
            ("openslide", "sslpath"),
        ),
        "tissue": lambda: tissue(large[0], work),
        "descriptors": lambda: descriptors(phantoms[0], work),
        "training": lambda: [
            one for how in precisions() for one in training(phantoms, work, how)
        ],
        "pairs": lambda: pairs(phantoms),
        # Memory first: what other searches have freed would be taken again, unseen.
        "retrieval": lambda: memory_of_search()
        + [one for asked in SIZES for one in retrieval(*asked)],
        "index": lambda: indexed(1_000_000, phantoms[0], work),
        "scheduler": scheduled,
    }  # fmt: skip
    rows = read_results(options.out) if options.out.exists() else []
    for part in options.only:
        made = do[part]()
        # Kept at once, so that a part that fails costs no other.
        again = {one["data"] for one in made}
        rows = [one for one in rows if one["data"] not in again] + made
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
