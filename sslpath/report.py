"""From folders of descriptors to a table of results and the pictures beside it.

The last step of the flow, shared by ``sslpath evaluate`` and the demo.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sslpath import figures
from sslpath.descriptors import read_descriptors
from sslpath.errors import ConfigError, DescriptorError, counted
from sslpath.figure_style import check_picture
from sslpath.neighbours import neighbours, pair_distances, unit_length
from sslpath.pairs import label_agreement, near_far_um
from sslpath.results import markdown_table
from sslpath.retrieval import (
    check_each_once,
    check_methods,
    cost,
    evaluate,
    slide_pairs,
    tumour_share,
)
from sslpath.sources import SlideTiles, TileSource
from sslpath.table import centres_um, tile_um

QUERIES = 3  # rows of a gallery
NEIGHBOURS = 6  # columns of a gallery
UMAP_TILES = 3000  # more only fills the picture
UMAP_LEAST = 5  # fewer are no picture, and UMAP's own start fails on them
COSTS = ("bytes_per_tile", "stored_bytes_per_tile", "query_us")
Pictures = Iterator[tuple[str, Any]]
"""Name and figure, drawn one after the other."""


def compare(
    tiles: pd.DataFrame,
    folders: Mapping[str, str | Path],
    *,
    near_tiles: float = 8,
    far_tiles: float = 30,
    k: int = 10,
    seed: int = 0,
    group: str = "patient",
    data: str = "",
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float32]], list[dict[str, Any]]]:
    """Evaluate folders of descriptors on the same tiles.

    Tiles that lack a descriptor of any method are left out for all.

    Args:
        tiles: The tiles to evaluate on, usually those of the test split.
        folders: Method to its folder of descriptors.
        near_tiles: ADDR: near, in tile widths.
        far_tiles: ADDR: far, in tile widths.
        k: Neighbours.
        seed: Of bootstrap and pairs.
        group: ``"patient"`` or ``"slide"``, left out of a query's neighbours.
        data: Name of the data in the rows.

    Returns:
        The tiles that were used, their descriptors by method ``(n, d)``, and rows for
        ``results.json``, see :func:`sslpath.retrieval.evaluate`.

    Raises:
        ConfigError: If there is no folder, or settings make no sense.
        DescriptorError: If no tile has descriptors of all methods.
        TableError: If the table lists a tile twice.
    """
    if not folders:
        raise ConfigError("Nothing to evaluate: name at least one folder of descriptors.")
    check_methods(folders)
    check_each_once(tiles)
    near_um, far_um = near_far_um(tiles, near_tiles, far_tiles)
    read = {
        name: read_descriptors(folder, tiles, missing="drop") for name, folder in folders.items()
    }
    everywhere = np.logical_and.reduce([found for _, found in read.values()])
    descriptors = {name: values[everywhere[found]] for name, (values, found) in read.items()}
    total, left_out = len(tiles), int((~everywhere).sum())
    if left_out == total:
        raise DescriptorError(
            f"No tile has descriptors of all of {', '.join(folders)}: embed the same tiles with "
            "each method."
        )
    if left_out:
        fewest = min(read, key=lambda name: int(read[name][1].sum()))
        warnings.warn(
            f"Left out {left_out} of {counted(total, 'tile')} that not every method describes "
            f"(fewest: {fewest}, in {folders[fewest]}).",
            stacklevel=2,
        )
    tiles = tiles[everywhere].reset_index(drop=True)
    rows = evaluate(
        tiles,
        descriptors,
        near_um=near_um,
        far_um=far_um,
        k=k,
        seed=seed,
        group=group,
        data=data,
    )
    for name, values in descriptors.items():
        rows += cost(name, values, folder=folders[name], k=k, data=data)
    return tiles, descriptors, rows


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as two Markdown tables: what was found, and what it costs."""
    plain = [dict(row) for row in rows]
    found = markdown_table(plain, [name for name in _metrics(plain) if name not in COSTS])
    costs = [row for row in plain if row["metric"] in COSTS]
    return found + ("\n\n" + markdown_table(costs, digits=0) if costs else "")


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["metric"] for row in rows))


