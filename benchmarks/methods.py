"""How descriptors come about: ours, its rivals, and variants of ours that are not in the package.

Each method of `KINDS` takes ``(inputs, setting, train, test, seed)``, the rows to learn from and
those to describe as masks, and returns the descriptors of the test rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tile_sets import Floats, Inputs
from torch import Tensor

from sslpath.batches import Batches
from sslpath.imagenet import load_imagenet
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss
from sslpath.settings import TrainConfig, default_config, default_dropout
from sslpath.sources import open_source
from sslpath.training import learning_rate, train

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """A method.

    Attributes:
        kind: How its descriptors come about: a key of `KINDS`.
        features: What goes in, see `tile_sets.Inputs`.
        changes: Settings of training or of the head, for a ``variant`` its ``loss``, and a kind of
            ``views``.
    """

    kind: str
    features: str = "depths"
    changes: dict[str, Any] = field(default_factory=dict)


def plain(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """The features as they are."""
    return inputs[one.features][test]


def centred(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """Less the mean of the training tiles."""
    x = inputs[one.features]
    return x[test] - x[train_rows].mean(axis=0)


def pca(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """128 principal components of the training tiles."""
    x = inputs[one.features]
    fitted = PCA(128, random_state=0, whiten=one.changes.get("whiten", False)).fit(x[train_rows])
    return np.asarray(fitted.transform(x[test]), np.float32)


def scaled(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """As a head gets them before it learns: each depth equally loud."""
    x = torch.from_numpy(inputs[one.features])
    head = SiameseNetwork(configs(inputs, one, seed)[1])
    head.fit_scale(x[train_rows])
    return ((x[test] - head.centre) / head.scale).numpy()


def configs(inputs: Inputs, one: Setting, seed: int) -> tuple[TrainConfig, ModelConfig]:
    """Settings of training and of the head."""
    deep, views = one.features.endswith("depths"), "views" in one.changes
    encoder = inputs.encoder_for(one.features)
    about = {k: v for k, v in encoder.provenance.items() if deep or k != "blocks"}
    config = replace(
        default_config("frozen", depths=deep, views=views),
        near_tiles=inputs.set.near_tiles,
        far_tiles=inputs.set.far_tiles,
        seed=seed,
    )
    model = ModelConfig(
        arch=encoder.arch,
        feature_dim=inputs[one.features].shape[1],
        input_px=encoder.input_px,
        dropout=default_dropout(depths=deep, views=views),
        encoder=about,
    )
    of_training = {k: v for k, v in one.changes.items() if hasattr(config, k)}
    of_model = {k: v for k, v in one.changes.items() if hasattr(model, k)}
    return replace(config, **of_training), replace(model, **of_model)


def spatial(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """The method: a head that learns from near and far pairs."""
    return trained(inputs, one, test, seed).encode(inputs[one.features][test])


def trained(inputs: Inputs, one: Setting, test: Mask, seed: int) -> SiameseNetwork:
    """The head of a fold; a finished run is read, not trained again."""
    tiles = inputs.tiles.copy()
    tiles["split"] = np.where(test, "test", "train")
    config, model = configs(inputs, one, seed)
    held = "+".join(map(str, np.unique(inputs.folds[test])))
    name = f"{one.features} {sorted(one.changes.items())} fold {held} seed {seed}"
    views = inputs.views(one.changes["views"]) if "views" in one.changes else []
    return train(
        tiles, config, model, inputs.work / "runs" / name,
        features=inputs[one.features], views=views, device="cpu", progress=False,
    )  # fmt: skip


def learning_trunk(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """The method with a trunk that learns from pixels: fine-tuned, or from scratch."""
    tiles, source = inputs.tiles.copy(), open_source(inputs.tiles)
    tiles["split"] = np.where(test, "test", "train")
    trunk, arch, px = (one.changes[key] for key in ("trunk", "arch", "input_px"))
    config = replace(
        default_config(trunk),
        near_tiles=inputs.set.near_tiles,
        far_tiles=inputs.set.far_tiles,
        seed=seed,
    )
    config = replace(config, **{k: v for k, v in one.changes.items() if hasattr(config, k)})
    model = ModelConfig(arch, trunk)
    model = replace(model, **{k: v for k, v in one.changes.items() if hasattr(model, k)})
    encoder = load_imagenet(arch, inputs.weights, px) if trunk == "finetune" else None
    held = "+".join(map(str, np.unique(inputs.folds[test])))
    network = train(
        tiles, config, model,
        inputs.work / "runs" / f"{trunk} {sorted(one.changes.items())} fold {held} seed {seed}",
        source=source, encoder=encoder,
        # A GPU is faster than one process reads.
        workers=6 if torch.cuda.is_available() else 0,
    )  # fmt: skip
    rows = inputs.tiles[test]
    parts = [rows.iloc[i : i + 128] for i in range(0, len(rows), 128)]
    return np.concatenate([network.encode(source.read(part)) for part in parts])


class Step(NamedTuple):
    """What a loss is computed from: b descriptors and what is known of their tiles.

    Attributes:
        z: Descriptors, ``(b, d)``.
        x: Features, scaled as the head takes them, ``(b, f)``.
        tile: Numbers of the tiles; two views of one tile have the same.
        slide: Numbers of the slides.
        near: Near pairs, bool ``(b, b)``; two views of one tile are no pair.
        far: Far pairs.
        distance: Between the tiles of a slide, in tile widths, ``(b, b)``.
        margin: Of the loss.
        generator: For what is drawn.
    """

    z: Tensor
    x: Tensor
    tile: Tensor
    slide: Tensor
    near: Tensor
    far: Tensor
    distance: Tensor
    margin: float
    generator: torch.Generator


def simclr(step: Step) -> Tensor:
    """InfoNCE over all tiles of the batch (Chen et al. 2020), temperature 0.5."""
    itself = torch.eye(len(step.z), dtype=torch.bool)
    own = (step.tile[:, None] == step.tile) & ~itself
    similarity = (step.z @ step.z.T / 0.5).masked_fill(itself, -1e4)
    return F.cross_entropy(similarity, own.float().argmax(dim=1))


def instance_discrimination(step: Step) -> Tensor:
    """Our loss, with a tile's other view as near and all other tiles of its slide as far."""
    same = step.tile[:, None] == step.tile
    near = same & ~torch.eye(len(step.z), dtype=torch.bool)
    far = (step.slide[:, None] == step.slide) & ~same
    return contrastive_loss(step.z, near, far, step.margin).total


