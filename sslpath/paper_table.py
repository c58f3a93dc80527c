"""The table "paper / our run": what the paper reports, how that is known, and what we measured.

What is not known of the paper says so, and nothing is filled in. What this module does not do: make
two numbers comparable. Ours come from other data, so a row never says who is better.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sslpath.datasets.idc import MPP, TILE_PX
from sslpath.errors import DataError
from sslpath.model import ModelConfig
from sslpath.settings import PAPER, Standing, TrainConfig

METRICS = {
    "tumour_top1": "tumour, nearest tile",
    "tumour_p_at_10": "tumour P@10",
    "knn_auc": "kNN AUC",
    "addr_global": "ADDR, global",
    "addr_median": "ADDR, median",
}
METHODS = {
    "spatial": "ours",
    "imagenet": "ImageNet",
    "spatial - imagenet": "difference",
}
SPACE = "\N{NO-BREAK SPACE}"  # numbers stay in one line
NOT_REPORTED = "not reported here"
# The abstract names two measures, tumour retrieval and the ratio of distances, not their variants,
# and claims better results for retrieval only.
FINDS_MORE = Standing("better at retrieval; metric and amount: not known here", "stated")
# What is known of the paper's results (arXiv 1905.08139), and how.
REPORTED: dict[tuple[str, str], Standing] = {
    ("spatial", "addr_global"): Standing(
        "about 1.5; global or median: not known here", "second hand"
    ),
    ("spatial - imagenet", "tumour_top1"): FINDS_MORE,
    ("spatial - imagenet", "tumour_p_at_10"): FINDS_MORE,
}
NOTE = (
    "Mean ± standard deviation over seeds. The 95 % interval is that of one seed, over patients; "
    "its ends are averaged over the seeds."
)
DATA = Standing("Camelyon16, test slides", "stated")
UNKNOWN = (
    "margin, optimiser, learning rate, batch, epochs, number of pairs, tissue filter, µm a pixel"
)


def idc_settings() -> dict[str, Any]:
    """Settings of the recorded run on IDC, ``benchmarks/idc.py``, by the names of ``PAPER``.

    Example:
        >>> idc_settings()["tile_px"], idc_settings()["near_px"]
        (50, 400)
    """
    data = f"IDC, tiles of {TILE_PX} px at about {MPP:g} µm a pixel (our reading of 2.5x)"
    return settings_of(TrainConfig(), ModelConfig(arch="mobilenet_v2"), TILE_PX, data)


def settings_of(
    training: TrainConfig, model: ModelConfig, tile_px: int, data: str
) -> dict[str, Any]:
    """Settings of a run by the names of ``PAPER``, to be shown beside the paper's.

    Args:
        training: How it was trained.
        model: What was trained.
        tile_px: Side of a tile.
        data: What it was trained and measured on.
    """
    far_px, frozen = round(training.far_tiles * tile_px), model.trunk == "frozen"
    stain = training.augmentation.stain or training.augmentation.stain_shift
    pixels = ("stain jitter", "flips", "rotation") if stain else PAPER["augmentation"].value
    return {
        "descriptor_dim": model.descriptor_dim,
        "near_px": round(training.near_tiles * tile_px),
        "far_px_of_reimplementation": far_px,
        "augmentation": "none, features are computed once" if frozen else pixels,
        "loss": "contrastive",
        "tile_px": tile_px,
        "near_tiles": training.near_tiles,
        "far_px": far_px,
        "far_tiles": training.far_tiles,
        "arch": f"{model.arch}, frozen, and a head on it" if frozen else model.arch,
        "data": data,
    }


def paper_table(
    rows: Iterable[Mapping[str, Any]],
    ours: Mapping[str, Any] | None = None,
    *,
    methods: Mapping[str, str] = METHODS,
    metrics: Mapping[str, str] = METRICS,
) -> str:
    """Two Markdown tables: results beside the paper's, and the settings that differ.

    A value is the mean over seeds with the standard deviation (n - 1); an interval is that of a
    seed, over patients, its ends averaged over the seeds. "difference" is ours less ImageNet's.

    Args:
        rows: From :func:`sslpath.results.read_results`; several seeds are several rows.
        ours: Settings behind the rows, by the names of :data:`sslpath.settings.PAPER` and
            ``data``; by default those of :func:`idc_settings`. A name that is missing is shown
            as unknown.
        methods: Method in the rows to its name in the table.
        metrics: Metric in the rows to its name in the table.

    Raises:
        DataError: If no row is of these methods and metrics, or a seed is there twice.

    Example:
        >>> from sslpath.results import row
        >>> both = [row("spatial", "addr_global", v, 1.1, 1.3, 80, seed, "IDC")
        ...         for seed, v in enumerate([1.2, 1.3])]
        >>> paper_table(both).splitlines()[2].split(" | ")[1]
        'about 1.5; global or median: not known here (second hand)'
    """
    parts = (_results(list(rows), methods, metrics), NOTE, _settings(ours or idc_settings()))
    return "\n\n".join(parts)


def _results(
    rows: Sequence[Mapping[str, Any]], methods: Mapping[str, str], metrics: Mapping[str, str]
) -> str:
    header = (
        "metric", "paper", "our run", "n", "seeds",
        "95 % interval", "data", "commit", "hardware",
    )  # fmt: skip
    lines = [_line(header), _line(["---"] * len(header))]
    for data in dict.fromkeys(one["data"] for one in rows):
        for metric, metric_name in metrics.items():
            for method, method_name in methods.items():
                key = (method, metric, data)
                found = [r for r in rows if (r["method"], r["metric"], r["data"]) == key]
                if found:
                    paper = _known(REPORTED.get((method, metric)))
                    lines.append(_line([f"{metric_name}: {method_name}", paper, *_measured(found)]))
    if len(lines) == 2:
        raise DataError(f"No row is of {list(methods)} and of {list(metrics)}.")
    return "\n".join(lines)


def _measured(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Cells of one method and metric, from its rows of all seeds."""
    seeds = [one["seed"] for one in found]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"{found[0]['method']!r}, {found[0]['metric']!r} is there twice for a seed: "
            "pass rows of one setting only."
        )
    values = np.array([one["value"] for one in found])
    spread = f"{SPACE}±{SPACE}{values.std(ddof=1):.3f}" if len(values) > 1 else ""
    ends = [(one["low"], one["high"]) for one in found if one["low"] is not None]
    low, high = np.mean(ends, axis=0) if ends else (np.nan, np.nan)
    sizes = sorted({int(one["n"]) for one in found})
    return [
        f"{values.mean():.3f}{spread}",
        f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}",
        str(len(seeds)),
        f"[{low:.3f},{SPACE}{high:.3f}]" if ends else "",
        *(
            ", ".join(dict.fromkeys(str(one[k]) for one in found))
            for k in ("data", "commit", "hardware")
        ),
    ]


def _settings(ours: Mapping[str, Any]) -> str:
    """The settings that differ from what is known of the paper's, and those that do not."""
    lines = [_line(("setting", "paper", "our run")), _line(["---"] * 3)]
    same = []
    for name, known in {"data": DATA, **PAPER}.items():
        if name in ours and ours[name] == known.value:
            same.append(f"{_words(name)} {known.value} ({known.standing})")
        else:
            lines.append(_line([_words(name), _known(known), str(ours.get(name, "unknown"))]))
    rest = f"Not known of the paper: {UNKNOWN}."
    return "\n".join(lines) + f"\n\nThe same: {'; '.join(same) or 'nothing'}. {rest}"


def _known(found: Standing | None) -> str:
    if found is None:
        return NOT_REPORTED
    value = ", ".join(found.value) if isinstance(found.value, tuple) else str(found.value)
    return f"{value} ({found.standing})"


def _words(name: str) -> str:
    return name.replace("_px_of_reimplementation", "_px, of a re-implementation").replace("_", " ")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
