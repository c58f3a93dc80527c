"""How well sslpath keeps a GPU busy, as ratios within one run to the network alone.

    python benchmarks/gpu.py [--work FOLDER] [--out FILE] [--steps N] [--workers N]

- ``training``: steps from slides on disk against bare steps of the same network (same precision,
  batch, loss and optimiser, random tensors that lie in the GPU's memory), as PyTorch runs them and
  compiled; and the loop of tutorials, two forward passes a pair in float32. ``reading alone``
  brings the same batches to the GPU, and learns nothing. Tiles of 256 px lie as the slides' blocks
  of JPEG do, so that fewer blocks have to be decoded; the GPU makes them smaller. Rates are those
  of windows of ten steps, without the first three of a turn, which warm up. There are two turns,
  one when compiled. A row holds the ratio of the rates over all windows, and the lowest and highest
  window: processes that read finish at almost the same time, so that windows differ.
- ``descriptors``: slides on disk to files of descriptors, against the network on tiles that lie in
  the GPU's memory. Opening, reading and writing count, but not the start and the end of the
  processes that read: rates are those after the first batches, until the last file is there.

Processes that read import the script that was called, and PyTorch with it, which takes long where
there are many: ``python -c "import gpu; gpu.main()"`` spares them that.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from large_slides import MPP, gigapixel

from sslpath.batches import Batches, load
from sslpath.datasets.phantom import make_phantoms
from sslpath.descriptors import compute
from sslpath.imagenet import prepare, random_encoder
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss, pair_loss
from sslpath.results import row, write_results
from sslpath.runs import read_log
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.tiling import tile_slides
from sslpath.training import autocast_of, train

TILE_PX, WINDOW, WARM = 224, 10, 3
BLOCK_PX = 256  # of the slides' JPEG
SLIDES, TILES = 8, 32  # of a batch
Rates = list[float]


def bare(model: ModelConfig, steps: int, device: str, compiled: bool) -> Rates:
    """Images a second of steps on random tensors."""
    batch = SLIDES * TILES
    network = SiameseNetwork(model).to(device).train()
    network.compiled = compiled
    images = torch.rand(batch, 3, TILE_PX, TILE_PX, device=device)
    near = torch.block_diag(*[torch.ones(8, 8)] * (batch // 8)).bool()
    near.fill_diagonal_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        with autocast_of(network):
            z = network(images)
        optimiser.zero_grad(set_to_none=True)
        contrastive_loss(z, near, ~near, 1.2).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    return windows(step, steps, batch, device)


def tutorial(model: ModelConfig, steps: int, device: str) -> Rates:
    """Images a second of the loop of tutorials."""
    batch = SLIDES * TILES
    network = SiameseNetwork(model).to(device, memory_format=torch.contiguous_format).train()
    images = torch.rand(batch, 3, TILE_PX, TILE_PX, device=device)
    is_near = torch.arange(batch // 2, device=device) % 2 == 0
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        one, other = network(images[: batch // 2]), network(images[batch // 2 :])
        optimiser.zero_grad(set_to_none=True)
        pair_loss(one, other, is_near, 1.2).total.backward()
        optimiser.step()

    return windows(step, steps, batch, device)


def windows(step: Callable[[], None], steps: int, batch: int, device: str) -> Rates:
    """Images a second in each window of ten steps, after those that warm up."""
    rates = []
    for _ in range(steps // WINDOW):
        start = time.perf_counter()
        for _ in range(WINDOW):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(WINDOW * batch / (time.perf_counter() - start))
    return rates[WARM:]


def settings(steps: int) -> TrainConfig:
    """Of a run whose log has a line a window."""
    return TrainConfig(
        near_tiles=2, far_tiles=6, steps=steps, slides_per_batch=SLIDES, tiles_per_slide=TILES,
        checkpoint_every=steps, log_every=WINDOW,
    )  # fmt: skip


def from_slides(
    tiles: Any, model: ModelConfig, config: TrainConfig, device: str, compiled: bool, workers: int
) -> Rates:
    """Images a second as a run's log tells them, without the windows that warm up."""
    with tempfile.TemporaryDirectory() as run:
        train(
            tiles, config, model, run, source=open_source(tiles), device=device,
            workers=workers, compiled=compiled, progress=False,
        )  # fmt: skip
        # The last window of a run is written before its state is saved.
        return [line["images_per_s"] for line in read_log(run)][WARM:]


def reading(tiles: Any, steps: int, device: str, workers: int) -> Rates:
    """Images a second that reach the device, where nothing is done with them."""
    batches = Batches(tiles, settings(steps), open_source(tiles))
    loaded = load(batches, range(steps), workers, torch.device(device))

    def step() -> None:
        next(loaded)

    return windows(step, steps, SLIDES * TILES, device)


