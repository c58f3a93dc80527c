"""The training loop: batches of pairs, AdamW, and a state that survives being killed.

All randomness of a step comes from (seed, step), none from what happened before. So a run that was
killed at any moment, and is started again, ends on the CPU with the same weights, bit for bit, as
one that was never disturbed; and reading tiles in other processes changes nothing.

The run folder: ``config.json`` (all settings), ``log.jsonl`` (one line every ``log_every`` steps),
``state.safetensors`` (all that is needed to go on) and, when done, ``checkpoint.safetensors``.
Under ``torchrun`` several processes, such as one a GPU, share the work: :mod:`sslpath.ranks`.
What this module does not do: early stopping, and any look at labels.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sslpath.augment import augment
from sslpath.backbones import Precision, resolve_precision
from sslpath.batches import Batches, count_twins, load
from sslpath.errors import ConfigError
from sslpath.files import only_one
from sslpath.imagenet import Encoder
from sslpath.model import (
    ModelConfig,
    SiameseNetwork,
    collapse,
    contrastive_loss,
    load_model,
    save_model,
)
from sslpath.progress import hide_bar
from sslpath.ranks import Ranks, refuse_head_of_many
from sslpath.runs import (
    CHECKPOINT,
    append_log,
    claim,
    load_state,
    read_log,
    save_state,
    trim_log,
)
from sslpath.settings import PAPER, TrainConfig, default_config, paper_preset
from sslpath.sources import TileSource

__all__ = [
    "PAPER",
    "TrainConfig",
    "default_config",
    "learning_rate",
    "paper_preset",
    "read_log",
    "train",
]

# Below this spread, or this effective rank, descriptors carry next to nothing.
COLLAPSED_SPREAD, COLLAPSED_RANK = 0.05, 1.5


def train(
    tiles: pd.DataFrame,
    config: TrainConfig,
    model_config: ModelConfig,
    run_dir: str | Path,
    *,
    features: NDArray[np.float32] | None = None,
    views: Sequence[NDArray[np.float32]] = (),
    source: TileSource | None = None,
    encoder: Encoder | None = None,
    progress: bool = True,
    device: str = "auto",
    workers: int = 0,
    compiled: bool = False,
) -> SiameseNetwork:
    """Train a network, or go on with an interrupted run, or return a finished one.

    Rows whose split is ``train`` are used; if no row of the table has a split, all are.

    Args:
        tiles: A table of tiles. Labels are never looked at.
        config: How to train.
        model_config: What to train.
        run_dir: Folder of the run.
        features: With a frozen trunk, the features of each row of ``tiles``, ``(n, feature_dim)``.
        views: With a frozen trunk, features of augmented views of the same rows, each
            ``(n, feature_dim)``; see :func:`sslpath.embed.embed_views`. Half of the tiles of a
            batch come as they are, the others as one of their views, drawn anew in each step: what
            augmentation is for trunks that learn from pixels. Twins (``config.twins``) come in yet
            another view, or as they are if their first was one.
        source: Else, where to read the tiles' pixels.
        encoder: With ``finetune``, the weights to start from. With ``frozen``, the encoder that
            made the features, unless ``model_config.encoder`` says it: its provenance is stored.
        progress: Whether to draw a bar.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        workers: Processes that read tiles; 0 reads in this one. Under ``torchrun``, of each.
        compiled: Whether PyTorch compiles the trunk and the colours of augmentation first
            (``torch.compile``). That takes time at the start and changes weights by rounding; a
            trunk that has dropout of its own draws it otherwise.

    Returns:
        The network, in evaluation mode, on ``device``.

    Raises:
        ConfigError: If the settings contradict the data or the run in the folder, or the loss is
            no longer finite.
        WeightsError: If the state to resume from is damaged.
        BusyError: If another process trains in the folder.
        TileReadError: If fewer than two tiles of a batch can be read.
    """
    refuse_head_of_many(model_config.trunk)
    if encoder is not None and model_config.trunk != "scratch":
        model_config = replace(model_config, encoder=encoder.provenance)
    chosen = training_rows(tiles)
    part = tiles.iloc[chosen]
    part.attrs = tiles.attrs
    _check(tiles, features, views, source, encoder, config, model_config)
    known = None
    if features is not None:
        # One after the other: together, features and views may be half of the memory.
        known = np.empty((1 + len(views), len(chosen), model_config.feature_dim), np.float32)
        for i, each in enumerate((features, *views)):
            known[i] = each[chosen]
    ranks = Ranks(device)
    where, run = ranks.device, Path(run_dir)
    # Before the folder is claimed: settings that fit no pair would be those of the run.
    batches = Batches(part, config, source, share=(ranks.number, ranks.count))
    with only_one(run) if ranks.is_first else nullcontext():
        if ranks.is_first:
            claim(run, _settings(part, known, config, model_config))
        ranks.wait()
        if (run / CHECKPOINT).exists():
            return load_model(run / CHECKPOINT).to(where)

        # The caller's random state is left as it was.
        devices = [where] if where.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _threads(1 if devices else None):
            torch.manual_seed(config.seed)
            network = _start(model_config, encoder, known).to(where)
            network.compiled, network.batch_sizes = compiled, batches.images_per_step
            _loop(run, network, batches, known, config, ranks, workers, progress)
        if ranks.is_first:
            _warn_if_collapsed(run)
            save_model(network, run / CHECKPOINT)
        ranks.wait()
    # From disk, and so without what compiling and other processes have added.
    with torch.random.fork_rng(devices=[]):  # a network before its weights are read is random
        return load_model(run / CHECKPOINT).to(where)


def training_rows(tiles: pd.DataFrame) -> NDArray[np.intp]:
    """Positions of the rows to train on: split ``train``, or all if no row has a split.

    Raises:
        ConfigError: If the table is split but no row is for training.
    """
    split = tiles["split"].fillna("").to_numpy(str)
    if not (split != "").any():
        return np.arange(len(tiles))
    chosen = np.flatnonzero(split == "train")
    if not len(chosen):
        raise ConfigError(
            f"No tile has the split `train`, only {sorted(set(split.tolist()))}. Split the table "
            "anew, or clear the column to train on all tiles."
        )
    return chosen


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of a step: a linear rise during the warm-up, then half a cosine down to 0.

    Example:
        >>> config = TrainConfig(steps=100, warmup=0.1, lr=1.0)
        >>> [round(learning_rate(step, config), 2) for step in (0, 9, 55, 99)]
        [0.1, 1.0, 0.5, 0.0]
    """
    warm = round(config.warmup * config.steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm))) / 2


