"""Train on tiles whose pixels say where they are, or compute gradients; see test_ranks.py.

``torchrun --nproc-per-node 2 train_with_others.py RUN train|gradients|tuned``, or without torchrun.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_training import QUICK, Painted, some_tiles
from torch import nn
from torchvision.models._api import register_model  # there is no public name

from sslpath.augment import NONE
from sslpath.model import ModelConfig, SiameseNetwork, contrastive_loss
from sslpath.ranks import Ranks
from sslpath.training import train


def plain(weights: object = None) -> nn.Module:
    """A network without batch normalisation: a process's share is treated as the whole would be."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 24), nn.ReLU(),
        nn.Linear(24, 1000),
    )  # fmt: skip


plain.__module__ = "torchvision.models.plain"  # list_models() looks at it
register_model()(plain)
MODEL = ModelConfig("plain", trunk="scratch", input_px=32, descriptor_dim=16, hidden=32)
TUNED = ModelConfig("resnet18", trunk="finetune", input_px=32, descriptor_dim=16, hidden=32)


def learn(run: Path) -> None:
    config = replace(
        QUICK, slides_per_batch=4, twins=0.25, steps=12, log_every=1, checkpoint_every=3, lr=3e-4,
        augmentation=NONE, precision="float32",  # bfloat16 would round what is compared
    )  # fmt: skip
    source = Painted(broken=tuple(range(0, 784, 50)))
    train(some_tiles(4), config, MODEL, run, source=source, device="cpu", progress=False)


def gradients(run: Path, model: ModelConfig = MODEL) -> None:
    """Of one loss, of 40 tiles that the processes share out unevenly."""
    ranks, generator = Ranks("cpu"), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = SiameseNetwork(model)
    together = ranks.wrap(network).train()
    x = torch.rand(40, 3, 32, 32, generator=generator)
    near = torch.rand(40, 40, generator=generator) < 0.2
    owners = (torch.rand(40, generator=generator) * 1.5).long() % ranks.count
    z = together(x[owners == ranks.number], ranks.exchange(owners))
    contrastive_loss(z, near, ~near, 1.2).total.backward()
    if ranks.is_first:
        found = {name: p.grad.contiguous() for name, p in network.named_parameters()}
        save_file({**found, "z": z.detach()}, run)
    ranks.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tuned = partial(gradients, model=TUNED)
    {"train": learn, "gradients": gradients, "tuned": tuned}[sys.argv[2]](Path(sys.argv[1]))
