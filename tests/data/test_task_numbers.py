"""Random numbers of rows: the hash behind them, and how they are spread."""

import numpy as np

from exlstm.data.tasks.contract import _mix as mix
from exlstm.data.tasks.contract import numbers_for


def test_the_hash_is_splitmix64() -> None:
    """The published first outputs for seed 1234567."""
    counter = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 6, dtype=np.uint64)
    assert mix(np.array([1234567], dtype=np.uint64) + counter).tolist() == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]


def test_numbers_are_uniform_and_do_not_depend_on_how_many_are_drawn() -> None:
    numbers = numbers_for("x", seed=0, split="train", first=0, size=500)
    draws = numbers.below("a", 7, 100)
    assert (numbers.below("a", 7, 3) == draws[:, :3]).all()
    counts = np.bincount(draws.ravel(), minlength=7)
    assert (abs(counts - 50_000 / 7) < 4 * (50_000 / 7) ** 0.5).all()
    for other in (numbers.below("b", 7, 100), np.roll(draws, 1, axis=0), np.roll(draws, 1, axis=1)):
        assert abs((draws == other).mean() - 1 / 7) < 0.008
    uniform = numbers.uniform("a", 100)
    assert 0 <= uniform.min() < 0.001 < 0.999 < uniform.max() < 1
