"""A run that takes a second, of 16 channels, some hundred lines and 8 steps of 32 tokens; what tests read of it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exlstm.data.tokenizer import Tokenizer
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.config import TrainConfig
from exlstm.train.run_folder import RunFolder

Settings = Callable[..., TrainConfig]  # the fixture `settings`
TINY = lm_from_pattern("m", vocab_size=257, width=16, heads=2)


def write_text(folder: Path) -> Path:
    """One document; the end of it validates."""
    path = folder / "text.txt"
    path.write_text("".join(f"line {number}: {number * number % 97} sheep\n" for number in range(300)))
    return path


def settings_in(folder: Path, **changes: Any) -> TrainConfig:
    """The tiny run's, on the folder's text, with changes."""
    plain = {
        "run": str(folder / "run"),
        "data": str(folder / "text.txt"),
        "steps": 8,
        "batch": 2,
        "length": 16,
        "validations": 2,
        "validation_tokens": 64,
        "samples": 0,
        "lr": 1e-2,
        "final_minutes": 0.0,
        "yardsticks": False,
    }
    return TrainConfig(**{**plain, **changes})


def numbers(run: str | Path) -> list[dict[str, Any]]:
    """Everything a run has logged, but for the clock."""
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in RunFolder(Path(run)).read_metrics()
    ]


def weights(run: str | Path, step: int) -> bytes:
    """The model of a checkpoint, byte for byte."""
    return (RunFolder(Path(run)).checkpoint_at(step) / "model.safetensors").read_bytes()


def optimizer(run: str | Path, step: int) -> bytes:
    """AdamW's averages of a checkpoint, byte for byte."""
    return (RunFolder(Path(run)).checkpoint_at(step) / "optimizer.safetensors").read_bytes()


def trainer_json(run: str | Path, step: int) -> dict[str, Any]:
    return dict(json.loads((RunFolder(Path(run)).checkpoint_at(step) / "trainer.json").read_bytes()))


def ctrl_c_at(sample: int) -> Callable[[LM, Tokenizer], str]:
    """A sample callback that presses Ctrl-C in the given one of its calls."""
    calls = []

    def press(model: LM, tokenizer: Tokenizer) -> str:
        calls.append(None)
        if len(calls) == sample:
            signal.raise_signal(signal.SIGINT)
        return "a sheep"

    return press
