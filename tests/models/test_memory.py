"""The least memory that a batch needs."""

import pytest
import torch

from exlstm.models import memory
from exlstm.models.pattern import lm_from_pattern

CONFIG = lm_from_pattern("mm", vocab_size=257, width=64)


def test_the_bound_counts_tokens_block_inputs_and_trained_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * 5 * (8 + 4 * 64 * 2) + 16 * 1000
    monkeypatch.setattr(memory, "memory_of", lambda device: needed)
    memory.check_memory(CONFIG, 3, 5, torch.device("cpu"), parameters=1000)
    monkeypatch.setattr(memory, "memory_of", lambda device: needed - 1)
    with pytest.raises(ValueError, match="3 rows of 5 tokens need at least 0 GB of memory and cpu has 0 GB; use a"):
        memory.check_memory(CONFIG, 3, 5, torch.device("cpu"), parameters=1000)


def test_a_system_that_does_not_say_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: None)
    memory.check_memory(CONFIG, 10**12, 10**12, torch.device("cpu"))
