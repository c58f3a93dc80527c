"""Figures on what came after 2019: works by year and theme, and pairs drawn as graphs.

``WORKS`` is a choice, not a survey; each entry names its source in the book's bibliography.
What this module does not do: judge the works.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, styled


class Work(NamedTuple):
    """A published work.

    Attributes:
        name: What people call it.
        year: Of the publication that the book cites.
        theme: One of ``THEMES``.
        source: Its key in the book's bibliography.
    """

    name: str
    year: int
    theme: str
    source: str


THEMES = {  # colour and marker
    "generic self-supervision": ("blue", "o"),
    "place as a teacher": ("orange", "*"),
    "pathology encoders": ("teal", "s"),
    "slides and words": ("brown", "D"),
    "image search": ("black", "^"),
    "doubts": ("grey", "X"),
}
_LISTED = {
    "generic self-supervision": (
        ("InfoNCE", 2018, "oord2018representation"),
        ("instance\ndiscrimination", 2018, "wu2018unsupervised"),
        ("MoCo", 2020, "he2020momentum"),
        ("SimCLR", 2020, "chen2020simple"),
        ("BYOL", 2020, "grill2020bootstrap"),
        ("SimSiam", 2021, "chen2021exploring"),
        ("DINO", 2021, "caron2021emerging"),
        ("DINOv2", 2023, "oquab2023dinov2"),
    ),
    "place as a teacher": (
        ("Tile2Vec", 2019, "jean2019tile2vec"),
        ("this book's\npaper", 2019, "gildenblat2019self"),
        ("DnR", 2020, "abbet2020divide"),
        ("SimTriplet", 2021, "liu2021simtriplet"),
        ("SSLP", 2021, "li2021sslp"),
        ("SGCL", 2023, "lin2023sgcl"),
        ("HiDisc", 2023, "jiang2023hierarchical"),
        ("Nearby-\nPatchCL", 2023, "le2023nearbypatchcl"),
        ("contextual\npairs", 2025, "robles2025leveraging"),
    ),
    "pathology encoders": (
        ("Ciga et al.", 2022, "ciga2022self"),
        ("CTransPath", 2022, "wang2022transformer"),
        ("HIPT", 2022, "chen2022scaling"),
        ("Phikon", 2023, "filiot2023scaling"),
        ("UNI", 2024, "chen2024towards"),
        ("Virchow", 2024, "vorontsov2024foundation"),
        ("H-optimus-0", 2024, "saillard2024hoptimus"),
    ),
    "slides and words": (
        ("CLAM", 2021, "lu2021data"),
        ("PLIP", 2023, "huang2023visual"),
        ("CONCH", 2024, "lu2024visual"),
        ("Prov-GigaPath", 2024, "xu2024whole"),
        ("TITAN", 2025, "ding2025multimodal"),
    ),
    "image search": (
        ("SMILY", 2019, "hegde2019similar"),
        ("Yottixel", 2020, "kalra2020yottixel"),
        ("SISH", 2022, "chen2022fast"),
        ("RetCCL", 2023, "wang2023retccl"),
        ("HSHR", 2023, "li2023high"),
    ),
    "doubts": (
        ("Howard et al.", 2021, "howard2021impact"),
        ("Dehkharghanian\net al.", 2023, "dehkharghanian2023biased"),
        ("Shang et al.", 2023, "shang2023histopathology"),
        ("Lahr et al.", 2024, "lahr2024analysis"),
        ("PathoROB", 2026, "komen2026towards"),
    ),
}
WORKS = tuple(
    Work(name, year, theme, source)
    for theme, listed in _LISTED.items()
    for name, year, source in listed
)


@styled
def timeline(works: Sequence[Work] = WORKS) -> Picture:
    """Works by year, a row a theme.

    Within a year they stand in the order given, which says nothing of months.

    Args:
        works: What to draw.

    Raises:
        ConfigError: If there are none, or a theme is unknown.

    Example:
        >>> [ax] = timeline([Work("MoCo", 2020, "generic self-supervision", "he2020momentum")]).axes
        >>> [text.get_text() for text in ax.texts]
        ['MoCo']
    """
    unknown = sorted({work.theme for work in works} - set(THEMES))
    if unknown or not works:
        raise ConfigError(f"Give works of the themes {list(THEMES)}, not of {unknown}.")
    themes = [theme for theme in THEMES if any(work.theme == theme for work in works)]
    figure = Picture(figsize=(9.4, 0.82 * len(themes) + 0.5), layout="constrained")
    ax = figure.subplots()
    for i, theme in enumerate(themes):
        colour, marker = THEMES[theme]
        ax.axhline(i, color=PALETTE[colour], linewidth=1, alpha=0.5, zorder=1)
        ours = [work for work in works if work.theme == theme]
        for j, work in enumerate(ours):
            same = [other for other in ours if other.year == work.year]
            x = work.year + (same.index(work) + 0.5) / len(same)
            size = 13 if marker == "*" else 8
            ax.plot(x, i, marker, color=PALETTE[colour], markersize=size, markeredgecolor="white")
            above = j % 2 == 0
            ax.annotate(
                work.name, (x, i), (0, 7 if above else -7), textcoords="offset points",
                ha="center", va="bottom" if above else "top", fontsize=8.5, linespacing=0.95,
            )  # fmt: skip
    first, last = min(work.year for work in works), max(work.year for work in works)
    ax.set_yticks(range(len(themes)), themes)
    ax.set_ylim(len(themes) - 0.4, -0.6)
    ax.set_xlim(first - 0.1, last + 1.1)
    ax.set_xticks(np.arange(first, last + 1) + 0.5, [str(year) for year in range(first, last + 1)])
    ax.set_xticks(np.arange(first, last + 2), minor=True)
    ax.grid(visible=False)
    ax.grid(visible=True, which="minor", axis="x")
    ax.tick_params(length=0, which="both")
    ax.spines[:].set_visible(False)
    return figure


@styled
def pair_graphs(
    xy_um: ArrayLike,
    tissue: ArrayLike,
    graphs: Sequence[tuple[str, NDArray[np.intp]]],
    side_um: float | None = None,
) -> Picture:
    """Positive pairs as edges between the tiles of one slide, a panel a way of pairing.

    Args:
        xy_um: Centres of the tiles in um, (n, 2).
        tissue: 1 tumour, 0 not, missing if unknown, (n,).
        graphs: A title and its edges, positions of tiles, (m, 2); a tile paired with itself is no
            edge.
        side_um: Show a square of this side only: where the last graph has most edges between
            tumour and other tissue.

    Example:
        >>> edges = np.array([[0, 1], [1, 1]])
        >>> figure = pair_graphs([[0, 0], [9, 0]], [1, 1], [("near", edges)])
        >>> len(figure.axes[0].collections[0].get_segments())
        1
    """
    xy = np.asarray(xy_um, np.float64) / 1000
    kinds = np.asarray([-1 if one is None or one != one else int(one) for one in _plain(tissue)])
    low, high = _window(xy, kinds, np.asarray(graphs[-1][1]), side_um)
    shape = (high - low)[1] / max((high - low)[0], 1e-9)
    figure = Picture(
        figsize=(4.3 * len(graphs), float(np.clip(4.0 * shape, 1.5, 8)) + 1.1), layout="constrained"
    )
    axes = figure.subplots(1, len(graphs), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (title, edges) in zip(axes, graphs, strict=True):
        _edges(ax, xy, kinds, np.asarray(edges))
        for kind, (colour, marker, size) in _KINDS.items():
            at = kinds == kind
            ax.scatter(xy[at, 0], xy[at, 1], s=size, c=PALETTE[colour], marker=marker, zorder=3)
        ax.set(title=title, xlabel="mm on the slide", aspect="equal")
        ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
        ax.grid(visible=False)
    axes[0].set_ylabel("mm")
    handles: list[Any] = [
        Line2D([], [], linestyle="none", marker=marker, color=PALETTE[colour], label=text)
        for (colour, marker, _), text in zip(
            _KINDS.values(), ("not tumour", "tumour", "unknown"), strict=True
        )
    ]
    handles.append(Line2D([], [], color=PALETTE["grey"], label="same kind, or unknown"))
    handles.append(Line2D([], [], color=PALETTE["black"], linestyle=":", label="two kinds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


_KINDS = {0: ("blue", "o", 16), 1: ("orange", "^", 26), -1: ("grey", "x", 14)}


def _window(
    xy: NDArray[np.float64],
    kinds: NDArray[np.int64],
    edges: NDArray[np.intp],
    side_um: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner of what is shown, mm."""
    if side_um is None:
        return xy.min(axis=0) - 0.05, xy.max(axis=0) + 0.05
    half = side_um / 2000
    a, b = kinds[edges[:, 0]], kinds[edges[:, 1]]
    border = xy[edges[(a != b) & (a >= 0) & (b >= 0)]].mean(axis=1)
    around = (np.abs(xy[:, None] - border[None]).max(axis=2) <= half).sum(axis=1)
    middle = xy[int(np.argmax(around))]
    # Nothing but glass beyond the outermost tiles.
    first, last = xy.min(axis=0) - 0.05 + half, xy.max(axis=0) + 0.05 - half
    middle = np.clip(middle, np.minimum(first, last), np.maximum(first, last))
    return middle - half, middle + half


def _plain(tissue: ArrayLike) -> list[Any]:
    """Labels as Python numbers, None where missing."""
    values = tissue.tolist() if hasattr(tissue, "tolist") else list(tissue)  # type: ignore[arg-type]
    return [None if str(one) in ("<NA>", "nan", "None") else one for one in values]


def _edges(
    ax: Axes, xy: NDArray[np.float64], kinds: NDArray[np.int64], edges: NDArray[np.intp]
) -> None:
    """Solid where both tiles are of one known kind, dotted where of two."""
    edges = edges.reshape(-1, 2)
    edges = edges[edges[:, 0] != edges[:, 1]]
    a, b = kinds[edges[:, 0]], kinds[edges[:, 1]]
    same = (a == b) | (a < 0) | (b < 0)
    ax.add_collection(LineCollection(list(xy[edges[same]]), colors=PALETTE["grey"], linewidths=1.1))
    ax.add_collection(
        LineCollection(
            list(xy[edges[~same]]), colors=PALETTE["black"], linewidths=1.8, linestyles=":"
        )
    )
