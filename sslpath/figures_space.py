"""A picture of the descriptor space that leaves the colours to the tissue itself.

What this module does not do: the map. Make the points with UMAP, or with anything else.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE, Picture, styled


@styled
def colour_panels(embeddings: Mapping[str, ArrayLike], rgb: ArrayLike) -> Picture:
    """Tiles in the plane, a panel a method, each tile a dot in its own mean colour.

    Groups that differ in colour and not in tissue are what the stain has done.

    Args:
        embeddings: Method to points in the plane, (n, 2).
        rgb: Mean red, green and blue of each tile in 0..1, (n, 3).

    Raises:
        ConfigError: If there is no method, or a colour is missing or outside 0..1.

    Example:
        >>> figure = colour_panels({"mine": np.eye(2)}, [[0.8, 0.5, 0.7], [0.5, 0.3, 0.6]])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['mine']
    """
    colours = np.asarray(rgb, np.float64)
    sizes = {len(np.asarray(points)) for points in embeddings.values()}
    if sizes != {len(colours)} or colours.shape[1:] != (3,):
        raise ConfigError(f"Colours {colours.shape} must be (n, 3), for maps of {sizes} points.")
    if not ((colours >= 0) & (colours <= 1)).all():
        raise ConfigError("Colours must lie in 0..1; divide 8-bit values by 255.")
    figure = Picture(figsize=(4.6 * len(embeddings), 4.2), layout="constrained")
    axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
    size = float(np.clip(24_000 / max(1, len(colours)), 8, 26))
    for ax, (method, points) in zip(axes, embeddings.items(), strict=True):
        xy = np.asarray(points, np.float64)
        order = np.random.default_rng(0).permutation(len(xy))
        ax.scatter(
            xy[order, 0], xy[order, 1], s=size, c=colours[order],
            edgecolors=PALETTE["black"], linewidths=0.25,
        )  # fmt: skip
        ax.set(title=method, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    return figure
