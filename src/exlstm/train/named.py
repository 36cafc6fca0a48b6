"""What a user names: a run, a checkpoint of one, or a model on disk in any layout; with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import torch

from exlstm.data.tokenizer import Tokenizer, tokenizer_from_spec
from exlstm.models.checkpoints.files import remedy, shards_of
from exlstm.models.checkpoints.loading import load, open_checkpoint, outline
from exlstm.models.lm import LM, LMConfig
from exlstm.models.weight_formats import Bits, WeightFormat
from exlstm.train.run_folder import RunFolder, Which, open_run

TOKENIZER = "tokenizer.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS: dict[str, Bits] = {"int8": "int8", "int4": "int4"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model on disk: what `exlstm.load` takes, where its tokenizer is, and the run and step that it is of."""

    weights: Path
    tokenizer_file: Path
    run: RunFolder | None = None
    step: int | None = None

    def load(self, weights: WeightFormat = "as-saved", device: str | torch.device = "cpu") -> LM:
        """For use, in evaluation mode. ValueError for what cannot be loaded, or be quantised twice."""
        if weights != "as-saved" and weights not in {*DTYPES, *BITS}:
            raise ValueError(f"weights are {weights!r}; they can be one of as-saved, {', '.join((*DTYPES, *BITS))}.")
        return load(self.weights, dtype=DTYPES.get(weights), weights=BITS.get(weights), device=device).eval()

    def tokenizer(self, spec: str | None = None) -> Tokenizer:
        """The model's own, or the one that is named. ValueError where there is none."""
        if spec is None and not self.tokenizer_file.is_file():
            raise ValueError(f"{self.weights} has no {TOKENIZER} beside it; name a file, or the tokenizer 'bytes'.")
        return tokenizer_from_spec(str(self.tokenizer_file) if spec is None else spec, [])

    def outline(self) -> LM:
        """The model as it was saved, without memory for its numbers."""
        return outline(self.weights)

    def config(self) -> LMConfig:
        """The architecture."""
        with open_checkpoint(self.weights) as found:
            return found.config

    def bits(self) -> Bits | None:
        """How its weights are quantised, if they are."""
        with open_checkpoint(self.weights) as found:
            return found.bits


def named(name: str | Path, checkpoint: Which | int = "best") -> Named:
    """The model of a run, at one of its checkpoints, or the one in a folder or a file. ValueError if there is none."""
    path = Path(name)
    if (path / "checkpoints").is_dir():
        run = open_run(path)
        step = run.step_of(checkpoint)
        return Named(weights=run.checkpoint_at(step), tokenizer_file=path / TOKENIZER, run=run, step=step)
    if not path.exists():
        raise ValueError(f"there is no run or model at {name}; {remedy(str(name))}.")
    if path.is_dir():
        shards_of(path)  # a folder without weights is told first of all
    folder = path if path.is_dir() else path.parent
    beside, above = folder / TOKENIZER, folder.absolute().parent
    if not beside.is_file() and above.name == "checkpoints":
        beside = above.parent / TOKENIZER  # a checkpoint of a run
    return Named(weights=path, tokenizer_file=beside)
