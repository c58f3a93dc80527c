"""Phantom slides: synthetic H&E lymph nodes with metastases, made from a seed, with ground truth.

They need no download, open in OpenSlide like any slide, and let everything else be tried, tested
and taught. One slide takes some seconds. The parts: :mod:`~sslpath.datasets.phantom_layout` lays
out the tissues, :mod:`~sslpath.datasets.phantom_nuclei` draws the nuclei,
:mod:`~sslpath.datasets.phantom_paint` the stain, :mod:`~sslpath.datasets.phantom_stain` the colour.

But: a phantom is no patient. It knows a dozen tissues and one way of drawing each; results on it
say that code works and how methods compare on it, not how they do in a clinic.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import shapely
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from tqdm import tqdm

from sslpath.annotations import write_geojson
from sslpath.datasets import phantom_stain as stain
from sslpath.datasets.phantom_layout import GRID_PX, TISSUES, Layout, make_layout
from sslpath.datasets.phantom_paint import Painter
from sslpath.datasets.phantom_texture import cut
from sslpath.errors import ConfigError, DataError
from sslpath.files import atomic_path
from sslpath.progress import hide_bar

__all__ = ["TISSUES", "PhantomSpec", "make_phantom", "make_phantoms", "phantom_specs"]

MADE_HERE = "sslpath phantom "  # how what a slide says of itself begins
VERSION = 4  # raise it when the same spec gives other pixels: slides of older versions are re-made
TILE_PX = 256


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that decides a slide; the same spec gives the same bytes on the same machine.

    Attributes:
        seed: Of everything that is not said below.
        width: Level-0 px, a multiple of 8.
        height: Level-0 px, a multiple of 8.
        mpp: um per px.
        tumour: Share of the node that is outlined as tumour, 0 to 1.
        grades: One or two of 1, 2, 3.
        laboratory: Who stained it, 0 to 5.
        scanner: What scanned it, 0 to 3.
        blur: Whether focus is lost in places.
        fold: Whether the section is folded.
        pen: Whether someone drew on the glass.
    """

    seed: int
    width: int = 6144
    height: int = 4096
    mpp: float = 0.5
    tumour: float = 0.3
    grades: tuple[int, ...] = (2,)
    laboratory: int = 0
    scanner: int = 0
    blur: bool = False
    fold: bool = False
    pen: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 256 or self.width % GRID_PX or self.height % GRID_PX:
            raise ConfigError(
                f"A phantom of {self.width} x {self.height} px cannot be made; "
                f"give sides of at least 256 px that are multiples of {GRID_PX}."
            )
        if not 0 <= self.tumour <= 0.95 or not set(self.grades) <= {1, 2, 3} or not self.grades:
            raise ConfigError(
                f"tumour={self.tumour}, grades={self.grades} cannot be made; "
                "give a share of 0 to 0.95 and one or two grades of 1, 2, 3."
            )
        if not 0.2 <= self.mpp <= 1:
            raise ConfigError(
                f"mpp={self.mpp} is outside 0.2 to 1 um, what phantoms are drawn for."
            )

    def fingerprint(self) -> str:
        """What a finished slide records, so that another spec or version is noticed."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return MADE_HERE + hashlib.sha256(text.encode()).hexdigest()[:16]


def phantom_specs(n: int, seed: int = 0, **changes: Any) -> list[PhantomSpec]:
    """The specs of a set of ``n`` slides, dealt so that every part of the set has some of all.

    Per ten slides: two without tumour, two with little, the others with 12 to 66 % of the node.

    Args:
        n: Number of slides.
        seed: Another seed gives another set.
        **changes: Fields of :class:`PhantomSpec` that all slides share, such as ``width``.

    Example:
        >>> [round(spec.tumour, 2) > 0 for spec in phantom_specs(4)].count(True) >= 2
        True
    """
    rng = np.random.default_rng([seed, 7])
    burdens = [0.0, 0.03, 0.25, 0.45, 0.35, 0.0, 0.08, 0.3, 0.55, 0.15]
    grades = [(1,), (2,), (3,), (1, 2), (2, 3)]
    specs = []
    for i in range(n):
        if i % 10 == 0:
            burden_deck = rng.permutation(burdens)
            scanner_deck = rng.permutation(np.arange(12) % stain.SCANNERS)
        if i % 5 == 0:
            grade_deck = rng.permutation(5)
        if i % stain.LABORATORIES == 0:
            laboratory_deck = rng.permutation(stain.LABORATORIES)
        burden = float(burden_deck[i % 10])
        fields: dict[str, Any] = {
            "seed": int(np.random.SeedSequence([seed, i]).generate_state(1)[0]),
            "tumour": round(burden * float(rng.uniform(0.8, 1.2)), 3),
            "grades": grades[grade_deck[i % 5]],
            "laboratory": int(laboratory_deck[i % stain.LABORATORIES]),
            "scanner": int(scanner_deck[i % 10]),
            "blur": bool(rng.random() < 0.3),
            "fold": bool(rng.random() < 0.25),
            "pen": bool(rng.random() < 0.2),
        }
        specs.append(PhantomSpec(**(fields | changes)))
    return specs


def regions(layout: Layout) -> dict[str, shapely.MultiPolygon]:
    """The outlines of each tissue in level-0 px, holes kept; background is left out."""
    found = {}
    for index, name in enumerate(TISSUES[1:], start=1):
        mask = layout.labels == index
        if not mask.any():
            continue
        padded = np.pad(mask.astype(np.float32), 1)
        at = (np.arange(-1, max(mask.shape) + 1) + 0.5) * GRID_PX
        contours = contour_generator(
            at[: padded.shape[1]], at[: padded.shape[0]], padded, fill_type=FillType.OuterOffset
        )
        polygons = []
        for points, offsets in zip(*contours.filled(0.5, 2.0), strict=True):
            if points is None or offsets is None:
                continue
            rings = [points[a:b] for a, b in pairwise(offsets)]
            polygons.append(shapely.Polygon(rings[0], rings[1:]))
        # Half a grid cell of slack spares three vertices of four.
        whole = shapely.make_valid(shapely.MultiPolygon(polygons).simplify(GRID_PX / 2))
        parts = [part for part in shapely.get_parts(whole) if part.geom_type == "Polygon"]
        found[name] = shapely.MultiPolygon(parts)
    return found


def render(spec: PhantomSpec) -> tuple[NDArray[np.uint8], Layout, stain.Colour]:
    """Draw a slide: (RGB ``(height, width, 3)``, its layout, its colour), nothing written."""
    seeds = np.random.SeedSequence(spec.seed).spawn(4)
    rng = np.random.default_rng(seeds[0])
    shape = (spec.height // GRID_PX, spec.width // GRID_PX)
    layout = make_layout(rng, shape, GRID_PX * spec.mpp, spec.tumour, spec.grades)
    painter = Painter(seeds[1], layout, spec.mpp)
    rng = np.random.default_rng(seeds[2])
    look = stain.colour(spec.laboratory, spec.scanner, rng)
    thick = stain.thickness(rng, shape, spec.fold)
    ink, density = stain.pen(rng, shape)
    rgb = np.empty((spec.height, spec.width, 3), np.uint8)
    for row, column, haem, eosin in painter.blocks():
        size = haem.shape
        factor = cut(thick, row, column, size, GRID_PX)
        haem = np.clip(haem * factor, 0, 255).astype(np.uint8)
        eosin = np.clip(eosin * factor, 0, 255).astype(np.uint8)
        block = look.table[haem, eosin]
        if spec.pen:
            cover = cut(ink, row, column, size, GRID_PX)[..., None]
            if cover.max() > 0:
                block = (block * np.exp(-np.log(10) * cover * density)).astype(np.uint8)
        rgb[row : row + size[0], column : column + size[1]] = block
    del painter
    rgb = stain.optics(rgb, look, spec.mpp, np.random.default_rng(seeds[3]), spec.blur)
    return rgb, layout, look


def make_phantom(folder: str | Path, slide_id: str, seed: int, **changes: Any) -> Path:
    """Write ``<slide_id>.tif`` and its ground truth ``<slide_id>.geojson``.

    Nothing is done when both are there already, complete and of the same spec.

    Args:
        folder: Made if missing.
        slide_id: The files' stem.
        seed: Of the slide.
        **changes: Other fields of :class:`PhantomSpec`.

    Returns:
        The slide's path.
    """
    return _make(Path(folder), slide_id, PhantomSpec(seed=seed, **changes))


def _make(folder: Path, slide_id: str, spec: PhantomSpec) -> Path:
    path, outlines = folder / f"{slide_id}.tif", folder / f"{slide_id}.geojson"
    if _is_complete(path, spec) and outlines.exists():
        return path
    if path.exists() and not _is_ours(path):
        raise DataError(
            f"{path} is there, and is no phantom slide of sslpath. Choose another folder for them."
        )
    rgb, layout, look = render(spec)
    # The slide comes last: whoever finds it, finds the outlines of the same spec.
    path.unlink(missing_ok=True)
    write_geojson(regions(layout), outlines)
    image = pyvips.Image.new_from_memory(rgb.data, spec.width, spec.height, 3, "uchar")
    image = image.copy(interpretation="srgb", xres=1000 / spec.mpp, yres=1000 / spec.mpp)
    image.set_type(pyvips.GValue.gstr_type, "image-description", spec.fingerprint())
    with atomic_path(path) as temporary:
        image.tiffsave(
            str(temporary),
            tile=True,
            tile_width=TILE_PX,
            tile_height=TILE_PX,
            pyramid=True,
            compression="jpeg",
            Q=look.quality,
            resunit="cm",
        )
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is a phantom slide, also one that was cut short."""
    try:
        image = pyvips.Image.new_from_file(str(path))
    except pyvips.Error:
        with path.open("rb") as file:
            return file.read(2) in (b"II", b"MM")  # of TIFF
    said = image.get("image-description") if image.get_typeof("image-description") else ""
    return str(said).startswith(MADE_HERE)


