"""Figures of runs: several side by side, and where the time of a step goes.

What this module does not do: one run with the parts of its loss, which is
:func:`sslpath.figures.training_curves`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, styled

LINES = (
    ("blue", "-", "o"),
    ("orange", "--", "s"),
    ("black", ":", "^"),
    ("brown", "-.", "D"),
    ("teal", (0, (6, 2)), "v"),
)
PANELS = (
    ("loss", "loss"),
    ("spread", "spread (0: all the same)"),
    ("effective_rank", "effective rank (1: a line)"),
)


@styled
def runs_compared(logs: Mapping[str, Iterable[Mapping[str, Any]]]) -> Picture:
    """The logs of several runs, a line style and a marker each.

    Args:
        logs: Name of a run to the lines of its ``log.jsonl``: ``step``, ``loss``, ``spread``,
            ``effective_rank``.

    Raises:
        ConfigError: If there is no run, more than five, or a log is empty.

    Example:
        >>> line = {"step": 1, "loss": 0.7, "spread": 0.6, "effective_rank": 9.0}
        >>> figure = runs_compared({"one": [line, {**line, "step": 2}], "other": [line]})
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['loss', 'spread (0: all the same)', 'effective rank (1: a line)']
    """
    tables = {name: pd.DataFrame(list(log)) for name, log in logs.items()}
    empty = [name for name, table in tables.items() if table.empty]
    if empty or not 1 <= len(tables) <= len(LINES):
        raise ConfigError(
            f"Give 1 to {len(LINES)} runs, each with a log; {len(tables)} were given, of which "
            f"{empty} have none."
        )
    figure = Picture(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for ax, (column, title) in zip(axes, PANELS, strict=True):
        for (name, table), (colour, style, marker) in zip(tables.items(), LINES, strict=False):
            ax.plot(
                table["step"], table[column], color=PALETTE[colour], linestyle=style, label=name,
                marker=marker, markersize=4, markevery=max(1, len(table) // 6),
            )  # fmt: skip
        ax.set(title=title, xlabel="step", ylim=(0, None))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), handlelength=3)
    return figure


@styled
def shares_of_time(seconds: Mapping[str, float]) -> Picture:
    """How the time of a training step divides into its parts, as shares of their sum.

    Args:
        seconds: Part of a step to the time it takes, in the order in which they happen.

    Raises:
        ConfigError: If there is no part, or a time is not positive.

    Example:
        >>> figure = shares_of_time({"read": 0.1, "learn": 0.3})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25 %', '75 %']
    """
    if not seconds or min(seconds.values()) <= 0:
        raise ConfigError(f"Every part of a step takes time; these were given: {dict(seconds)}.")
    total = sum(seconds.values())
    figure = Picture(figsize=(7.5, 0.5 * len(seconds) + 1.1), layout="constrained")
    ax = figure.subplots()
    for i, took in enumerate(seconds.values()):
        share = took / total
        ax.barh(i, share, color=PALETTE["blue"], height=0.62)
        ax.annotate(f"{share:.0%}".replace("%", " %"), (share, i), (5, 0),
                    textcoords="offset points", va="center")  # fmt: skip
    ax.set_yticks(range(len(seconds)), list(seconds))
    ax.set(xlabel="share of a step's time", xlim=(0, 1.08), ylim=(len(seconds) - 0.45, -0.55))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}".replace("%", " %"))
    ax.grid(visible=False, axis="y")
    return figure
