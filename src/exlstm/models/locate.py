"""A model on disk, found by the name of a run, of one of its checkpoints, or of a folder or file in any layout.

Training writes a run's folder (`exlstm.train.run_folder`); what of it finding a model needs is here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from exlstm.models.checkpoints.files import remedy, shards_of
from exlstm.models.checkpoints.loading import load, open_checkpoint, outline
from exlstm.models.lm import LM, LMConfig
from exlstm.models.weight_formats import Bits, WeightFormat
from exlstm.nn.fields import json_value

Which = Literal["best", "last"]

RUN_FORMAT = 1
TOKENIZER = "tokenizer.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS: dict[str, Bits] = {"int8": "int8", "int4": "int4"}


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of a run, in its folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def config(self) -> dict[str, Any]:
        """config.json as it is. Raises ValueError if it is damaged or of another format."""
        data = read_json(self.path / "config.json")
        if data.get("format") != RUN_FORMAT or not {"train", "model", "data"} <= set(data):
            raise ValueError(
                f"{self.path / 'config.json'} has format {data.get('format')!r}, not {RUN_FORMAT}; "
                "it is not from this version of exlstm train."
            )
        return data

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted(int(folder.name.removeprefix("step-")) for folder in self.checkpoints.glob("step-[0-9]*"))

    def checkpoint_at(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def position(self, step: int) -> dict[str, Any]:
        """trainer.json of a checkpoint. Raises ValueError if it is damaged."""
        return read_json(self.checkpoint_at(step) / "trainer.json")

    def step_of(self, which: Which | int) -> int:
        """The step of a checkpoint: the best one by validation loss, the last one, or the one of a given step.

        Without any validation the last one is the best one. Raises ValueError if there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.path} has no checkpoint yet; let it train until the first one is saved.")
        if which == "last":
            return steps[-1]
        if which == "best":
            scores = {step: self.position(step).get("validation_bits_per_byte") for step in steps}
            scored = [step for step in steps if scores[step] is not None]
            return min(scored, key=lambda step: (scores[step], -step)) if scored else steps[-1]
        if which not in steps:
            raise ValueError(f"{self.path} has no checkpoint of step {which!r}; it has {steps}, 'best' and 'last'.")
        return which


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of a run. Raises ValueError if it is missing or not JSON."""
    try:
        data = json_value(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; {path.parent} is incomplete or not what exlstm train writes.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON; it is damaged or not what exlstm train writes.") from error
    return data if isinstance(data, dict) else {}


@dataclass(frozen=True, kw_only=True)
class ModelOnDisk:
    """Where a model is.

    weights: what `exlstm.load` takes. tokenizer_file: where its tokenizer is, if it has one. run, step: of a
    checkpoint, the folder of its run and its step.
    """

    weights: Path
    tokenizer_file: Path
    run: Path | None = None
    step: int | None = None

    def load(self, weights: WeightFormat = "as-saved", device: str | torch.device = "cpu") -> LM:
        """The model in evaluation mode. ValueError for one that cannot be loaded, or that is quantised already."""
        if weights != "as-saved" and weights not in {*DTYPES, *BITS}:
            raise ValueError(f"weights are {weights!r}; they can be one of as-saved, {', '.join((*DTYPES, *BITS))}.")
        return load(self.weights, dtype=DTYPES.get(weights), weights=BITS.get(weights), device=device).eval()

    def outline(self) -> LM:
        """The model as it was saved, without memory for its numbers."""
        return outline(self.weights)

    def config(self) -> LMConfig:
        """The architecture."""
        with open_checkpoint(self.weights) as found:
            return found.config

    def bits(self) -> Bits | None:
        """How the weights are quantised; None if they are not."""
        with open_checkpoint(self.weights) as found:
            return found.bits


def locate(name: str | Path, checkpoint: Which | int = "best") -> ModelOnDisk:
    """The model of a run, at one of its checkpoints, or the one in a folder or a file. ValueError if there is none."""
    path = Path(name)
    if (path / "checkpoints").is_dir():
        run = RunCheckpoints(path)
        run.config()  # a folder that is no run is told first of all
        step = run.step_of(checkpoint)
        return ModelOnDisk(weights=run.checkpoint_at(step), tokenizer_file=path / TOKENIZER, run=path, step=step)
    if not path.exists():
        raise ValueError(f"there is no run or model at {name}; {remedy(str(name))}.")
    if path.is_dir():
        shards_of(path)  # a folder without weights is told first of all
    folder = path if path.is_dir() else path.parent
    beside, above = folder / TOKENIZER, folder.absolute().parent
    if not beside.is_file() and above.name == "checkpoints":
        beside = above.parent / TOKENIZER  # a checkpoint of a run
    return ModelOnDisk(weights=path, tokenizer_file=beside)