def pictures(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, NDArray[np.float32]],
    rows: Sequence[Mapping[str, Any]],
    source: TileSource,
    folder: str | Path,
    *,
    near_tiles: float = 8,
    far_tiles: float = 30,
    k: int = 10,
    seed: int = 0,
    group: str = "patient",
) -> list[Path]:
    """Draw what :func:`compare` returned; returns the pictures' paths.

    ``results.png``, ``distances.png``, ``agreement.png``, ``umap.png``, ``gallery.png``; and of the
    slide with the most even share of tumour ``grid.png``, ``pairs.png`` and a heat map a method,
    when the tiles come from slides. Galleries, UMAP and heat maps show ours and ImageNet's. What
    the tiles do not allow, such as a gallery without labels, is left out.

    Args:
        tiles: Table of n tiles.
        descriptors: Method to ``(n, d)``.
        rows: Rows of results.
        source: Where the pixels are.
        folder: Where the pictures go.
        near_tiles: Near, in tile widths.
        far_tiles: Far, in tile widths.
        k: Neighbours of the heat map's score.
        seed: Of draws and of UMAP.
        group: ``"patient"`` or ``"slide"``, left out of a query's neighbours.

    Raises:
        ConfigError: If the folder has a picture of such a name that sslpath did not draw.
    """
    check_pictures(folder, descriptors)
    main = {name: descriptors[name] for name in ("spatial", "imagenet") if name in descriptors}
    paths = []
    # Each picture is on disk before the next is begun: one that fails costs no other.
    for name, figure in chain(
        _of_results(tiles, descriptors, rows, near_tiles, far_tiles, seed),
        _of_tiles(tiles, main or descriptors, source, near_tiles, far_tiles, k, seed, group),
    ):
        paths.append(Path(folder) / f"{name}.png")
        figures.save(figure, paths[-1])
    return paths


def check_pictures(folder: str | Path, methods: Iterable[str]) -> None:
    """Refuse a folder in which :func:`pictures` would write over what it did not draw."""
    names = "results", "distances", "agreement", "umap", "gallery", "grid", "pairs"
    for name in (*names, *(f"heatmap-{method}" for method in methods)):
        check_picture(Path(folder) / f"{name}.png")


def _of_results(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, NDArray[np.float32]],
    rows: Sequence[Mapping[str, Any]],
    near_tiles: float,
    far_tiles: float,
    seed: int,
) -> Pictures:
    """Pictures of numbers: results, distances, agreement of labels."""
    if not set(_metrics(rows)) <= set(COSTS):
        yield "results", figures.results_bars(rows)
    near_um, far_um = near_far_um(tiles, near_tiles, far_tiles)
    pairs, _ = slide_pairs(tiles, near_um, far_um, seed)
    if len(pairs):
        anchor, near, far = pairs.T
        unit = {name: unit_length(values) for name, values in descriptors.items()}
        distances = {
            name: (pair_distances(d, d, anchor, near), pair_distances(d, d, anchor, far))
            for name, d in unit.items()
        }
        yield "distances", figures.distance_distributions(distances)
    known = tiles[tiles["label"].notna()]
    if len(known):
        edges = np.array([0, 1.5, 3, 5, 8, 12, 16, 20, 25, 30, 40]) * tile_um(tiles)
        agreement = label_agreement(tiles, edges, np.random.default_rng(seed))
        # Of two tiles of a slide at random, both are tumour or both are not.
        share = known["label"].astype(float).groupby(known["slide_id"]).transform("mean")
        yield (
            "agreement",
            figures.agreement_by_distance(
                agreement,
                near_um=near_um,
                far_um=far_um,
                chance=float((share**2 + (1 - share) ** 2).mean()),
            ),
        )


def _of_tiles(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, NDArray[np.float32]],
    source: TileSource,
    near_tiles: float,
    far_tiles: float,
    k: int,
    seed: int,
    group: str,
) -> Pictures:
    """Pictures of tiles: gallery, grid, pairs, heat maps, and the plane of descriptors."""
    known = tiles[tiles["label"].notna()]
    if known[f"{group}_id"].nunique() >= 2 and (known["label"] == 1).any():
        yield "gallery", _gallery(tiles, descriptors, source, seed, group)
    if isinstance(source, SlideTiles):
        near_um, far_um = near_far_um(tiles, near_tiles, far_tiles)
        yield from _on_a_slide(tiles, descriptors, source, near_um, far_um, k, group)
    if len(tiles) >= UMAP_LEAST:
        yield "umap", figures.umap_panels(*_in_the_plane(tiles, descriptors, seed))


