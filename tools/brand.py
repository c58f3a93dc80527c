"""The book's logo, favicon and cover, drawn from code.

    python tools/brand.py        # writes book/_static/{logo,logo-dark,favicon}.svg and cover.jpg

The mark shows the method: two near tiles held together by a spring, and a far tile kept away.
"""

from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from openslide import OpenSlide

from sslpath.book import phantom_tiles
from sslpath.demo import FAR_TILES, NEAR_TILES
from sslpath.figure_style import PALETTE, STYLE, Picture, halo

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
PINK = "#E79AC0"  # eosin; filled shapes only, never text


def spring(start: ArrayLike, end: ArrayLike, coils: int, width: float) -> NDArray[np.float64]:
    """Points of a spring between two points, ``(n, 2)``."""
    first, last = np.asarray(start, float), np.asarray(end, float)
    t = np.linspace(0, 1, 24 * coils)
    inside = np.clip((t - 0.12) / 0.76, 0, 1)  # straight ends
    x, y = (last - first) / np.linalg.norm(last - first)
    along = np.outer(1 - t, first) + np.outer(t, last)
    return along + np.outer(width * np.sin(2 * np.pi * coils * inside), (-y, x))


def mark(line: str) -> str:
    """The mark as the inside of an SVG of 64 x 64; ``line`` is the colour of its spring."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spring((21, 42), (43, 42), 3, 5.5))

    def tile(x: int, y: int, fill: str, edge: str, style: str = "") -> str:
        return (
            f'<rect x="{x}" y="{y}" width="18" height="18" rx="2.5" fill="{fill}" '
            f'stroke="{edge}" stroke-width="3"{style}/>'
        )

    return "\n  ".join(
        [
            f'<polyline points="{points}" fill="none" stroke="{line}" stroke-width="3"/>',
            tile(4, 33, PINK, PALETTE["blue"]),
            tile(42, 33, PINK, PALETTE["blue"]),
            tile(23, 4, "#B9A4DC", PALETTE["orange"], ' stroke-dasharray="4 2.4"'),
        ]
    )


def svg(inside: str, width: int = 64, height: int = 58) -> str:
    """An SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="sslpath">\n  {inside}\n</svg>\n'
    )


def logo(ink: str) -> str:
    """The mark with the name beside it."""
    name = (
        f'<text x="74" y="42" font-family="DejaVu Sans, Verdana, sans-serif" font-size="34" '
        f'font-weight="bold" fill="{ink}">sslpath</text>'
    )
    return svg(mark(ink) + "\n  " + name, 224)


def cover_places(
    anchor: NDArray[np.float64], tiles: NDArray[np.float64], width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of the cover's near and far tiles, at the distances that the book trains with.

    Args:
        anchor: The anchor's centre, ``(2,)``.
        tiles: Centres of tiles in the picture, ``(n, 2)``.
        width: Of a tile, in the same unit.

    Returns:
        Three tiles exactly at the near distance: above, below and left of the anchor; and at most
        five of ``tiles`` beyond the far distance, from top to bottom.
    """
    near = anchor + NEAR_TILES * width * np.array([(0, -1), (0, 1), (-1, 0)])
    far = tiles[np.hypot(*(tiles - anchor).T) > FAR_TILES * width]
    far = far[np.argsort(far[:, 1])]
    return near, far[np.linspace(0, len(far) - 1, min(5, len(far))).round().astype(int)]


def cover() -> Picture:
    """A strip of a phantom slide: an anchor in tumour, its near tiles on springs, and far tiles.

    The slide and the anchor are chosen to show the idea where it holds: the near tiles show tumour
    like the anchor, the far tiles other tissue.
    """
    tiles = phantom_tiles()
    name = "phantom_017"
    own = tiles[tiles["slide_id"] == name]
    width, height = 4320, 1800  # px at level 0
    x0, y0 = 300, 700
    with OpenSlide(tiles.attrs["source"]["slides"][name]["path"]) as slide:
        pixels = np.asarray(slide.read_region((x0, y0), 0, (width, height)).convert("RGB"))
    edge = 40
    inside = own[own["x"].between(x0 + edge, x0 + width - 112 - edge)]
    inside = inside[inside["y"].between(y0 + edge, y0 + height - 112 - edge)]
    centre = np.stack([inside["x"] + 56 - x0, inside["y"] + 56 - y0], 1)
    anchor = np.array([896 + 56 - x0, 1008 + 56 - y0])  # a place of the grid
    near, far = cover_places(anchor, centre, 112)
    with mpl.rc_context(rc=cast(Any, STYLE)):
        figure = Picture(figsize=(12, 5))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.imshow(pixels)
        ax.axis("off")
        for place in far:
            step = 70 * (place - anchor) / np.linalg.norm(place - anchor)
            ax.plot(*np.stack([anchor + step, place - step]).T, ":", color=PALETTE["black"], lw=1.4,
                    path_effects=halo(3))  # fmt: skip
        for place in near:
            step = (place - anchor) / 4  # from edge to edge
            ax.plot(*spring(anchor + step, place - step, 3, 16).T, color=PALETTE["black"],
                    lw=1.6, path_effects=halo(3.5))  # fmt: skip
        for places, colour, style in (
            (near, "blue", "-"), (far, "orange", "--"), (anchor[None], "black", "-"),
        ):  # fmt: skip
            for x, y in places:
                ax.add_patch(Rectangle((x - 56, y - 56), 112, 112, fill=False, lw=3, ls=style,
                                       ec=PALETTE[colour], path_effects=halo(5.5)))  # fmt: skip
    return figure


def main() -> None:
    """Write all of them."""
    STATIC.mkdir(exist_ok=True)
    (STATIC / "logo.svg").write_text(logo(PALETTE["black"]), encoding="utf-8")
    (STATIC / "logo-dark.svg").write_text(logo("#F2F2F2"), encoding="utf-8")
    (STATIC / "favicon.svg").write_text(svg(mark("#757575"), 64, 58), encoding="utf-8")
    # Not by `save`: it writes PNG, PDF and SVG only.
    cover().savefig(STATIC / "cover.jpg", dpi=100)


if __name__ == "__main__":
    main()