def _loop(
    run: Path,
    network: SiameseNetwork,
    batches: Batches,
    features: NDArray[np.float32] | None,
    config: TrainConfig,
    ranks: Ranks,
    workers: int,
    progress: bool,
) -> None:
    """Train from the state in ``run``, or from the start, to the last step."""
    device = network.centre.device
    optimiser = _optimiser(network, config)
    first = load_state(run, network, optimiser)
    if ranks.is_first:
        trim_log(run, first)
    together = ranks.wrap(network)
    on_device = None if features is None else torch.from_numpy(features).to(device)
    silent = hide_bar(progress and ranks.is_first)
    loaded = load(batches, range(first, config.steps), workers, device)
    bar = tqdm(loaded, "train", total=config.steps, initial=first, disable=silent)
    together.train()
    since, seen, unread = time.perf_counter(), 0, 0
    finite = torch.tensor(True, device=device)
    for step, batch in enumerate(bar, start=first):
        generator = _seed(config.seed, step)
        rate = learning_rate(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        lost = ranks.any(batch.lost)
        batch, unread = batch.without(lost), unread + int(lost.sum())
        tiles = len(batch.positions)
        twins = _drawn_twins(tiles, config.twins, generator)
        places = torch.cat([torch.arange(tiles), twins])
        if on_device is not None:
            which = _drawn_views(len(on_device), tiles, twins, generator)
            rows = torch.from_numpy(batch.positions)[places]
            x = on_device[which.to(device, non_blocking=True), rows.to(device, non_blocking=True)]
        else:
            assert batch.images is not None
            own = torch.from_numpy(batch.owners == ranks.number)
            image = (own.cumsum(0) - 1)[places[own[places]]]
            if ranks.number:  # so that tiles of two processes are not changed alike
                generator = torch.Generator().manual_seed(generator.initial_seed() + ranks.number)
            x = batch.images
            if len(twins):
                x = x[image.to(device, non_blocking=True)]
            x = augment(x, generator, config.augmentation, compiled=network.compiled)
        with autocast_of(network, config.precision):
            descriptors = together(x, ranks.exchange(torch.from_numpy(batch.owners)[places]))
        near, far = batch.near, batch.far
        if len(twins):
            both = np.ix_(places.numpy(), places.numpy())
            near, far = near[both], far[both]
        masks = torch.from_numpy(near), torch.from_numpy(far)
        loss = contrastive_loss(descriptors, *masks, config.margin)
        total = loss.total
        if len(twins):
            apart = descriptors[twins.to(device, non_blocking=True)] - descriptors[tiles:]
            total = total + config.twin_weight * apart.square().sum(dim=1).mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimiser.step()
        done, seen = step + 1, seen + len(places)
        logs, saves = (
            done % every == 0 or done == config.steps
            for every in (config.log_every, config.checkpoint_every)
        )
        # Looked at where numbers are needed anyway: at once, a GPU would have to be waited for.
        finite = finite & torch.isfinite(total.detach())
        if (logs or saves) and not finite:
            raise ConfigError(
                f"The loss is no longer finite by step {done} of {run}. Lower `lr`, or look for "
                "NaN in the features."
            )
        if not ranks.is_first:
            continue
        if logs:
            line = {
                "step": done,
                "loss": total.item(),
                "near_loss": loss.near.item(),
                "far_loss": loss.far.item(),
                "lr": rate,
                **collapse(descriptors.cpu()),
                # Symmetric masks hold each pair twice, those of explicit pairs once.
                "near_pairs": int((near | near.T).sum()) // 2,
                "far_pairs": int((far | far.T).sum()) // 2,
                "unread_tiles": unread,
                "images_per_s": seen / (time.perf_counter() - since),
            }
            append_log(run, line)
            bar.set_postfix(loss=f"{line['loss']:.3f}", spread=f"{line['spread']:.2f}")
            since, seen, unread = time.perf_counter(), 0, 0
        if saves:
            save_state(run, network, optimiser, done)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute on the CPU with so many threads, or with as many as before.

    Beside a GPU that is little, and one thread will do: several wait for each other where the
    processes that read keep all cores busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _drawn_twins(n: int, share: float, generator: torch.Generator) -> Tensor:
    """Which of n tiles come twice, so that ``share`` of all places are for the second time."""
    if share == 0:
        return torch.empty(0, dtype=torch.long)
    drawn = torch.randperm(n, generator=generator)[: count_twins(n, share)]
    return torch.sort(drawn)[0]


def _drawn_views(views: int, n: int, twins: Tensor, generator: torch.Generator) -> Tensor:
    """The view of each of n tiles, then of the twins, who differ from themselves.

    0, the tile as it is, with probability 1/2; else a view, 1 to views-1.
    """
    if views == 1:
        return torch.zeros(n, dtype=torch.long)
    which = torch.randint(1, views, (n,), generator=generator)
    which = which * (torch.rand(n, generator=generator) < 0.5)
    further = torch.randint(1, views, (len(twins),), generator=generator)
    return torch.cat([which, (which[twins] + further) % views])


def _seed(seed: int, step: int) -> torch.Generator:
    """Seed dropout (PyTorch's global generator) and return the generator of augmentation."""
    both = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    torch.manual_seed(int(both[0]))
    return torch.Generator().manual_seed(int(both[1]))


def autocast_of(network: SiameseNetwork, precision: Precision = "auto") -> torch.autocast:
    """Lower precision for the trunk where that is faster; the head stays in float32."""
    device = network.centre.device
    low = network.trunk is not None and (
        resolve_precision(precision, network.config.arch, device) == torch.bfloat16
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


def _start(
    model: ModelConfig, encoder: Encoder | None, features: NDArray[np.float32] | None
) -> SiameseNetwork:
    """A network before its first step."""
    network = SiameseNetwork(model)
    if features is not None:
        network.fit_scale(torch.from_numpy(features).flatten(0, 1))
    if network.trunk is not None and model.trunk == "finetune":
        assert encoder is not None
        network.trunk.load_state_dict(encoder.trunk.state_dict())
    return network


def _optimiser(network: SiameseNetwork, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and the scales of batch normalisation do not decay."""
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def _check(
    tiles: pd.DataFrame,
    features: NDArray[np.float32] | None,
    views: Sequence[NDArray[np.float32]],
    source: TileSource | None,
    encoder: Encoder | None,
    config: TrainConfig,
    model: ModelConfig,
) -> None:
    """A frozen trunk learns from features and their views, another one from pixels.

    Raises:
        ConfigError: If the trunk does not get what it needs, or gets what it has no use for.
    """
    if model.trunk != "frozen":
        if source is None:
            raise ConfigError(f"The trunk `{model.trunk}` learns from pixels: pass `source`.")
        if len(views):
            raise ConfigError(
                f"Views are for a frozen trunk; `{model.trunk}` augments tiles as it learns."
            )
        if features is not None:
            raise ConfigError(
                f"Features are for a frozen trunk; `{model.trunk}` learns from pixels. Leave out "
                "`features`, or choose the trunk `frozen`."
            )
        if model.trunk == "finetune" and (encoder is None or encoder.arch != model.arch):
            raise ConfigError(
                f"Fine-tuning starts from ImageNet weights of {model.arch}: pass "
                f"`encoder=load_imagenet({model.arch!r}, ...)`, or choose the trunk `scratch`."
            )
        return
    if features is None:
        raise ConfigError("A frozen trunk learns from features: pass `features`, a row a tile.")
    if config.twins and not len(views):
        raise ConfigError("Twins of a frozen trunk are views: pass `views`, or set `twins` to 0.")
    for one in (features, *views):
        if one.shape != (len(tiles), model.feature_dim):
            raise ConfigError(
                f"The features have the shape {one.shape}; {len(tiles)} tiles and this model "
                f"need ({len(tiles)}, {model.feature_dim})."
            )
        rows = range(0, len(one), 65_536)
        if not all(np.isfinite(one[i : i + 65_536]).all() for i in rows):
            raise ConfigError("Some features are not finite; compute them again.")


def _settings(
    tiles: pd.DataFrame,
    features: NDArray[np.float32] | None,
    config: TrainConfig,
    model: ModelConfig,
) -> dict[str, Any]:
    """Everything that decides the weights, as JSON: what a resumed run must agree with."""
    digest = hashlib.sha256()
    digest.update("\n".join(tiles["slide_id"].astype(str)).encode())
    digest.update(tiles[["x", "y", "size"]].to_numpy(np.int64).tobytes())
    if features is not None:
        digest.update(np.ascontiguousarray(features).data)
    data = {
        "tiles": len(tiles),
        "slides": int(tiles["slide_id"].nunique()),
        "mpp": tiles.attrs["mpp"],
        "tile_px": tiles.attrs["tile_px"],
        "sha256": digest.hexdigest(),
    }
    return {"training": asdict(config), "model": asdict(model), "data": data}


def _warn_if_collapsed(run: Path) -> None:
    """Say so if the descriptors of the last logged batch were all but the same."""
    last = read_log(run)[-1]
    if last["spread"] < COLLAPSED_SPREAD or last["effective_rank"] < COLLAPSED_RANK:
        warnings.warn(
            f"The descriptors have collapsed (spread {last['spread']:.3f}, effective rank "
            f"{last['effective_rank']:.1f}): check that batches hold far pairs, raise the margin, "
            "lower `lr`.",
            stacklevel=3,
        )
