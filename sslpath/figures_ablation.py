"""One chart for an ablation: what each setting changes against a base line, with its interval.

What this module does not do: fit anything, or decide. An interval that leaves out zero says that
these slides tell the two apart, not that other slides would.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, styled
from sslpath.figures import METRIC_NAMES

METRICS = ("tumour_p_at_10", "knn_auc", "addr_global")
LOOKS = {  # what the interval says: colour, marker
    "higher": ("blue", "^"),
    "lower": ("orange", "v"),
    "undecided": ("grey", "o"),
}


def verdict(one: Mapping[str, Any]) -> str:
    """What the interval of a difference says of it.

    Args:
        one: A row with ``low`` and ``high``.

    Returns:
        ``higher``, ``lower``, or ``undecided`` if it holds zero or there is none.

    Example:
        >>> verdict({"low": 0.01, "high": 0.2}), verdict({"low": -0.1, "high": 0.2})
        ('higher', 'undecided')
    """
    if one["low"] is None or one["high"] is None or one["low"] <= 0 <= one["high"]:
        return "undecided"
    return "higher" if one["low"] > 0 else "lower"


@styled
def ablation_chart(
    rows: Iterable[Mapping[str, Any]],
    *,
    versus: str = "base",
    metrics: Sequence[str] = METRICS,
    repeats: Sequence[str] = (),
) -> Picture:
    """Differences to a base line: a panel a metric, a line a setting, in the order of the rows.

    The first row of a setting is drawn with its interval; further rows of it, from other seeds,
    as small hollow dots.

    Args:
        rows: From one or several calls of :func:`sslpath.retrieval.evaluate` with ``versus``.
        versus: The base line.
        metrics: Which panels.
        repeats: Settings that are the base line again, with another seed. A band as wide as the
            largest of their differences, to both sides, shows what a seed alone does.

    Raises:
        ConfigError: If no row is a difference to ``versus`` in one of these metrics.

    Example:
        >>> from sslpath.results import row
        >>> rows = [row("near 8 - base", "knn_auc", -0.1, -0.2, -0.05, versus="base"),
        ...         row("base", "knn_auc", 0.9)]
        >>> [ax] = ablation_chart(rows, metrics=["knn_auc"]).axes
        >>> ax.get_title(loc="left").splitlines()
        ['area under the ROC curve', 'base: 0.90']
    """
    rows = list(rows)
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for one in rows:
        if one.get("versus") == versus and one["metric"] in metrics:
            setting = str(one["method"]).removesuffix(f" - {versus}")
            found.setdefault(setting, {}).setdefault(one["metric"], []).append(one)
    if not found:
        raise ConfigError(f"No row is a difference to {versus!r} in one of {list(metrics)}.")
    base = {one["metric"]: one["value"] for one in reversed(rows) if one["method"] == versus}
    figure = Picture(
        figsize=(2.35 * len(metrics) + 1.2, 0.29 * len(found) + 1.4), layout="constrained"
    )
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        spread = [abs(one["value"]) for name in repeats for one in found[name].get(metric, [])]
        if spread:
            ax.axvspan(-max(spread), max(spread), color=PALETTE["grey"], alpha=0.18, linewidth=0)
        ax.axvline(0, color=PALETTE["black"], linewidth=1)
        for i, by_metric in enumerate(found.values()):
            _line(ax, i, by_metric.get(metric, []))
        title = METRIC_NAMES.get(metric, metric)
        at = f"\n{versus}: {base[metric]:.2f}" if metric in base else ""
        ax.set_title(title + at, fontsize=9)
        ax.margins(x=0.12)
        ax.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    axes[len(axes) // 2].set_xlabel(
        f"difference to {versus}, and its 95 % interval over patients", fontsize=9
    )
    several = any(len(one) > 1 for by_metric in found.values() for one in by_metric.values())
    handles = _handles(bool(repeats), several)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def _line(ax: Axes, i: int, differences: Sequence[Mapping[str, Any]]) -> None:
    """One setting in one panel."""
    for j, one in enumerate(differences):
        if j:
            ax.plot(
                one["value"], i + 0.22, "o", markersize=4.5, markerfacecolor="white",
                markeredgecolor=PALETTE["black"], zorder=4,
            )  # fmt: skip
            continue
        colour, marker = LOOKS[verdict(one)]
        if one["low"] is not None:
            ax.plot([one["low"], one["high"]], [i, i], color=PALETTE[colour], linewidth=2.4)
        ax.plot(
            one["value"], i, marker, color=PALETTE[colour], markersize=8, markeredgecolor="white"
        )


def _handles(band: bool, several: bool) -> list[Any]:
    """What the legend explains."""
    texts = {"higher": "interval above 0", "lower": "below 0", "undecided": "holds 0"}
    handles: list[Any] = [
        Line2D([], [], color=PALETTE[LOOKS[name][0]], marker=LOOKS[name][1], linewidth=2.4,
               markersize=7, label=text)
        for name, text in texts.items()
    ]  # fmt: skip
    if several:
        handles.append(
            Line2D([], [], color=PALETTE["black"], marker="o", markerfacecolor="white",
                   markersize=4.5, linestyle="none", label="other seeds")
        )  # fmt: skip
    if band:
        handles.append(Patch(color=PALETTE["grey"], alpha=0.18, label="another seed of the base"))
    return handles
