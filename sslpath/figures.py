"""All figures: charts here, figures on slides in :mod:`sslpath.figures_slide`.

Each function returns a figure; show it in a notebook as it is, or :func:`save` it. Nothing here
changes matplotlib's settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from sslpath.errors import ConfigError
from sslpath.figure_style import MARKERS, PALETTE, Picture, as_text, halo, look, save, styled
from sslpath.figures_slide import gallery, heat_map, near_far_on_slide, slide_with_grid

__all__ = [
    "agreement_by_distance",
    "distance_distributions",
    "gallery",
    "heat_map",
    "near_far_on_slide",
    "results_bars",
    "save",
    "slide_with_grid",
    "training_curves",
    "umap_panels",
]

METRIC_NAMES = {
    "tumour_top1": "tumour, nearest tile",
    "tumour_p_at_10": "tumour, 10 nearest tiles",
    "knn_auc": "area under the ROC curve",
    "addr_global": "distance ratio, all pairs",
    "addr_median": "distance ratio, median slide",
}
NO_EFFECT = {"addr_global": 1.0, "addr_median": 1.0, "knn_auc": 0.5}


@styled
def training_curves(log: Iterable[Mapping[str, Any]]) -> Picture:
    """How a run went: the loss and its two halves, and whether descriptors collapsed.

    Args:
        log: Lines of ``log.jsonl``: ``step``, ``loss``, ``near_loss``, ``far_loss``, ``spread``,
            ``effective_rank``.

    Raises:
        ConfigError: If there are none.
    """
    lines = pd.DataFrame(list(log))
    if lines.empty:
        raise ConfigError("The log is empty: train for at least one line of it.")
    figure = Picture(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    smooth = max(1, len(lines) // 25)
    for name, text, colour, style in (
        ("loss", "sum", "black", "-"),
        ("near_loss", "near pairs", "blue", "--"),
        ("far_loss", "far pairs", "orange", "-."),
    ):
        if name in lines:
            _trend(axes[0], lines["step"], lines[name], smooth, PALETTE[colour], style, text)
    axes[0].set(title="loss", xlabel="step", ylim=(0, None))
    axes[0].legend()
    for ax, name, title, note in (
        (axes[1], "spread", "spread of descriptors", "0: all the same"),
        (axes[2], "effective_rank", "effective rank", "1: a line"),
    ):
        if name in lines:
            _trend(ax, lines["step"], lines[name], smooth, PALETTE["blue"], "-", "")
        ax.set(title=title, xlabel="step", ylim=(0, None))
        ax.text(0.98, 0.04, note, transform=ax.transAxes, ha="right", color=PALETTE["grey"])
    return figure


def _trend(
    ax: Axes,
    x: "pd.Series[Any]",
    y: "pd.Series[Any]",
    smooth: int,
    colour: str,
    style: str,
    text: str,
) -> None:
    """The values, pale, and their running median."""
    if smooth > 1:
        ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    middle = y.rolling(smooth, center=True, min_periods=1).median()
    ax.plot(x, middle, color=colour, linestyle=style, label=text or None)


@styled
def umap_panels(
    embeddings: Mapping[str, ArrayLike], tissue: ArrayLike, slide: ArrayLike
) -> Picture:
    """Descriptors in the plane, a row a method: by tissue on the left, by slide on the right.

    Tissues that lie apart, with the slides of each mixed, are what a good descriptor looks like.

    Args:
        embeddings: Method to points in the plane, (n, 2).
        tissue: Kind of tissue of each tile, (n,); empty where unknown.
        slide: Slide of each tile, (n,).
    """
    kinds = np.array(["unknown" if pd.isna(t) or t == "" else str(t) for t in np.asarray(tissue)])
    groups = {"tissue": kinds, "slide": np.asarray(slide).astype(str)}
    figure = Picture(figsize=(10.5, 4.1 * len(embeddings)), layout="constrained")
    axes = figure.subplots(len(embeddings), 2, squeeze=False)
    for (method, points), pair in zip(embeddings.items(), axes, strict=True):
        xy = np.asarray(points, np.float64)
        order = np.random.default_rng(0).permutation(len(xy))  # no group lies on top of another
        for ax, (name, members) in zip(pair, groups.items(), strict=True):
            _scatter(ax, xy[order], members[order], name)
            ax.set_title(f"{as_text(method)}, by {name}" if method else f"by {name}")
    return figure


def _scatter(ax: Axes, xy: NDArray[np.float64], members: NDArray[Any], name: str) -> None:
    kinds = sorted(set(members), key=lambda kind: (kind == "unknown", kind))
    looks = _looks(kinds)
    size = float(np.clip(20_000 / max(1, len(xy)), 7, 26))
    for part in np.array_split(np.arange(len(xy)), 20):  # groups take turns, so none hides another
        for kind, (colour, marker, filled) in looks.items():
            at = part[members[part] == kind]
            ax.scatter(
                xy[at, 0], xy[at, 1], s=size, marker=marker, alpha=0.8, edgecolors=colour,
                facecolors=colour if filled else "none", linewidths=0 if filled else 0.8,
            )  # fmt: skip
    handles = [
        Line2D(
            [], [], color=colour, marker=marker, linestyle="none", markersize=6,
            markerfacecolor=colour if filled else "none", label=as_text(kind),
        )
        for kind, (colour, marker, filled) in looks.items()
    ]  # fmt: skip
    if len(kinds) <= 14:
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    else:
        ax.set_xlabel(f"{len(kinds)} {name}s, a colour and marker each")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _looks(kinds: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and whether it is filled. Tumours of all kinds share a colour of their own."""
    looks, others = {}, [c for n, c in PALETTE.items() if n not in ("grey", "orange")]
    if not any(kind.startswith("tumour") for kind in kinds):
        others.insert(1, PALETTE["orange"])
    plain = 0
    for i, kind in enumerate(kinds):
        marker = MARKERS[i % len(MARKERS)]
        if kind == "unknown":
            looks[kind] = ("#C8C8C8", ".", True)
        elif kind.startswith("tumour"):
            looks[kind] = (PALETTE["orange"], marker, True)
        else:
            looks[kind] = (others[plain % len(others)], marker, plain // len(others) % 2 == 0)
            plain += 1
    return looks


@styled
def distance_distributions(distances: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Picture:
    """How far apart near and far tiles are as descriptors, for each method.

    Distances are in units of the method's mean near distance, so the far mean is its ratio.

    Args:
        distances: Method to distances of near pairs and of far pairs.
    """
    figure = Picture(figsize=(3.4 * len(distances), 3.1), layout="constrained")
    axes = figure.subplots(1, len(distances), squeeze=False, sharex=True, sharey=True)[0]
    unit = {m: float(np.mean(np.asarray(near))) or 1.0 for m, (near, _) in distances.items()}
    top = max(
        float(np.percentile(np.concatenate([np.asarray(a) for a in pair]), 99.5)) / unit[method]
        for method, pair in distances.items()
    )
    edges = np.linspace(0, top, 46)
    for ax, (method, pair) in zip(axes, distances.items(), strict=True):
        for values, text, colour, style in zip(
            pair, ("near pairs", "far pairs"), ("blue", "orange"), ("-", "--"), strict=True
        ):
            scaled = np.asarray(values, np.float64) / unit[method]
            kind = {"bins": edges, "density": True, "color": PALETTE[colour]}
            ax.hist(scaled, histtype="stepfilled", alpha=0.22, **kind)
            ax.hist(scaled, histtype="step", linewidth=1.8, linestyle=style, label=text, **kind)
            ax.axvline(scaled.mean(), color=PALETTE[colour], linewidth=1.2, linestyle=style)
        ratio = np.mean(np.asarray(pair[1])) / unit[method]
        ax.set_title(f"{as_text(method)}, ratio {ratio:.2f}")
        ax.set_xlabel("distance / mean near distance")
        ax.set_yticks([])
        ax.grid(visible=False)
    axes[0].set_ylabel("pairs")
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.18)
    axes[-1].legend(loc="upper right")
    return figure


@styled
def agreement_by_distance(
    agreement: pd.DataFrame,
    *,
    near_um: float | None = None,
    far_um: float | None = None,
    chance: float | None = None,
) -> Picture:
    """How the probability that two tiles share their label falls with their distance.

    Args:
        agreement: From :func:`sslpath.pairs.label_agreement`: ``low_um``, ``high_um``, ``n``,
            ``agreement``. Bins of fewer than 30 pairs are not drawn.
        near_um: Marked, if given.
        far_um: Marked, if given.
        chance: Probability for two tiles of the slide at random, if known.
    """
    known = agreement[agreement["n"] >= 30]
    x = (known["low_um"] + known["high_um"]).to_numpy(np.float64) / 2000
    p, n = known["agreement"].to_numpy(np.float64), known["n"].to_numpy(np.float64)
    error = 1.96 * np.sqrt(p * (1 - p) / n)
    figure = Picture(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(x, p - error, p + error, color=PALETTE["blue"], alpha=0.2, linewidth=0)
    ax.plot(x, p, color=PALETTE["blue"], marker="o", markersize=4)
    for value, text, style in (
        (near_um, " near", "-"),
        (far_um, " far", "--"),
    ):
        if value is not None:
            ax.axvline(value / 1000, color=PALETTE["black"], linewidth=1.2, linestyle=style)
            ax.text(value / 1000, 0.98, text, transform=ax.get_xaxis_transform(), va="top")
    if chance is not None:
        ax.axhline(chance, color=PALETTE["grey"], linestyle=":", label="two tiles at random")
        ax.legend(loc="lower left")
    ax.set(xlabel="distance on the slide (mm)", ylabel="probability of the same label")
    ax.set_xlim(0, None)
    return figure


@styled
def results_bars(
    rows: Iterable[Mapping[str, Any]], metrics: Sequence[str] | None = None
) -> Picture:
    """Results with their 95 % intervals: a panel a metric, a line a method.

    Args:
        rows: From :func:`sslpath.retrieval.evaluate` or ``results.json``, of one data set.
        metrics: Which panels; by default tumour retrieval and distance ratios.

    Raises:
        ConfigError: If no row is of these metrics, or a method has two values of one.
    """
    plain = [one for one in rows if not one.get("versus")]
    if metrics is None:
        order = ["tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median"]
        metrics = [name for name in order if any(one["metric"] == name for one in plain)]
    chosen = {(one["metric"], one["method"]): one for one in plain if one["metric"] in metrics}
    if not chosen or len(chosen) != sum(one["metric"] in metrics for one in plain):
        raise ConfigError(f"Give one row a method for each of {list(metrics)}, of one data set.")
    methods = list(dict.fromkeys(method for _, method in chosen if method != "chance"))
    figure = Picture(
        figsize=(2.5 * len(metrics) + 0.8, 0.42 * len(methods) + 1.3), layout="constrained"
    )
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        chance = chosen.get((metric, "chance"))
        level = chance["value"] if chance else NO_EFFECT.get(metric)
        if level is not None:
            ax.axvline(level, color=PALETTE["grey"], linestyle=":", linewidth=1.6)
        for i, method in enumerate(methods):
            one = chosen.get((metric, method))
            if one is None:
                continue
            colour, marker = look(method, i)
            if one["low"] is not None:
                ax.plot([one["low"], one["high"]], [i, i], color=colour, linewidth=2.6)
            ax.plot(one["value"], i, marker, color=colour, markersize=8, markeredgecolor="white")
            ax.annotate(
                f"{one['value']:.2f}", (one["value"], i), (0, 7), textcoords="offset points",
                ha="center", fontsize=8, path_effects=halo(),
            )  # fmt: skip
        ax.set_title(METRIC_NAMES.get(metric, metric.replace("_", " ")), fontsize=9)
        ax.margins(x=0.15)
        ax.grid(visible=False, axis="y")
    figure.supxlabel(
        "value and 95 % interval over patients; dotted: chance, or no difference",
        fontsize=9, color=PALETTE["grey"],
    )  # fmt: skip
    axes[0].set_yticks(range(len(methods)), [as_text(method) for method in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.7)
    return figure
