"""The settings of training, and those of the paper with how each is known.

What this module does not do: settings of the network, which are :class:`sslpath.model.ModelConfig`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sslpath.augment import Augmentation
from sslpath.backbones import Precision
from sslpath.errors import ConfigError
from sslpath.model import ModelConfig, Trunk


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults suit a head on frozen features, see :func:`default_config`.

    Attributes:
        near_tiles: Near pairs are at most so many tile widths apart.
        far_tiles: Far pairs are farther apart than this.
        margin: $m$ of the contrastive loss.
        pairs: ``in-batch`` uses all near and far pairs of a batch; ``explicit`` draws triples of
            anchor, near and far tile.
        steps: Batches to train on.
        slides_per_batch: Slides in a batch.
        tiles_per_slide: Tiles of each, twins included; with explicit pairs, the product counts all
            tiles.
        twins: Share of a batch's places that show a tile of it again, in another view (0 to 0.5).
            The two are pulled together as near pairs are: what only tells views apart, such as
            stain, blur or scale, is unlearned.
        twin_weight: Of their mean squared distance in the loss; near pairs have 1.
        lr: Peak learning rate.
        weight_decay: Of AdamW, on matrices only.
        warmup: Share of the steps in which the rate rises from 0; then it falls as a cosine.
        clip: Largest L2 norm of the gradient.
        precision: ``auto``, ``float32`` or ``bfloat16``, for the trunk; the head is float32.
        augmentation: Of tiles that a trunk learns from; a frozen one has views, see ``train``.
        seed: Of everything random.
        checkpoint_every: Steps between two states to resume from.
        log_every: Steps between two lines of the log.
    """

    near_tiles: float = 8
    far_tiles: float = 30
    margin: float = 1.2
    pairs: Literal["in-batch", "explicit"] = "in-batch"
    steps: int = 150
    slides_per_batch: int = 32
    tiles_per_slide: int = 32
    twins: float = 0.0
    twin_weight: float = 0.3
    lr: float = 1e-4
    weight_decay: float = 1e-2
    warmup: float = 0.05
    clip: float = 1.0
    precision: Precision = "auto"
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.pairs not in ("in-batch", "explicit"):
            raise ConfigError(f"Unknown pairs {self.pairs!r}; choose `in-batch` or `explicit`.")
        if min(self.steps, self.checkpoint_every, self.log_every) < 1:
            raise ConfigError("steps, checkpoint_every and log_every must be at least 1.")
        if not (self.lr > 0 and self.margin > 0 and self.clip > 0 and 0 <= self.warmup < 1):
            raise ConfigError("lr, margin and clip must be above 0, and warmup in 0..1.")
        if not (0 <= self.twins <= 0.5 and self.twin_weight >= 0):
            raise ConfigError("twins must be in 0..0.5, and twin_weight not below 0.")
        if self.slides_per_batch < 1 or self.different_tiles < 2:
            raise ConfigError(
                f"slides_per_batch {self.slides_per_batch}, tiles_per_slide {self.tiles_per_slide} "
                f"and twins {self.twins:g} leave {self.different_tiles} different tiles per slide: "
                "a pair takes at least 1 slide and 2 tiles. Raise the first two, or lower twins."
            )

    @property
    def different_tiles(self) -> int:
        """Tiles per slide in a batch without the places that twins take.

        Example:
            >>> TrainConfig(tiles_per_slide=16, twins=0.25).different_tiles
            12
        """
        return self.tiles_per_slide - round(self.twins * self.tiles_per_slide)


DEPTHS_STEPS, DEPTHS_DROPOUT, DEPTHS_TWINS = 400, 0.3, 0.2


def default_config(trunk: Trunk, *, depths: bool = False, views: bool = False) -> TrainConfig:
    """Settings to start from: a head on frozen features, or a trunk that learns from pixels.

    Those of the head are chosen on real tissue (``benchmarks/tune_head.py``). A head on features of
    several depths (``depths``) learns for longer: there is more to learn. If it learns from
    augmented ``views`` of them as well, some tiles of a batch come as twins. Those of the other
    trunks are ordinary ones for AdamW that fit a GPU of 16 GB; they are not tuned.

    Example:
        >>> default_config("frozen").slides_per_batch, default_config("finetune").slides_per_batch
        (32, 8)
    """
    if trunk == "frozen":
        if not depths:
            return TrainConfig()
        return TrainConfig(steps=DEPTHS_STEPS, twins=DEPTHS_TWINS if views else 0.0)
    return TrainConfig(
        slides_per_batch=8,
        tiles_per_slide=16,
        steps=5000,
        lr=1e-4 if trunk == "finetune" else 1e-3,
        checkpoint_every=250,
    )


def default_dropout(*, depths: bool = False, views: bool = False) -> float:
    """Dropout of a head: for features of several depths without views, which it could memorise.

    Example:
        >>> default_dropout(depths=True), default_dropout(depths=True, views=True)
        (0.3, 0.0)
    """
    return DEPTHS_DROPOUT if depths and not views else 0.0


@dataclass(frozen=True)
class Standing:
    """A setting of the paper, and how it is known."""

    value: Any
    standing: Literal["stated", "second hand", "unverified"]


# What is known of the settings of arXiv 1905.08139. "stated": in its abstract. "second hand": a
# later re-implementation reports or uses it. "unverified": remembered, not checked. Margin,
# optimiser, learning rate, batch, epochs, number of pairs and magnification are not known.
#
# Two far thresholds are told. A project that re-implements the method says that its 6,720 px, 30
# tiles of 224 px, are the paper's; 9,408 px, 42 tiles, are only remembered. The preset takes 30.
PAPER = {
    "descriptor_dim": Standing(128, "stated"),
    "near_px": Standing(1792, "second hand"),
    "far_px_of_reimplementation": Standing(6720, "second hand"),
    "augmentation": Standing(("colour jitter", "flips", "rotation"), "second hand"),
    "loss": Standing("contrastive", "second hand"),
    "tile_px": Standing(224, "unverified"),
    "near_tiles": Standing(8, "unverified"),
    "far_px": Standing(9408, "unverified"),
    "far_tiles": Standing(42, "unverified"),
    "arch": Standing("resnet50", "unverified"),
}


def paper_preset(trunk: Trunk = "finetune") -> tuple[TrainConfig, ModelConfig]:
    """The settings nearest to the paper's; what is not known of it keeps our defaults.

    The preset fixes the distances, how pairs are drawn, augmentation, architecture, the size of
    tiles and the length of the descriptor. Steps, batch and learning rate are those of the trunk,
    see :func:`default_config`.

    Args:
        trunk: The paper's learns; ``frozen`` trains a head with the paper's distances and pairs.

    Example:
        >>> training, model = paper_preset()
        >>> training.far_tiles, training.pairs, model.arch, model.descriptor_dim
        (30, 'explicit', 'resnet50', 128)
        >>> paper_preset("scratch")[0].lr == default_config("scratch").lr
        True
    """
    training = replace(
        default_config(trunk),
        near_tiles=PAPER["near_tiles"].value,
        far_tiles=PAPER["far_px_of_reimplementation"].value // PAPER["tile_px"].value,
        pairs="explicit",
        augmentation=Augmentation(stain=0, stain_shift=0),
    )
    model = ModelConfig(
        arch=PAPER["arch"].value,
        trunk=trunk,
        descriptor_dim=PAPER["descriptor_dim"].value,
        input_px=PAPER["tile_px"].value,
    )
    return training, model
