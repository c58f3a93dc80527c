"""Where each notion of the paper lives in this package: symbol, source, module, line.

Lines are found by inspection, so the table cannot go stale. What this module does not do: say
whether our choice is the paper's where the paper's is not known; ``known`` says how we know.
"""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path

SOURCE = "https://github.com/sslpath/sslpath/blob/main"


@dataclass(frozen=True)
class Place:
    """A notion and where it lives.

    Attributes:
        notion: What it is.
        symbol: Its symbol in this book, TeX.
        known: Where the notion comes from, and with which standing.
        where: ``module:object``.
    """

    notion: str
    symbol: str
    known: str
    where: str


PLACES = (
    Place("near and far distances", r"$r_\mathrm{near}, r_\mathrm{far}$",
          "paper, abstract (idea: stated); near: second hand; far: unverified",
          "pairs:near_far_um"),
    Place("anchor, near tile, far tile", r"$(a, n, f)$",
          "ours; how the paper draws pairs is not known", "pairs:sample_pairs"),
    Place("all pairs of a batch", r"$N_{ij}, F_{ij}$", "ours", "pairs:pair_masks"),
    Place("batches of a few slides", "", "ours; compare Conditional SSL 2022",
          "pairs:BatchSampler"),
    Place("label agreement by distance", r"$P(y_i = y_j \mid d)$", "ours", "pairs:label_agreement"),
    Place("siamese network", r"$f_\theta$", "paper, abstract (stated)", "model:SiameseNetwork"),
    Place("descriptor of length 128", r"$z = f_\theta(x) / \lVert f_\theta(x) \rVert$",
          "length: paper, abstract (stated); unit length: ours", "model:SiameseNetwork.forward"),
    Place("contrastive loss", r"$d^2$, $\max(0, m - d)^2$",
          "Hadsell, Chopra, LeCun 2006, eq. 4; in the paper (second hand)", "model:pair_loss"),
    Place("the same on a batch", "", "ours", "model:contrastive_loss"),
    Place("margin", "$m$", "Hadsell, Chopra, LeCun 2006; the paper's is not known",
          "settings:TrainConfig"),
    Place("collapse", r"spread, effective rank", "effective rank: Roy and Vetterli 2007",
          "model:collapse"),
    Place("augmentation", "", "colour jitter, flips, rotation: second hand; stain jitter: ours",
          "augment:augment"),
    Place("the paper's settings, with standing", "", "see the table of settings",
          "settings:paper_preset"),
    Place("average descriptor distance ratio, global",
          r"$\bar d_\mathrm{far} / \bar d_\mathrm{near}$",
          "ratio: paper, abstract (stated); name: second hand; definition here: ours",
          "metrics:addr_global"),
    Place("the same, median slide", "", "name: unverified; definition here: ours",
          "metrics:addr_median"),
    Place("tumour retrieval", r"P@$k$", "paper, abstract (task: stated); protocol here: ours",
          "retrieval:evaluate"),
    Place("own patient left out", "", "ours", "neighbours:neighbours"),
    Place("ImageNet baseline", "", "paper, abstract (stated)", "imagenet:load_imagenet"),
)  # fmt: skip


def locate(where: str) -> tuple[str, int]:
    """File, from the top of the repository, and line of ``module:object``.

    Raises:
        AttributeError: If there is no such object.

    Example:
        >>> locate("model:pair_loss")[0]
        'sslpath/model.py'
    """
    module_name, _, path = where.partition(":")
    module = importlib.import_module(f"sslpath.{module_name}")
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    _, line = inspect.getsourcelines(found)
    file = Path(inspect.getsourcefile(found) or "")
    return f"sslpath/{file.name}", line


def paper_map() -> str:
    """The table as Markdown: notion, symbol, how it is known, module, line."""
    lines = ["| notion | symbol | source and standing | code |", "| --- | --- | --- | --- |"]
    for place in PLACES:
        file, line = locate(place.where)
        name = place.where.replace(":", ".")
        symbol = place.symbol.replace("|", r"\vert ")
        link = f"[`{name}`]({SOURCE}/{file}#L{line}), line {line}"
        lines.append(f"| {place.notion} | {symbol} | {place.known} | {link} |")
    return "\n".join(lines)