def far_of_any_slide(step: Step) -> Tensor:
    """Our loss, with the tiles of all other slides as far, too."""
    other = step.slide[:, None] != step.slide
    return contrastive_loss(step.z, step.near, step.far | other, step.margin).total


def soft_near(step: Step) -> Tensor:
    """Our loss, with near pairs that weigh less the farther apart: exp(-distance / 4 tiles)."""
    squared = (2 - 2 * step.z @ step.z.T)[step.near]
    weight = torch.exp(-step.distance[step.near] / 4)
    far = contrastive_loss(step.z, step.near, step.far, step.margin).far
    return (weight * squared).sum() / weight.sum() + far


def far_alike_dropped(step: Step) -> Tensor:
    """Our loss, without the fifth of the far pairs whose features are the most alike."""
    norms = step.x.square().sum(dim=1)
    apart = norms[:, None] + norms - 2 * step.x @ step.x.T
    far = step.far & (apart > torch.quantile(apart[step.far][:1_000_000], 0.2))
    return contrastive_loss(step.z, step.near, far, step.margin).total


def near_averaged(step: Step) -> Tensor:
    """Our loss, with the mean of a tile's near tiles as its one near partner."""
    some = step.near.any(dim=1)
    mean = F.normalize(step.near.float() @ step.z, dim=1)
    near = (step.z - mean).square().sum(dim=1)[some].mean()
    return near + contrastive_loss(step.z, step.near, step.far, step.margin).far


def triplet(step: Step) -> Tensor:
    """Triplet loss (Schroff et al. 2015): one near and one far tile drawn for each anchor."""
    some = step.near.any(dim=1) & step.far.any(dim=1)
    lots = torch.rand(step.near.shape, generator=step.generator)
    near = (lots * step.near).argmax(dim=1)[some]
    far = (lots * step.far).argmax(dim=1)[some]
    z = step.z[some]
    to_near, to_far = ((z - step.z[of]).square().sum(dim=1) for of in (near, far))
    return (to_near - to_far + step.margin).clamp(min=0).mean()