def _is_complete(path: Path, spec: PhantomSpec) -> bool:
    try:
        image = pyvips.Image.new_from_file(str(path))
        if image.get("image-description") != spec.fingerprint():
            return False
        # The smallest level ends the file: it is missing when the file was cut short.
        last = pyvips.Image.new_from_file(str(path), page=image.get("n-pages") - 1)
        return bool(max(last.width, last.height) <= TILE_PX)
    except pyvips.Error:
        return False


def make_phantoms(
    folder: str | Path,
    n: int = 20,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
    **changes: Any,
) -> list[Path]:
    """Write a set of slides, ``phantom_000.tif`` and so on, skipping those already complete.

    Args:
        folder: Made if missing.
        n: Number of slides.
        seed: Of the set.
        workers: Processes; each needs less than 2 GB.
        progress: Whether to show a bar.
        **changes: Fields of :class:`PhantomSpec` that all slides share, such as ``width``.

    Returns:
        The slides' paths, in order.
    """
    specs = phantom_specs(n, seed, **changes)
    names = [f"phantom_{i:03d}" for i in range(n)]
    make = partial(_make, Path(folder))
    if workers <= 1:
        return [
            make(*job)
            for job in tqdm(list(zip(names, specs, strict=True)), disable=hide_bar(progress))
        ]
    # Not forked: libvips has threads, and threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done: Iterable[Path] = pool.map(make, names, specs)
        return list(tqdm(done, total=n, unit="slide", disable=hide_bar(progress)))
