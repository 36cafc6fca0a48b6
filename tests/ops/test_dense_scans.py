"""The Numba scans of the GRU and the LSTMs at the edges of their tiles: rows, and units."""

from functools import partial

import comparison
import pytest
import torch
from recurrences import RECURRENCES

from pairwise import every_pair

CASES = {"mult_lstm": "V", "assoc_lstm": "N", "gru": "V", "lstm": "V"}


@pytest.mark.parametrize("name", CASES)
@every_pair(units=[1, 15, 16, 17, 48], B=[1, 4, 5, 8, 9, 18])
def test_rows_and_units(name, B, units):
    """Every remainder of both, several items of a head, with rows that end early and rows that start again."""
    case = RECURRENCES[name]
    generator = torch.Generator().manual_seed(B)
    options = {"reset_BT": torch.rand(B, 7, generator=generator) < 0.2, "lengths_B": torch.arange(B).flip(0) * 7 % 8}
    x = case.make(B, 7, case.small | {CASES[name]: units}, seed=units)
    want = comparison.everything([t.double() for t in x], partial(case.run, **options), case.names)
    got = comparison.everything(x, partial(case.run, backend="numba", **options), case.names)
    comparison.assert_same(got, want, tolerance=1e-4)


@pytest.mark.parametrize("name", [*CASES, "matrix_rnn"])
def test_not_a_number_stays_in_its_row(name):
    """In the input or the state of one row, it reaches no other row of the item."""
    case = RECURRENCES[name]
    x = case.make(5, 6, case.small)
    want, last = case.run(*x, backend="numba")
    others = torch.tensor([0, 2, 3, 4])
    for place in (*range(len(case.ragged)), *range(len(x) - len(case.parts), len(x))):
        loud = [t.clone() for t in x]
        loud[place][1, 0] = torch.nan
        got, state = case.run(*loud, backend="numba")
        assert torch.equal(got[others], want[others])
        assert all(torch.equal(a[others], b[others]) for a, b in zip(state, last, strict=True))
        assert torch.isnan(got[1]).any()


@pytest.mark.parametrize("name", CASES)
def test_step_by_step(name):
    """One step at a time, as in decoding, is the sequence."""
    case = RECURRENCES[name]
    x = case.make(3, 6, case.real)
    count, ragged = len(case.ragged) + len(case.weights), len(case.ragged)
    want, last = case.run(*x, backend="numba")
    out, state = [], x[count:]
    with torch.no_grad():
        for t in range(6):
            y, state = case.run(*(part[:, t : t + 1] for part in x[:ragged]), *x[ragged:count], *state, backend="auto")
            out.append(y)
    torch.testing.assert_close(torch.cat(out, dim=1), want, rtol=1e-5, atol=1e-6)
    for got, expected in zip(state, last, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
