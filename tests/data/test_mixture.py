"""Several sources: their shares of the rows, and that a batch is a function of the step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data.mixture import Mixture, apportion
from exlstm.data.packing import TokenStream, batch_at

BOUNDARY, WIDTH = 0, 10_000


def source(number: int, size: int) -> TokenStream:
    """Tokens that tell the source and the place."""
    tokens = np.arange(size, dtype=np.uint32) + (number + 1) * WIDTH
    return TokenStream(tokens=tokens, bytes=size, boundary=BOUNDARY)


def sources_of(inputs_BT: torch.Tensor) -> list[int]:
    return (inputs_BT[:, 0] // WIDTH - 1).tolist()


shares_of = st.lists(st.integers(1, 50), min_size=1, max_size=4).map(
    lambda weights: tuple(weight / sum(weights) for weight in weights)
)


@settings(max_examples=40)
@given(shares=shares_of, batch=st.integers(1, 7), steps=st.integers(1, 60))
def test_after_any_number_of_steps_each_source_has_its_share(shares: tuple[float, ...], batch: int, steps: int) -> None:
    """To within two rows; and takes its windows in its own order, none left out."""
    mixture = Mixture(tuple(source(index, 64 + 16 * index) for index in range(len(shares))), shares)
    rows = []
    for step in range(steps):
        got = mixture.batch_at(step, batch=batch, length=8, seed=3, carry=False)
        assert got.reset_BT[:, 0].all()
        assert got.lengths_B.tolist() == [8] * batch
        assert torch.equal(got.targets_BT[:, :-1], got.inputs_BT[:, 1:])
        rows += [got.inputs_BT[row] for row in range(batch)]
        counts = np.bincount(sources_of(torch.stack(rows)), minlength=len(shares))
        assert np.abs(counts - np.array(shares) * len(rows)).max() <= 2
    for index, stream in enumerate(mixture.streams):
        mine = [row for row in rows if row[0] // WIDTH - 1 == index]
        if mine:
            alone = batch_at(stream, 0, batch=len(mine), length=8, seed=3, carry=False)
            assert torch.equal(torch.stack(mine), alone.inputs_BT)


def test_shares_hold_across_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle's end neither repeats nor leaves out a window."""
    monkeypatch.setattr("exlstm.data.mixture.CYCLE", 40)
    mixture = Mixture((source(0, 400), source(1, 400)), (0.7, 0.3))
    both = torch.cat([mixture.batch_at(step, batch=35, length=4, seed=0, carry=False).inputs_BT for step in range(4)])
    for index, share in enumerate((0.7, 0.3)):
        mine = both[both[:, 0] // WIDTH - 1 == index]
        assert len(mine) == pytest.approx(share * 4 * 35, abs=2)
        alone = batch_at(mixture.streams[index], 0, batch=len(mine), length=4, seed=0, carry=False)
        assert torch.equal(mine, alone.inputs_BT)


@settings(max_examples=30)
@given(step=st.integers(0, 99), batch=st.integers(1, 6), seed=st.integers(0, 9), carry=st.booleans())
def test_one_source_is_what_it_was(step: int, batch: int, seed: int, carry: bool) -> None:
    """Every run of an earlier version goes on as it began."""
    stream = source(0, 200)
    options = {"batch": batch, "length": 16, "seed": seed, "carry": carry}
    for got, want in zip(
        Mixture((stream,), (1.0,)).batch_at(step, **options), batch_at(stream, step, **options), strict=True
    ):
        assert torch.equal(got, want)


def test_a_carried_row_stays_with_its_source() -> None:
    """And goes on there where it stopped."""
    mixture = Mixture((source(0, 300), source(1, 300)), (0.7, 0.3))
    assert mixture.rows(5, carry=True) == [4, 1]
    before = None
    for step in range(4):
        got = mixture.batch_at(step, batch=5, length=8, seed=0, carry=True)
        assert sources_of(got.inputs_BT) == [0, 0, 0, 0, 1]
        assert got.reset_BT[:, 0].tolist() == [step == 0] * 5
        if before is not None:
            assert torch.equal(got.inputs_BT[:, 0], before)
        before = got.targets_BT[:, -1]


@given(shares=shares_of, more=st.integers(0, 30))
def test_things_are_dealt_out_by_shares(shares: tuple[float, ...], more: int) -> None:
    total = len(shares) + more
    counts = apportion(shares, total)
    assert sum(counts) == total
    assert min(counts) >= 1
    if all(share * total >= 1 for share in shares):
        assert all(abs(count - share * total) < 1 for count, share in zip(counts, shares, strict=True))


def test_a_source_that_is_too_short_is_named() -> None:
    mixture = Mixture((source(0, 100), source(1, 20)), (0.5, 0.5))
    mixture.check(["code", "notes"], batch=2, length=8, carry=True)
    with pytest.raises(ValueError, match=r"^notes: the text has 20 tokens and 1 window"):
        mixture.check(["code", "notes"], batch=2, length=30, carry=False)
    with pytest.raises(ValueError, match=r"^notes: the text has 20 tokens and 3 window"):
        mixture.check(["code", "notes"], batch=6, length=8, carry=True)
    with pytest.raises(ValueError, match=r"^--batch 1 has fewer rows than --data has sources, 2, .*larger batch\.$"):
        mixture.check(["code", "notes"], batch=1, length=8, carry=True)
