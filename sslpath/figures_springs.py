"""Figures of the loss: its springs, and descriptors that move on a circle.

What this module does not do: compute anything but the cost and force of single pairs, which the
drawing of springs needs; the loss itself is in :mod:`sslpath.model`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError
from sslpath.figure_style import MARKERS, PALETTE, Picture, halo, styled

LONGEST = 2.0  # unit descriptors are at most so far apart
SIDE = 0.11  # of a tile in the drawing, in units of distance
GROUPS = ("blue", "orange", "teal", "black", "brown", "grey")


def coil(x0: float, x1: float, y: float, turns: int = 9, height: float = 0.13) -> NDArray[Any]:
    """Points of a spring from ``(x0, y)`` to ``(x1, y)``, with straight ends, ``(n, 2)``.

    Example:
        >>> points = coil(0, 1, 0.5)
        >>> points[0].tolist(), points[-1].round(6).tolist()
        ([0.0, 0.5], [1.0, 0.5])
    """
    t = np.linspace(0, 1, 40 * turns + 1)
    wound = np.clip((t - 0.1) / 0.8, 0, 1)
    return np.stack([x0 + (x1 - x0) * t, y + height * np.sin(2 * np.pi * turns * wound)], axis=1)


@styled
def springs(margin: float = 1.2) -> Picture:
    """The contrastive loss as springs, beside the curves of what they cost.

    Three pairs share a ruler, the descriptor distance $d$: a near pair, whose spring pulls; a far
    pair within the margin, whose spring pushes; a far pair beyond it, whose spring is slack. Arrows
    are as long as the force, the slope of the cost. The same three pairs are marked on the curves.

    Args:
        margin: $m$ of the loss, between 0 and 2.

    Raises:
        ConfigError: If the margin does not lie between 0 and 2.

    Example:
        >>> len(springs(1.2).axes)
        2
    """
    if not 0 < margin < LONGEST:
        raise ConfigError(f"The margin of this drawing must lie between 0 and 2, not {margin}.")
    pairs = (
        ("A", "near pair: pulls", margin * 0.8, "blue"),
        ("B", "far pair within the margin: pushes", margin * 0.55, "orange"),
        ("C", "far pair beyond the margin: slack", (margin + LONGEST) / 2, "orange"),
    )
    figure = Picture(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, (name, text, d, colour) in enumerate(pairs):
        force = -2 * d if name == "A" else 2 * max(0.0, margin - d)
        _pair(left, 2.0 - row, name, text, d, force, PALETTE[colour])
    left.set(xlim=(-0.55, LONGEST + 0.25), ylim=(-0.55, 2.75), yticks=[])
    left.spines["left"].set_visible(False)
    left.grid(visible=False)
    left.set_title("springs between descriptors")
    x = np.linspace(0, LONGEST, 401)
    right.plot(x, x**2, color=PALETTE["blue"], label="near pair: $d^2$")
    right.plot(
        x, np.maximum(0, margin - x) ** 2, "--", color=PALETTE["orange"],
        label=r"far pair: $\max(0, m - d)^2$",
    )  # fmt: skip
    for name, _, at, colour in pairs:
        cost = at**2 if name == "A" else max(0.0, margin - at) ** 2
        right.plot(at, cost, "o" if name == "A" else "s", color=PALETTE[colour], markersize=8)
        right.annotate(
            name, (at, cost), (9, 5), textcoords="offset points", fontweight="bold",
            path_effects=halo(),
        )  # fmt: skip
    right.set(xlim=(0, LONGEST), ylim=(-0.12, 4), ylabel="cost of the pair", title="what they cost")
    right.legend(loc="upper left")
    for ax in (left, right):
        ax.set_xlabel("descriptor distance $d$")
        ax.set_xticks([0, 0.5, 1, 1.5, 2])
        ax.axvline(margin, color=PALETTE["black"], linewidth=1, linestyle=":")
        ax.text(
            margin + 0.03, 0.98, f"margin $m$ = {margin:g}", va="top",
            transform=ax.get_xaxis_transform(), fontsize=9, path_effects=halo(),
        )  # fmt: skip
    return figure


def _pair(ax: Axes, y: float, name: str, text: str, d: float, force: float, colour: str) -> None:
    """Two tiles ``d`` apart, the spring between them, and arrows as long as the force."""
    if force:
        ax.plot(*coil(SIDE, d - SIDE, y).T, color=colour, linewidth=1.8)
    else:
        x = np.linspace(SIDE, d - SIDE, 200)  # a thread that hangs
        sag = 0.22 * np.sin(np.pi * (x - SIDE) / (d - 2 * SIDE))
        ax.plot(x, y - sag, color=colour, linewidth=1.4, linestyle="--")
    for at, side in ((0.0, -1), (d, 1)):
        ax.add_patch(
            FancyBboxPatch(
                (at - SIDE / 2, y - 0.14), SIDE, 0.28, boxstyle="round,pad=0.03", linewidth=1.8,
                facecolor="white", edgecolor=colour, zorder=3,
            )
        )  # fmt: skip
        if force:
            # The tile feels the force at its outer side, and what pulls it points inwards.
            start, length = at + side * 0.11, 0.16 * force * side
            ends = (start - length, start) if force < 0 else (start, start + length)
            ax.add_patch(
                FancyArrowPatch(
                    (ends[0], y), (ends[1], y), arrowstyle="-|>", mutation_scale=13,
                    color=PALETTE["black"], linewidth=1.6, shrinkA=0, shrinkB=0, zorder=4,
                )
            )  # fmt: skip
    ax.text(-0.5, y + 0.36, f"{name}  {text}", fontsize=9, path_effects=halo())


@styled
def on_circle(stages: Mapping[str, ArrayLike], group: ArrayLike) -> Picture:
    """Descriptors of two numbers on the unit circle, a panel a stage.

    Points of a group share a colour and a marker; those at the same place are spread along the
    radius, outwards, so that each can be seen.

    Args:
        stages: Title to unit vectors, ``(n, 2)``.
        group: Group of each point, integers ``(n,)``.

    Raises:
        ConfigError: If the points are not of unit length or do not match the groups.

    Example:
        >>> len(on_circle({"start": [[1, 0], [0, 1]]}, [0, 1]).axes)
        1
    """
    members = np.asarray(group)
    figure = Picture(figsize=(3.3 * len(stages), 3.4), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    turn = np.linspace(0, 2 * np.pi, 200)
    for ax, (title, points) in zip(axes, stages.items(), strict=True):
        xy = np.asarray(points, np.float64)
        if xy.shape != (len(members), 2) or not np.allclose(np.hypot(*xy.T), 1, atol=1e-3):
            raise ConfigError(
                f"{title!r} needs {len(members)} points of two numbers and unit length, "
                f"not {xy.shape}."
            )
        ax.plot(np.cos(turn), np.sin(turn), color=PALETTE["grey"], linewidth=0.8)
        rank = _rank(xy)
        lifted = xy * (1 + rank * min(0.07, 0.62 / max(1.0, rank.max())))[:, None]
        for i, one in enumerate(np.unique(members)):
            here = members == one
            ax.plot(
                *lifted[here].T, MARKERS[i % len(MARKERS)], color=PALETTE[GROUPS[i % len(GROUPS)]],
                markersize=7, markeredgecolor="white", linestyle="none", label=f"group {one + 1}",
            )  # fmt: skip
        ax.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, loc="center")
        ax.spines[:].set_visible(False)
    axes[0].legend(loc="center", handletextpad=0.2)
    return figure


def _rank(xy: NDArray[np.float64], close: float = 0.07) -> NDArray[np.float64]:
    """How many earlier points each point lies on top of, ``(n,)``."""
    distance = np.hypot(*(xy[:, None] - xy[None]).T)
    return np.asarray(np.tril(distance < close, -1).sum(axis=1), np.float64)