def training(
    slides: list[Path], arch: str, steps: int, device: str, workers: int
) -> list[dict[str, Any]]:
    """Steps from slides, in turn with bare ones."""
    model, rows = ModelConfig(arch, trunk="scratch", input_px=TILE_PX), []
    for tile_px, compiled in itertools.product((TILE_PX, BLOCK_PX), (False, True)):
        tiles, _ = tile_slides(
            [Slide(path, mpp=MPP) for path in slides], mpp=MPP, tile_px=tile_px, progress=False
        )
        found: dict[str, Rates] = {"bare steps": [], "sslpath": []}
        for _ in range(1 if compiled else 2):
            found["bare steps"] += bare(model, steps, device, compiled)
            found["sslpath"] += from_slides(
                tiles, model, settings(steps), device, compiled, workers
            )
        if not compiled:
            found["reading alone"] = reading(tiles, steps, device, workers)
            if tile_px == TILE_PX:
                found["tutorial loop"] = tutorial(model, 5 * WINDOW, device)
        part = f"GPU, training, {arch}, bfloat16" + ", compiled" * compiled
        part += f", tiles of {tile_px} px" * (tile_px != TILE_PX)
        rows += rows_of(part, found, f"batches of {SLIDES * TILES}, {workers} processes read")
    return rows


def rows_of(part: str, found: dict[str, Rates], work: str) -> list[dict[str, Any]]:
    """Ratios to the rate of the first way."""
    rows, reference = [], next(iter(found))
    base = statistics.harmonic_mean(found[reference])
    for name, rates in found.items():
        ratios, rate = sorted(one / base for one in rates), statistics.harmonic_mean(rates)
        middle = rate / base
        print(f"{part:50} {name:16} {rate:10,.0f} tiles/s {middle:6.3f} "
              f"[{ratios[0]:.3f}, {ratios[-1]:.3f}]", flush=True)  # fmt: skip
        about = {"versus": reference, "work": work, "rate": rate, "unit": "tiles"}
        rows.append(
            row(name, f"rate, over {reference}", middle, ratios[0], ratios[-1], len(rates), 0,
                part, **about)
        )  # fmt: skip
    return rows


def descriptors(
    slides: list[Path], arch: str, device: str, workers: int, turns: int = 3
) -> list[dict[str, Any]]:
    """Slides to files."""
    tiles, _ = tile_slides(
        [Slide(path, mpp=MPP) for path in slides], mpp=MPP, tile_px=TILE_PX, min_tissue=0,
        progress=False,
    )  # fmt: skip
    encoder = random_encoder(arch, input_px=TILE_PX, device=device)
    images = torch.rand(256, 3, TILE_PX, TILE_PX, device=device)
    low = encoder.provenance["precision"] == "bfloat16"

    @torch.inference_mode()
    def alone() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=low):
            encoder.folded(prepare(images, TILE_PX))

    found: dict[str, Rates] = {"the network alone": [], "sslpath": []}
    for turn in range(turns):
        rates = windows(alone, (WARM + 3) * WINDOW, len(images), device)
        done = [(0, 0.0)]

        def encode(pixels: Any, done: list[tuple[int, float]] = done) -> Any:
            wait = encoder.start(pixels)

            def features() -> Any:
                found = wait()
                done.append((done[-1][0] + len(found), time.time()))
                return found

            return features

        with tempfile.TemporaryDirectory() as folder:
            compute(
                tiles, encode, open_source(tiles), folder, attrs=encoder.provenance,
                workers=workers, progress=False,
            )  # fmt: skip
            end = max(path.stat().st_mtime for path in Path(folder).glob("*.h5"))
        first, start = done[min(WARM * WINDOW, len(done) // 2)]
        if turn:  # the first warms up
            found["the network alone"] += rates
            found["sslpath"].append((len(tiles) - first) / (end - start))
    work = f"{len(tiles):,} tiles of {len(slides)} slides, {workers} processes read"
    return rows_of(f"GPU, descriptors, {arch}, bfloat16", found, work)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/gpu"))
    parser.add_argument("--out", type=Path, default=Path("out/gpu/benchmarks.json"))
    parser.add_argument("--archs", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=100, help="of a turn (default 100)")
    parser.add_argument("--workers", type=int, default=15, help="processes that read (default 15)")
    parser.add_argument("--slides", type=int, default=SLIDES, help="phantoms to learn from")
    options = parser.parse_args()
    phantoms = make_phantoms(options.work, options.slides, workers=min(options.workers, SLIDES))
    large = [gigapixel(path, options.work / f"large_{path.stem}.tif") for path in phantoms[:6]]
    rows = descriptors(large, options.archs[0], options.device, options.workers)
    write_results(options.out, rows)
    for arch in options.archs:
        rows += training(phantoms, arch, options.steps, options.device, options.workers)
        write_results(options.out, rows)
    print(rows[0]["hardware"])


if __name__ == "__main__":
    main()