def info_nce(step: Step) -> Tensor:
    """InfoNCE (van den Oord et al. 2018), near tiles as positives, far ones as negatives."""
    return _info_nce(step, step.far)


def info_nce_any(step: Step) -> Tensor:
    """The same with the tiles of all other slides as negatives, too."""
    return _info_nce(step, step.far | (step.slide[:, None] != step.slide))


def _info_nce(step: Step, negative: Tensor, temperature: float = 0.2) -> Tensor:
    likeness = (step.z @ step.z.T - 1) / temperature
    against = (likeness.exp() * negative).sum(dim=1, keepdim=True)
    log_share = likeness - torch.log(likeness.exp() + against)
    some = step.near.any(dim=1) & negative.any(dim=1)
    of_each = (log_share * step.near).sum(dim=1) / step.near.sum(dim=1).clamp(min=1)
    return -of_each[some].mean()


LOSSES: dict[str, Callable[[Step], Tensor]] = {
    "SimCLR": simclr,
    "instance discrimination": instance_discrimination,
    "far of any slide": far_of_any_slide,
    "soft near": soft_near,
    "far alike dropped": far_alike_dropped,
    "near averaged": near_averaged,
    "triplet": triplet,
    "InfoNCE": info_nce,
    "InfoNCE, any slide": info_nce_any,
}
OF_VIEWS = ("SimCLR", "instance discrimination")  # these see each tile of a batch twice


def variant(inputs: Inputs, one: Setting, train_rows: Mask, test: Mask, seed: int) -> Floats:
    """Learn with another loss.

    The same head, optimiser, steps and features a step as `spatial`; a method of two views takes
    half as many tiles.
    """
    changes = {k: v for k, v in one.changes.items() if k not in ("loss", "views")}
    config, model = configs(inputs, replace(one, changes=changes), seed)
    loss, twice = LOSSES[one.changes["loss"]], one.changes["loss"] in OF_VIEWS
    rows = np.flatnonzero(train_rows)
    tiles = inputs.tiles.iloc[rows].reset_index(drop=True)
    tiles.attrs = inputs.tiles.attrs
    seen = inputs.views(one.changes["views"]) if twice else [inputs[one.features]]
    views = torch.stack([torch.from_numpy(each[rows]) for each in seen])
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    head = SiameseNetwork(model)
    head.fit_scale(torch.from_numpy(inputs[one.features][rows]))
    slide = torch.from_numpy(tiles["slide_id"].factorize()[0])
    at = torch.from_numpy(tiles[["x", "y"]].to_numpy(np.float64) / tiles[["size"]].to_numpy())
    optimiser = torch.optim.AdamW(
        [p for p in head.parameters() if p.ndim > 1], weight_decay=config.weight_decay
    )
    rest = [p for p in head.parameters() if p.ndim == 1]
    optimiser.add_param_group({"params": rest, "weight_decay": 0.0})
    if twice:
        config = replace(config, tiles_per_slide=config.tiles_per_slide // 2)
    batches = Batches(tiles, config, None)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        batch = batches[step]
        tile, near, far = (
            torch.from_numpy(each) for each in (batch.positions, batch.near, batch.far)
        )
        if twice:
            tile, near, far = tile.repeat(2), near.repeat(2, 2), far.repeat(2, 2)
        x = views[drawn_views(len(tile), len(views), twice, rng), tile]
        distance = torch.cdist(at[tile], at[tile])
        scaled_x = (x - head.centre) / head.scale
        made = Step(
            head(x), scaled_x, tile, slide[tile], near, far, distance, config.margin, generator
        )
        optimiser.zero_grad()
        loss(made).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
        optimiser.step()
    return head.eval().encode(inputs[one.features][test])


def drawn_views(n: int, views: int, twice: bool, rng: np.random.Generator) -> Tensor:
    """Which view of each tile; if ``twice``, the second half shows the first's tiles otherwise."""
    first = rng.integers(views, size=n // 2 if twice else n)
    if not twice:
        return torch.from_numpy(first)
    second = (first + rng.integers(1, views, size=n // 2)) % views
    return torch.from_numpy(np.concatenate([first, second]))


KINDS: dict[str, Callable[[Inputs, Setting, Mask, Mask, int], Floats]] = {
    "plain": plain,
    "centred": centred,
    "pca": pca,
    "scaled": scaled,
    "spatial": spatial,
    "learning trunk": learning_trunk,
    "variant": variant,
}