def _in_the_plane(
    tiles: pd.DataFrame, descriptors: Mapping[str, NDArray[np.float32]], seed: int
) -> tuple[dict[str, NDArray[np.float32]], NDArray[Any], NDArray[Any]]:
    """UMAP of some tiles, by method, with their tissue and slide."""
    from umap import UMAP  # slow to import

    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(tiles))[:UMAP_TILES])
    plane = {}
    for name, values in descriptors.items():
        with warnings.catch_warnings():  # it warns that a seed means one thread, as we want
            warnings.simplefilter("ignore", UserWarning)
            umap = UMAP(metric="cosine", random_state=seed % 2**32, n_jobs=1)
            plane[name] = np.asarray(umap.fit_transform(values[some]), np.float32)
    chosen = tiles.iloc[some]
    return plane, chosen["region"].to_numpy(object), chosen["slide_id"].to_numpy(object)


def _gallery(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, NDArray[np.float32]],
    source: TileSource,
    seed: int,
    group: str,
) -> Any:
    """Tumour queries drawn by lot, one a patient, and what each method finds for them."""
    positions = np.flatnonzero(tiles["label"].notna())
    labels = tiles["label"].iloc[positions].to_numpy(np.int64)
    groups = tiles[f"{group}_id"].to_numpy(object)
    tumour = np.random.default_rng(seed).permutation(positions[labels == 1])
    first = np.sort(np.unique(groups[tumour].astype(str), return_index=True)[1])
    queries = tumour[first][:QUERIES]
    tile_px = int(tiles.attrs["tile_px"])
    answers, correct = {}, {}
    for name, values in descriptors.items():
        unit = unit_length(values)
        found, _ = neighbours(
            unit[queries], unit[positions], groups[queries], groups[positions], NEIGHBOURS
        )
        # Where others have fewer labelled tiles than asked for, the place stays white.
        there = found >= 0
        answers[name] = np.full((*found.shape, tile_px, tile_px, 3), 255, np.uint8)
        answers[name][there] = source.read(tiles.iloc[positions[found[there]]])
        correct[name] = np.where(there, labels[found] == 1, -1)
    names = [f"tumour, {tiles['slide_id'].iloc[at]}" for at in queries]
    return figures.gallery(source.read(tiles.iloc[queries]), answers, correct, names=names)


def _anchor(rows: pd.DataFrame, near_um: float) -> int:
    """A tile on the left quarter of a slide, to have far ones, with as many near ones as any."""
    xy = centres_um(rows)
    left = np.flatnonzero(xy[:, 0] <= np.quantile(xy[:, 0], 0.25))
    near = cKDTree(xy).query_ball_point(xy[left], near_um, return_length=True)
    return int(left[np.argmax(near)])


def _on_a_slide(
    tiles: pd.DataFrame,
    descriptors: Mapping[str, NDArray[np.float32]],
    source: SlideTiles,
    near_um: float,
    far_um: float,
    k: int,
    group: str,
) -> Pictures:
    """Grid, pairs and heat maps of one slide: that with about as much tumour as other tissue."""
    share = tiles.groupby("slide_id")["label"].mean().astype(float).fillna(0)
    slide_id = str((share - 0.5).abs().idxmin())
    slide = source.slides[slide_id]
    own = np.flatnonzero(tiles["slide_id"] == slide_id)
    rows = tiles.iloc[own]
    yield "grid", figures.slide_with_grid(slide, rows)
    anchor = int(own[_anchor(rows, near_um)])
    yield (
        "pairs",
        figures.near_far_on_slide(slide, tiles, anchor, near_um=near_um, far_um=far_um),
    )
    others = tiles[f"{group}_id"] != rows[f"{group}_id"].iloc[0]
    if 0 < share[slide_id] < 1 and tiles.loc[others, "label"].notna().any():
        label = f"share of tumour among the nearest tiles of other {group}s"
        for name, values in descriptors.items():
            scores = tumour_share(tiles, values, k=k, slide_id=slide_id, group=group)
            yield f"heatmap-{name}", figures.heat_map(slide, rows, scores, label=label)
