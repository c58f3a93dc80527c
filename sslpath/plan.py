"""What a run over many slides will take, from rates that are measured here: tiles, hours, bytes.

Tiles are counted on a few slides and multiplied; rates are those of this machine, one thing after
the other. What this module does not do: know about downloads, or about reading in other processes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sslpath.backbones import pick_device
from sslpath.errors import DataError, SlideError
from sslpath.imagenet import random_encoder
from sslpath.model import ModelConfig, SiameseNetwork
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import open_source
from sslpath.tiling import tile_slide
from sslpath.training import autocast_of

SAMPLE_SLIDES, SAMPLE_TILES = 3, 32
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """Counts and rates.

    Attributes:
        slides: How many slides.
        tiles: How many tiles they will give.
        seen: Tiles that training will see, each as often as it comes; 0 if a head learns from
            features.
        features: Numbers of ImageNet features of a tile.
        descriptor: Numbers of a descriptor.
        read: Tiles read a second.
        encode: Tiles a second through the network, without learning.
        learn: Tiles a second through the network, with learning; infinite for a head.
        device: What they were measured on.
    """

    slides: int
    tiles: int
    seen: int
    features: int
    descriptor: int
    read: float
    encode: float
    learn: float
    device: str

    @property
    def hours(self) -> dict[str, float]:
        """Hours of each step, in the order in which they come."""
        once = self.tiles * (1 / self.read + 1 / self.encode)
        return {
            "ImageNet features": once / 3600,
            "training": self.seen * (1 / self.read + 1 / self.learn) / 3600,
            "descriptors": (once if self.seen else 0) / 3600,
        }

    def __str__(self) -> str:
        steps = "".join(f"\n  {step:20}{hours:10,.2f} h" for step, hours in self.hours.items())
        learned = f", {self.learn:,.1f} learned from" if self.seen else ", and a head in no time"
        size = self.tiles * (self.features + self.descriptor) * FLOAT / 1e9
        return (
            f"{self.slides} slides, about {self.tiles:,} tiles (counted on up to {SAMPLE_SLIDES} "
            f"slides). Measured on {self.device}: {self.read:,.0f} tiles a second read, "
            f"{self.encode:,.1f} encoded{learned}.{steps}"
            f"\n  {'disk':20}{size:10,.2f} GB of features and descriptors"
        )


def make_plan(
    slides: Sequence[Slide],
    training: TrainConfig,
    model: ModelConfig,
    *,
    mpp: float,
    tile_px: int,
    max_tiles: int | None = None,
    device: str = "auto",
) -> Plan:
    """Count tiles on a few slides, evenly drawn from all, and measure rates on them.

    Args:
        slides: The slides of the run.
        training: How training will be done.
        model: What will be trained.
        mpp: um per pixel of the tiles.
        tile_px: Side of a tile.
        max_tiles: Most tiles of a slide.
        device: ``auto``, ``cpu``, ``cuda`` ...

    Raises:
        DataError: If none of the slides that were looked at gives a tile.
    """
    step = max(1, len(slides) // SAMPLE_SLIDES)
    tables, last = [], "no slide"
    for slide in slides[::step][:SAMPLE_SLIDES]:
        try:
            tables.append(tile_slide(slide, mpp=mpp, tile_px=tile_px, max_tiles=max_tiles))
        except SlideError as error:  # a broken slide is for the run to report
            last = str(error)
    tables = [table for table in tables if len(table)]
    if not tables:
        raise DataError(f"No plan can be made, as no slide that was looked at has tiles: {last}.")
    rows = tables[0].head(SAMPLE_TILES)
    rows.attrs = tables[0].attrs
    source, where = open_source(rows), pick_device(device)
    pixels = source.read(rows)
    encoder = random_encoder(model.arch, 0, model.input_px, device=where)
    frozen = model.trunk == "frozen"
    return Plan(
        slides=len(slides),
        tiles=round(float(np.mean([len(table) for table in tables])) * len(slides)),
        seen=0 if frozen else training.steps * training.slides_per_batch * training.tiles_per_slide,
        features=encoder.dim,
        descriptor=model.descriptor_dim,
        read=_per_second(lambda: source.read(rows), len(rows)),
        encode=_per_second(lambda: encoder.encode(pixels), len(rows)),
        learn=float("inf") if frozen else _learning(model, pixels.shape[1], where),
        device=str(where),
    )


def _learning(model: ModelConfig, tile_px: int, device: torch.device, batch: int = 4) -> float:
    """Tiles a second, forwards and backwards."""
    network = SiameseNetwork(model).to(device).train()
    images = torch.rand(batch, 3, tile_px, tile_px, device=device)

    def once() -> None:
        with autocast_of(network):
            z = network(images)
        z.square().sum().backward()
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _per_second(once, batch)


def _per_second(work: Callable[[], object], tiles: int) -> float:
    """Tiles a second, in the faster of two calls after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return tiles / min(times[1:])
