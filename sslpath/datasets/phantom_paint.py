"""Painting a phantom slide: how much haematoxylin and eosin each pixel holds.

Works through the slide in square blocks: the layout's coarse fields are upsampled, fibres and
grain come from wrapped noise looked up along warped coordinates, nuclei and cells from planes
stamped beforehand. Stain is in units of 1/80 optical density, 0 to 255.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sslpath.datasets import phantom_cells
from sslpath.datasets import phantom_layout as lay
from sslpath.datasets import phantom_nuclei as nuc
from sslpath.datasets.phantom_layout import Field
from sslpath.datasets.phantom_texture import Adipocytes, cut, step, wrapped_noise

BLOCK = 512
WRAP = 2048  # side of the wrapped noise, px; less on small slides

# kind: eosin, haematoxylin, strength of fibres, threshold of gaps (sd), grain
MATTER: dict[int, tuple[float, float, float, float, float]] = {
    lay.BACKGROUND: (0, 0, 0, 9.0, 0),
    lay.CAPSULE: (54, 5, 0.55, 2.0, 0.05),
    lay.STROMA: (45, 4, 0.75, 1.35, 0.08),
    lay.DESMOPLASIA: (42, 8, 0.55, 1.85, 0.08),
    lay.CORTEX: (22, 13, 0.12, 1.7, 0.28),
    lay.MANTLE: (20, 16, 0.10, 2.4, 0.25),
    lay.PARACORTEX: (26, 11, 0.15, 1.5, 0.30),
    lay.GERMINAL: (24, 13, 0.05, 2.0, 0.28),
    lay.SINUS: (22, 5, 0.25, -0.1, 0.30),
    lay.FAT: (46, 4, 0.3, 2.0, 0.1),
    lay.VESSEL: (4, 0, 0, 9.0, 0.2),
    lay.WALL: (50, 7, 0.5, 1.9, 0.08),
    lay.NECROSIS: (52, 10, 0.1, 2.0, 0.45),
    lay.TUMOUR1: (42, 8, 0.55, 1.85, 0.08),
    lay.TUMOUR2: (42, 8, 0.55, 1.85, 0.08),
    lay.TUMOUR3: (42, 8, 0.55, 1.85, 0.08),
}


@dataclass(frozen=True)
class Phenotype:
    """How one patient's tumour looks beyond its nuclei, and how dense the collagen is.

    Attributes:
        eosin: Of the cytoplasm.
        haematoxylin: Of the cytoplasm.
        membrane: How much more eosin cell borders hold.
        clear: Share of the cytoplasm that is washed out, as in clear cells.
        cleft: How far nests shrink away from their stroma, 0 to 1.
        collagen: Factor on the eosin of fibres.
    """

    eosin: float
    haematoxylin: float
    membrane: float
    clear: float
    cleft: float
    collagen: float


def phenotype(rng: np.random.Generator) -> Phenotype:
    """Draw a patient."""
    return Phenotype(
        eosin=float(rng.uniform(20, 50)),
        haematoxylin=float(rng.uniform(5, 28)),
        membrane=float(rng.uniform(0, 0.3)),
        clear=float(rng.choice([0.0, rng.uniform(0.2, 0.8)], p=[0.75, 0.25])),
        cleft=float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.5, 0.5])),
        collagen=float(np.exp(rng.normal(0, 0.12))),
    )


class Painter:
    """Paints blocks of one slide; everything slow is done once, on construction."""

    def __init__(self, spec_seed: np.random.SeedSequence, layout: lay.Layout, mpp: float):
        seeds = spec_seed.spawn(4)
        rng = np.random.default_rng(seeds[0])
        self.layout, self.mpp = layout, mpp
        self.look = phenotype(rng)
        h, w = layout.kind.shape
        self.shape = (h * lay.GRID_PX, w * lay.GRID_PX)
        cell_um = lay.GRID_PX * mpp

        def noise(scale_um: float) -> Field:
            return lay.fractal(rng, (h, w), max(0.8, scale_um / cell_um), 2)

        # Coordinates across (v) and along (u) the fibres, um; two woven families and the capsule's.
        y, x = (np.indices((h, w), dtype=np.float32) + 0.5) * cell_um
        turn = rng.uniform(0, np.pi)
        self.fibres = []
        for angle in (turn, turn + np.pi / 2 + rng.normal(0, 0.3)):
            u = x * np.cos(angle) + y * np.sin(angle) + 25 * noise(90)
            v = y * np.cos(angle) - x * np.sin(angle) + 45 * noise(120) + 4 * noise(22)
            self.fibres.append((u.astype(np.float32), v.astype(np.float32)))
        self.weave = 2.5 * noise(55)
        # Layers of the capsule and of vessels' walls.
        wall = layout.kind == lay.WALL
        layers = np.where(wall, 10 * layout.hollow, gaussian_filter(layout.depth, 2.5))
        self.fibres.append((x + 0.7 * y + 20 * noise(60), layers + 5 * noise(40)))
        layered = np.where(wall, 1, np.clip((90 - np.abs(layout.depth)) / 40, 0, 1))
        self.layered = gaussian_filter(layered.astype(np.float32), 0.7)
        self.patch = noise(160)
        matter = np.array([MATTER[k] for k in range(lay.KINDS)], np.float32)[layout.kind]
        self.matter = [gaussian_filter(matter[..., i], 0.8) for i in range(matter.shape[-1])]
        self.adipocytes = Adipocytes(np.random.default_rng(seeds[1]), layout, mpp)
        self.bend = (5 * noise(28), 5 * noise(28))
        self.fat = gaussian_filter((layout.kind == lay.FAT).astype(np.float32), 0.8)
        s = 0.5 / mpp
        side = min(WRAP, 1 << int(max(self.shape) - 1).bit_length())
        self.wrap = side - 1  # a mask: the side is a power of two
        self.fine = wrapped_noise(rng, side, (1.0, 1.3 * s, 16 * s), (0.9, 3.5 * s, 40 * s))
        self.iso = wrapped_noise(rng, side, (1.0, 2.0 * s, 2.0 * s), (1.1, 6 * s, 6 * s))
        self.grain = wrapped_noise(rng, side, (1.0, 0.8 * s, 0.8 * s), (0.8, 1.8 * s, 1.8 * s))
        self._stamp(seeds[2])

    def _stamp(self, seed: np.random.SeedSequence) -> None:
        """Draw nuclei, cell bodies and red cells into planes of the whole slide."""
        rng = np.random.default_rng(seed)
        cells = phantom_cells.vary(rng)
        sheets = [phantom_cells.sprites(cell, self.mpp, rng) for cell in cells.values()]
        axis = nuc.fibre_axis(self.layout, [self.fibres[0][1], self.fibres[1][1]], self.weave)
        infiltrate = float(rng.choice([0.03, 0.08, 0.2]))
        nuclei = nuc.place(rng, self.layout, cells, self.mpp, axis, infiltrate)
        self.count = len(nuclei.xy)
        self.nuclei, self.nearest, self.second, self.red = (
            np.zeros(self.shape, np.uint8) for _ in range(4)
        )
        nuc.stamp(self.nuclei, nuclei, sheets)
        nuc.stamp_bodies(self.nearest, self.second, nuclei, cells, self.mpp)
        nuc.stamp_red_cells(self.red, rng, self.layout, self.mpp)

    def blocks(self) -> Iterator[tuple[int, int, NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield (row, column, haematoxylin, eosin) of each block, left to right, top down."""
        for row in range(0, self.shape[0], BLOCK):
            for column in range(0, self.shape[1], BLOCK):
                yield (row, column, *self.paint(row, column))

    def _lookup(self, texture: Field, u: Field, v: Field) -> Field:
        iu = (u / self.mpp).astype(np.int32) & self.wrap
        iv = (v / self.mpp).astype(np.int32) & self.wrap
        return np.asarray(texture[iv, iu])

    def paint(self, row: int, column: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Haematoxylin and eosin of the block whose top-left pixel is (row, column)."""
        size = (min(BLOCK, self.shape[0] - row), min(BLOCK, self.shape[1] - column))
        area = np.s_[row : row + size[0], column : column + size[1]]
        cell, look, layout = lay.GRID_PX, self.look, self.layout

        def up(field: Field, smooth: bool = False, cell: int = cell) -> Field:
            return cut(field, row, column, size, cell, smooth)

        tissue = up(layout.tissue, smooth=True)
        if tissue.max() < -20:
            return np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        y = np.arange(row, row + size[0])[:, None]
        x = np.arange(column, column + size[1])[None]
        iso, grain = (texture[y & self.wrap, x & self.wrap] for texture in (self.iso, self.grain))
        eosin, haem, strength, gap, rough = (up(field) for field in self.matter)

        fibre = iso
        if strength.max() > 0.2:
            (u0, v0), (u1, v1), (u2, v2) = self.fibres
            weave = step(up(self.weave), 0.8)
            fibre = self._lookup(self.fine, up(u0, True), up(v0, True))
            fibre = fibre + weave * (self._lookup(self.fine, up(u1, True), up(v1, True)) - fibre)
            near = up(self.layered)
            if near.max() > 0:
                fibre = fibre + near * (self._lookup(self.fine, up(u2, True), up(v2, True)) - fibre)
        thread = np.clip(strength * 2, 0, 1)
        web = iso + thread * (fibre - iso)
        slow = 1 + 0.13 * up(self.patch)
        collagen = 1 + (look.collagen - 1) * thread
        eosin = eosin * slow * collagen * (1 + 0.42 * strength * fibre + rough * grain)
        open_ = step(-web - gap + 0.35 * (slow - 1) * 7, 0.7)
        eosin *= 1 - 0.93 * open_
        haem = haem * (1 + rough * iso) * (1 - 0.93 * open_)

        fat = up(self.fat)
        if fat.max() > 0.02:
            wall = self.adipocytes.wall(
                (x + 0.5) * self.mpp + up(self.bend[0], True),
                (y + 0.5) * self.mpp + up(self.bend[1], True),
            )
            wall = wall - 0.9 - 0.15 * iso
            empty = step(wall, 0.9) * step(fat - 0.5 + 0.08 * iso, 0.3)
            eosin *= 1 - empty
            haem *= 1 - empty

        epithelium = up(layout.epithelium, smooth=True) + 0.08 * iso
        nest = step(epithelium, 0.25)
        if nest.max() > 0:
            border = self.nearest[area].astype(np.float32) - self.second[area]
            edge = np.exp(-((border / 15.0) ** 2)) * (self.second[area] > 30)
            far = np.clip((215 - self.nearest[area].astype(np.float32)) / 100, 0, 1)
            body = look.eosin * slow * (1 + 0.15 * grain + 0.13 * iso + look.membrane * edge)
            body *= 1 - look.clear * (1 - edge) * far
            eosin += nest * (body - eosin)
            haem += nest * (look.haematoxylin * (1 + 0.3 * grain) * (1 - look.clear * far) - haem)
            if look.cleft:
                shrunk = step(epithelium + 0.35, 0.2) * (1 - nest) * look.cleft
                shrunk *= step(up(self.patch), 1.0)
                eosin *= 1 - 0.9 * shrunk
                haem *= 1 - 0.9 * shrunk
        hollow = step(up(layout.hollow, smooth=True) + 0.05 * iso, 0.12)
        eosin *= 1 - 0.95 * hollow
        haem *= 1 - 0.95 * hollow

        nuclei = self.nuclei[area].astype(np.float32)
        cover = np.clip(nuclei / 35, 0, 1)
        red = self.red[area].astype(np.float32)
        eosin = np.maximum(eosin, red * (1 + 0.05 * grain)) * (1 - 0.45 * cover)
        haem = haem * (1 - cover) * (1 - np.clip(red / 40, 0, 1)) + nuclei * (1 + 0.06 * grain)
        on = step(tissue + 2.5 * iso, 5.0)
        eosin *= on
        haem *= on
        return (
            np.clip(haem, 0, 255).astype(np.uint8),
            np.clip(eosin, 0, 255).astype(np.uint8),
        )
