"""Rows of associative recall: every key once with its value, and where and in which order keys are asked for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_solvers import DRAWS, rows_of

from exlstm.data.tasks import recall


@settings(max_examples=30)
@given(pairs=st.integers(1, 20), more=st.integers(0, 40), vocab=st.sampled_from([64, 512, 8192]), **DRAWS)
def test_recall(pairs: int, more: int, vocab: int, seed: int, split: str, first: int) -> None:
    task = recall(pairs=pairs, vocab_size=vocab)
    low = 4 * pairs
    rows, lengths_B = rows_of(task, seed=seed, split=split, first=first, size=4, low=low, high=low + more)
    for tokens, answer, length in zip(
        rows.tokens_BT.tolist(), rows.answer_BT.tolist(), lengths_B.tolist(), strict=True
    ):
        assert length % 2 == 0
        table = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(table) == len(set(table.values())) == pairs
        assert all(0 < key < vocab // 2 for key in table)
        assert all(vocab // 2 <= value < vocab for value in table.values())
        queries = [t for t in range(2 * pairs, len(tokens)) if 0 < tokens[t] < vocab // 2]
        assert sorted(tokens[t] for t in queries) == sorted(table)
        assert [t + 1 for t in queries] == [t for t, asked in enumerate(answer) if asked]
        assert all(t % 2 == 0 and t + 1 < length and tokens[t + 1] == table[tokens[t]] for t in queries)
        assert sum(token > 0 for token in tokens) == 4 * pairs


def test_recall_asks_soon_and_early_keys_sooner() -> None:
    """The first key takes slot i with a probability of i ** -0.99; of several slots none is taken twice."""
    rows, _ = rows_of(recall(pairs=2, vocab_size=64), size=4000, low=24, high=24)
    slots = np.array([[row[4::2].tolist().index(key) for key in (row[0], row[2])] for row in rows.tokens_BT])
    weights = np.arange(1, 11) ** -0.99
    expected = weights / weights.sum()
    found = np.bincount(slots[:, 0], minlength=10) / 4000
    # four standard deviations of a share
    assert (abs(found - expected) < 4 * np.sqrt(expected / 4000)).all()
    after = np.bincount(slots[slots[:, 0] == 0, 1], minlength=10)
    rest = np.where(np.arange(10) > 0, weights, 0) / weights[1:].sum()
    assert (abs(after / after.sum() - rest) <= 4 * np.sqrt(rest / after.sum())).all()
    assert slots[:, 0].mean() < slots[:, 1].mean()


def test_recall_draws_keys_in_every_order_equally_often() -> None:
    """Three of seven keys: 210 orders."""
    rows, _ = rows_of(recall(pairs=3, vocab_size=16), size=8000, low=12, high=12)
    counts = Counter(tuple(row[:6:2]) for row in rows.tokens_BT.tolist())
    assert len(counts) == 210
    assert all(abs(count - 8000 / 210) < 5 * (8000 / 210) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(("pairs", "vocab"), [(0, 64), (32, 64), (2, 63)])
def test_wrong_settings_are_refused(pairs, vocab):
    with pytest.raises(ValueError, match=f"vocab_size={vocab} and pairs={pairs} do not fit"):
        recall(pairs=pairs, vocab_size=vocab)


def test_as_many_pairs_as_the_vocabulary_has() -> None:
    assert recall(pairs=31, vocab_size=64).shortest == 124
