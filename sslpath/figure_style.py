"""How figures look: colours for every eye and against pink tissue, sizes, scale bars, saving.

Meaning never hangs on colour alone: each colour comes with a marker or a line style of its own.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke

from sslpath.errors import ConfigError
from sslpath.files import atomic_path, check_writable_file

# At least 20 apart in CIELAB, also to the colour-blind (deuteranopia, protanopia, tritanopia).
PALETTE = {
    "blue": "#0B5FA5",
    "orange": "#F08C1A",
    "teal": "#3CC4B0",
    "black": "#1A1A1A",
    "grey": "#757575",
    "brown": "#8A4B12",
}
# The part of it that also stands out from H&E (teal does not, to some eyes).
ON_TISSUE = ("blue", "orange", "black")
HEAT = "viridis"  # from dark to light to every eye, and nowhere grey like the slide below it
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*", "h", "p")
LOOKS = {  # method: colour, marker
    "spatial": ("blue", "o"),
    "imagenet": ("orange", "s"),
    "rgb": ("teal", "D"),
    "random": ("grey", "^"),
    "chance": ("black", "x"),
}
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": PALETTE["black"],
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure everywhere
    "font.size": 10,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": PALETTE["black"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
MADE_BY = "sslpath, with Matplotlib"  # what pictures say of themselves
P = ParamSpec("P")


class Picture(Figure):
    """A figure that notebooks show without any set-up."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def styled(draw: Callable[P, Picture]) -> Callable[P, Picture]:
    """Draw in the house style, and leave matplotlib's settings as they were."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with mpl.rc_context(rc=cast(Any, STYLE)):
            return draw(*args, **kwargs)

    return inner


def save(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Save a figure as PNG, PDF or SVG, by the ending of ``path``; never half of it.

    Raises:
        ConfigError: As of :func:`check_picture`.
    """
    path = Path(path)
    check_picture(path)
    key = "Software" if path.suffix.lower() == ".png" else "Creator"
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Names of slides in other scripts than the font has are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, dpi=dpi, metadata={key: MADE_BY})


def check_picture(path: str | Path) -> None:
    """Make sure that a picture can be saved here, and that it replaces only an older one.

    Raises:
        ConfigError: If no file can be written here, if one is there that sslpath did not save, or
            if the ending names no format of :func:`save`.
    """
    check_writable_file(path)
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"{path}: a picture is saved as .png, .pdf or .svg; name it so.")
    if path.exists() and path.stat().st_size and MADE_BY.encode() not in path.read_bytes():
        raise ConfigError(
            f"{path} is there and was not drawn by sslpath: it is not overwritten. Choose another "
            "place, or move it away if it is not needed."
        )


def as_text(name: str) -> str:
    """A name as a figure shows it: a dollar begins no formula, and there is a single line."""
    visible = "".join(sign if sign.isprintable() else " " for sign in name)
    return " ".join(visible.split()).replace("$", r"\$")


def look(method: str, i: int = 0) -> tuple[str, str]:
    """Colour and marker of a method; of one we do not know, the i-th of those left."""
    name, marker = LOOKS.get(method, ("", ""))
    if not name:
        name, marker = (("brown", "v"), ("black", "P"), ("grey", "*"))[i % 3]
    return PALETTE[name], marker


def halo(width: float = 2.5, colour: str = "white") -> list[AbstractPathEffect]:
    """An outline that keeps text and lines legible on tissue."""
    return [withStroke(linewidth=width, foreground=colour)]


def scale_bar(ax: Axes, width_um: float, height_um: float) -> None:
    """A bar of a round length at the bottom left of an image drawn in um, y downwards."""
    wanted = width_um / 5
    power = 10 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    x, y = 0.03 * width_um, height_um - 0.04 * max(width_um, height_um)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    ax.plot(
        [x, x + length],
        [y, y],
        color=PALETTE["black"],
        linewidth=3,
        solid_capstyle="butt",
        path_effects=halo(6),
    )
    ax.annotate(
        text, (x + length / 2, y), (0, 4), textcoords="offset points", ha="center", va="bottom",
        fontsize=9, fontweight="bold", path_effects=halo(3),
    )  # fmt: skip


def key(figure: Figure, ax: Axes, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend below an image, where it hides no tissue."""
    ax.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0, -0.01),
        ncols=columns,
        borderaxespad=0.3,
        handlelength=1.4,
        columnspacing=1.5,
    )
