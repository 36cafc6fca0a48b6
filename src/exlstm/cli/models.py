"""What a user names on the command line: a run, or a model on disk in any layout; and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from exlstm.data.tokenizer import Tokenizer
    from exlstm.models.lm import LM, LMConfig
    from exlstm.train.run_folder import Which

Weights = Literal["as-saved", "float32", "bfloat16", "int8", "int4"]
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Named:
    """A model on disk: what `exlstm.load` takes, and where its tokenizer is."""

    weights: Path
    tokenizer_file: Path

    def load(self, weights: Weights = "as-saved", device: str = "cpu") -> "LM":
        """For use, in evaluation mode. ValueError for what cannot be loaded, or be quantised twice."""
        import torch

        from exlstm.models.checkpoints.loading import load

        wide = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        bits: Literal["int8", "int4"] | None = weights if weights in ("int8", "int4") else None
        return load(self.weights, dtype=wide.get(weights), weights=bits, device=device).eval()

    def tokenizer(self, spec: str | None = None) -> "Tokenizer":
        """The model's own, or the one that is named. ValueError where there is none."""
        from exlstm.data.tokenizer import tokenizer_from_spec

        if spec is None and not self.tokenizer_file.is_file():
            raise ValueError(
                f"{self.weights} has no {TOKENIZER} beside it; name one with --tokenizer, a file or 'bytes'."
            )
        return tokenizer_from_spec(str(self.tokenizer_file) if spec is None else spec, [])

    def config(self) -> "LMConfig":
        """The architecture."""
        from exlstm.models.checkpoints.loading import open_checkpoint

        with open_checkpoint(self.weights) as found:
            return found.config


def named(name: str, checkpoint: str = "best") -> Named:
    """The model of a run, at one of its checkpoints, or the one in a folder or a file. ValueError if there is none."""
    from exlstm.train.run_folder import open_run

    path = Path(name)
    if (path / "checkpoints").is_dir():
        run = open_run(path)
        return Named(run.checkpoint_at(run.step_of(which(checkpoint))), path / TOKENIZER)
    if not path.exists():
        raise ValueError(f"there is no run or model at {name}; name a folder that has one, or a file of weights.")
    folder = path if path.is_dir() else path.parent
    beside = folder / TOKENIZER
    # a checkpoint of a run has its tokenizer two floors up
    of_run = folder.absolute().parent.parent / TOKENIZER
    if not beside.is_file() and folder.absolute().parent.name == "checkpoints":
        return Named(path, of_run)
    return Named(path, beside)


def which(text: str) -> "Which | int":
    """--checkpoint: best, last, or the number of a step."""
    if text == "best":
        return "best"
    if text == "last":
        return "last"
    if not text.isdecimal():
        raise ValueError(f"--checkpoint {text!r} cannot work; use best, last, or the number of a step.")
    return int(text)
