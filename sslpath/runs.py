"""The folder of a training run: its settings, its log, and the state to go on from.

A state is one file, moved into place when whole: whoever finds it finds the weights, the
optimiser's moments and the step that belong together. Nothing in the folder is ever unpickled.
What this module does not do: keep several states.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sslpath.errors import ConfigError, WeightsError
from sslpath.files import atomic_path, write_json

CONFIG, LOG = "config.json", "log.jsonl"
STATE, CHECKPOINT = "state.safetensors", "checkpoint.safetensors"
# Settings that change nothing in the weights, so a resumed run may have others.
HOUSEKEEPING = {"checkpoint_every", "log_every"}


def claim(run: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run, or make sure that an old run had the same.

    Args:
        run: The folder.
        settings: Parts (``training``, ``model``, ``data``), each a dict of JSON values.

    Raises:
        ConfigError: If the folder holds a run with other settings.
    """
    check(run, settings, partly=False)
    write_json(run / CONFIG, settings)


def check(run: Path, settings: dict[str, Any], *, partly: bool = True) -> None:
    """Make sure that a run in the folder, if there is one, has these settings; write nothing.

    Args:
        run: The folder.
        settings: As of :func:`claim`.
        partly: Whether the run may have settings that are not given here.

    Raises:
        ConfigError: If the folder holds a run with other settings.
    """
    path = run / CONFIG
    if not path.exists():
        there = [name for name in (STATE, CHECKPOINT, LOG) if (run / name).exists()]
        if there:
            raise ConfigError(
                f"{run} holds {', '.join(there)}, but no {CONFIG}: this is no run that could go "
                "on. Choose another run folder."
            )
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        old = {(part, key): value for part in found for key, value in found[part].items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Choose another run folder.") from error
    wanted = json.loads(json.dumps(settings))
    new = {(part, key): value for part in wanted for key, value in wanted[part].items()}
    differ = [
        f"{part} {key} {old.get((part, key))!r}, now {new.get((part, key))!r}"
        for part, key in sorted(new if partly else old | new)
        if key not in HOUSEKEEPING and old.get((part, key)) != new.get((part, key))
    ]
    if differ:
        raise ConfigError(
            f"The run in {run} was started with other settings ({'; '.join(differ)}). "
            "Choose another run folder, or use its settings to go on."
        )


def read_settings(run: str | Path) -> dict[str, Any]:
    """The settings of a run, as :func:`claim` wrote them; empty if they cannot be read."""
    try:
        found = json.loads((Path(run) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def save_state(run: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write all that is needed to go on after ``step`` steps, in one file."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{name}.{key}"] = value
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(run / STATE) as temporary:
        temporary.write_bytes(save(whole, {"step": str(step)}))


def load_state(run: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Restore what :func:`save_state` wrote; returns the steps done, 0 if there is no state.

    Raises:
        WeightsError: If the state is damaged or belongs to another network.
    """
    path = run / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        prefix = "network."
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        for name, parameter in network.named_parameters():
            stored = {key: f"optimiser.{name}.{key}" for key in ("exp_avg", "exp_avg_sq", "step")}
            # AdamW keeps nothing of a parameter that never had a gradient.
            if tensors.keys().isdisjoint(stored.values()):
                continue
            moments = {key: tensors[where] for key, where in stored.items()}
            for key in ("exp_avg", "exp_avg_sq"):
                # In the memory layout of the parameter, as in a run that was not interrupted.
                layout = torch.empty_like(parameter, requires_grad=False)
                moments[key] = layout.copy_(moments[key])
            optimiser.state[parameter] = moments
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"Cannot resume from {path}: {reason}. Delete it to train from the start."
        ) from error
    return step


def append_log(run: Path, line: dict[str, Any]) -> None:
    """Add a line to the log."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line cut short by a kill is left out."""
    path = Path(run) / LOG
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def trim_log(run: Path, step: int) -> None:
    """Drop what was logged after ``step``: those steps are about to be done again."""
    kept = [line for line in read_log(run) if line["step"] <= step]
    with atomic_path(run / LOG) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
