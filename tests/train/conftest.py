"""A run that takes a second: 16 channels, a few hundred lines of text, 8 steps of 32 tokens."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Settings

from exlstm.models.lm import LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.config import TrainConfig


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """One document; the end of it validates."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}: {number * number % 97} sheep\n" for number in range(300)))
    return path


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> Settings:
    """A TrainConfig for the tiny run, with changes."""

    def make(**changes: Any) -> TrainConfig:
        plain = {
            "run": str(tmp_path / "run"),
            "data": str(text),
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

    return make


@pytest.fixture
def tiny() -> LMConfig:
    return lm_from_pattern("m", vocab_size=257, width=16, heads=2)
