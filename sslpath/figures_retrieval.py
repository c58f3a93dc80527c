"""Charts of the chapter on retrieval: slide by slide, and what a longer descriptor costs.

What this module does not do: search, or time anything; see :mod:`sslpath.retrieval`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullLocator

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, look, styled

NAMED = 20  # more slides than this are a line each without a name
COST_LOOKS = {0: ("blue", "o", "-"), 1: ("orange", "s", "--"), 2: ("teal", "D", "-.")}


@styled
def slide_by_slide(values: pd.DataFrame, queries: Sequence[int], name: str) -> Picture:
    """A metric on each slide: a line a slide, a marker a method, the most queries on top.

    Args:
        values: A row a slide, a column a method.
        queries: How many queries each slide has, (slides,).
        name: What the metric is called.

    Raises:
        ConfigError: If the number of slides does not fit, or there are none.

    Example:
        >>> values = pd.DataFrame({"spatial": [0.8, 0.4], "imagenet": [0.7, 0.5]}, ["a", "b"])
        >>> [ax] = slide_by_slide(values, [3, 9], "P@10").axes
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['b (9)', 'a (3)']
    """
    counts = np.asarray(queries, int)
    if counts.shape != (len(values),) or not len(values):
        raise ConfigError(
            f"{len(values)} slides need as many numbers of queries, not {counts.shape}."
        )
    order = np.argsort(-counts, kind="stable")
    shown, counts = values.iloc[order], counts[order]
    named = len(shown) <= NAMED
    figure = Picture(
        figsize=(6.8, (0.34 if named else 0.11) * len(shown) + 1.2), layout="constrained"
    )
    ax = figure.subplots()
    y = np.arange(len(shown))
    ax.hlines(
        y, shown.min(axis=1), shown.max(axis=1), color=PALETTE["grey"], linewidth=1.2, zorder=1
    )
    for i, method in enumerate(shown):
        colour, marker = look(str(method), i)
        ax.scatter(
            shown[method], y, s=58 if named else 24, color=colour, marker=marker,
            edgecolors="white", linewidths=0.7, label=str(method), zorder=2,
        )  # fmt: skip
    if named:
        ax.set_yticks(y, [f"{slide} ({n})" for slide, n in zip(shown.index, counts, strict=True)])
    else:
        ax.set_yticks([])
    ax.set_ylabel("slide (queries)" if named else f"{len(shown)} slides, most queries on top")
    ax.set(xlabel=name, ylim=(len(shown) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside upper right", ncols=shown.shape[1])
    return figure


@styled
def cost_by_length(
    lengths: Sequence[int], costs: Mapping[str, Sequence[float]], *, base: int = 128
) -> Picture:
    """What descriptors of other lengths cost, as a multiple of one length's cost.

    Args:
        lengths: Numbers in a descriptor, rising.
        costs: What is counted (bytes, time) to its cost at each length.
        base: The length whose cost is 1.

    Raises:
        ConfigError: If ``base`` is not among the lengths, or a cost is missing.

    Example:
        >>> [ax] = cost_by_length([64, 128], {"bytes": [256, 512]}, base=128).axes
        >>> ax.lines[1].get_ydata().tolist()
        [0.5, 1.0]
    """
    if base not in lengths or any(len(one) != len(lengths) for one in costs.values()):
        raise ConfigError(
            f"Costs must have one value for each of {list(lengths)}, {base} included."
        )
    figure = Picture(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    at = list(lengths).index(base)
    x = np.asarray(lengths, np.float64)
    ax.plot(
        x, x / base, color=PALETTE["grey"], linewidth=7, alpha=0.25, label="in proportion to length"
    )
    for i, (name, one) in enumerate(costs.items()):
        colour, marker, style = COST_LOOKS[i % len(COST_LOOKS)]
        y = np.asarray(one, np.float64)
        ax.plot(x, y / y[at], color=PALETTE[colour], marker=marker, linestyle=style, label=name)
    ax.set(
        xscale="log", yscale="log", xlabel="numbers in a descriptor", ylabel=f"times that of {base}"
    )
    ax.set_xticks(x, [str(length) for length in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.legend(loc="upper left")
    return figure
