"""Checkpoints that continue a run bit for bit.

    model.safetensors, config.json   the model, as exlstm.load reads it
    optimizer.safetensors            AdamW's tensors, "PARAMETER/NAME"
    state.safetensors                the carried state of the rows, with --carry-state only
    trainer.json                     step, tokens, seconds, data position, random generators, validation loss

A checkpoint is written to a hidden folder, put on the disk, and renamed: it is there as a whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from exlstm.mixers.state import leaves, map_state
from exlstm.models.checkpoints.loading import load
from exlstm.models.checkpoints.saving import save
from exlstm.models.lm import LM
from exlstm.runtime.files import beside, reporting_failure
from exlstm.train.run_folder import RunFolder

State = Any  # a tuple with the state of every block, or None

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Position:
    """The step and time of a checkpoint. With weights and random generators it decides all that the next step does."""

    step: int = 0
    seconds: float = 0.0
    validation_bits_per_byte: float | None = None  # at this very step


def save_checkpoint(
    run: RunFolder, model: LM, optimizer: Optimizer, state: State, position: Position, *, tokens: int, batches: int
) -> None:
    """Writes the checkpoint of `position`, unless it exists. tokens, batches: used so far.

    Raises ValueError, with the older checkpoints as they were, if the weights are not finite or the disk is full.
    """
    folder = run.checkpoint_at(position.step)
    if folder.exists():
        return
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"the parameter {name} is not finite after step {position.step}, so no checkpoint was saved; "
                "start again with a smaller --lr."
            )
    trainer = {
        "format": _FORMAT,
        "step": position.step,
        "seconds": position.seconds,
        "validation_bits_per_byte": position.validation_bits_per_byte,
        "tokens": tokens,
        "data_position": batches,
        "random": _random_state(),
    }
    hint = "the older checkpoints are intact: free some space and continue with --resume"
    with reporting_failure(folder, hint, (OSError, SafetensorError)), beside(folder) as new:
        save(model, new)
        save_file(_optimizer_tensors(model, optimizer), new / "optimizer.safetensors")
        if state is not None:
            tensors = {f"{index:05d}": leaf.contiguous() for index, leaf in enumerate(leaves(state))}
            save_file(tensors, new / "state.safetensors")
        (new / "trainer.json").write_text(json.dumps(trainer))


def tidy(run: RunFolder, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best one, which the link checkpoints/best then names."""
    best = run.step_of("best")
    with reporting_failure(run.checkpoints, "free some space or change the permissions, and continue with --resume"):
        for step in run.steps()[:-keep]:
            if step != best:
                # renamed first: a kill in the middle of the deletion leaves no half of a checkpoint
                os.replace(run.checkpoint_at(step), run.checkpoints / f".old-{step}")
        for leftover in run.checkpoints.glob(".*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    # for the eye only: `step_of("best")` reads the scores, as some systems allow no links
    with suppress(OSError):
        link = run.checkpoints / ".best"
        link.symlink_to(run.checkpoint_at(best).name, target_is_directory=True)
        os.replace(link, run.checkpoints / "best")


def load_checkpoint(run: RunFolder, model: LM, optimizer: Optimizer, *, carry_state: bool) -> tuple[Position, State]:
    """Loads the last checkpoint of the run into model, optimizer and random generators; returns its position and state.

    Raises ValueError if it is truncated or of another model. Files of the run are not changed.
    """
    step = run.step_of("last")
    folder = run.checkpoint_at(step)
    steps = run.steps()
    fallback = f"remove that folder to continue from step {steps[-2]}" if len(steps) > 1 else "start the run again"
    try:
        trainer = run.position(step)
        _check(
            trainer.get("format") == _FORMAT and trainer["step"] == step, "trainer.json is of another format or step"
        )
        source = load(folder)
        _check(source.config == model.config, "its architecture is not the one of the run")
        model.load_state_dict(source.state_dict())
        _load_optimizer(model, optimizer, load_file(folder / "optimizer.safetensors"))
        state = _load_state(model, folder / "state.safetensors") if carry_state else None
        _set_random_state(trainer["random"])
        position = Position(
            step=step, seconds=trainer["seconds"], validation_bits_per_byte=trainer["validation_bits_per_byte"]
        )
    except (ValueError, KeyError, TypeError, OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {folder} is damaged or of another model ({reason}); {fallback}.") from error
    return position, state


def _check(ok: bool, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


def _load_state(model: LM, file: Path) -> State:
    stored = load_file(file)
    # cloned, here and below: a tensor of a file may begin at any address, and BLAS may round by it
    tensors: Iterator[Tensor] = iter([stored[name].clone() for name in sorted(stored)])
    device = next(model.parameters()).device
    template = model.zero_state(1)
    _check(len(stored) == len(leaves(template)), f"{file.name} has {len(stored)} tensors, not {len(leaves(template))}")
    return map_state(lambda _: next(tensors).to(device), template)


def _optimizer_tensors(model: LM, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(model: LM, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    expected = {f"{name}/{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")}
    odd = sorted(expected ^ set(tensors))
    _check(not odd, f"optimizer.safetensors does not fit the model at {odd[:1]}")
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        shape = torch.Size() if key == "step" else parameters[name].shape
        _check(value.shape == shape, f"optimizer.safetensors has {full_name} of shape {tuple(value.shape)}")
        optimizer.state[parameters[name]][key] = value.clone().to(parameters[name].device)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": _hex(torch.get_rng_state()), "cuda": [_hex(state) for state in cuda]}


def _set_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(_tensor(saved["cpu"]))
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_tensor(state) for state in saved["cuda"]])


def _hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
