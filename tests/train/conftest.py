"""Fixtures of the tiny run."""

from functools import partial
from pathlib import Path

import pytest
from tiny_runs import TINY, Settings, settings_in, write_text

from exlstm.models.lm import LMConfig


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path)


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> Settings:
    """A TrainConfig for the tiny run, with changes."""
    return partial(settings_in, text.parent)


@pytest.fixture
def tiny() -> LMConfig:
    return TINY
