"""The Numba scan at the edges of its tiles: rows by four, units by sixteen, several tiles of a head, and threads."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from slstm_cases import call, everything, make, resets

from exlstm.ops.slstm import SLSTMState, slstm
from exlstm.ops.slstm.numba import op as scan
from exlstm.runtime.cpu import tile as numba_tile
from exlstm.runtime.cpu.memory import address_of
from exlstm.runtime.cpu.simd import FASTMATH
from exlstm.runtime.cpu.tile import (
    PANEL,
    VECTOR_WIDTH,
    WIDE,
    four_rows,
    one_row,
    one_row_narrow,
    product,
    rows_by_four,
    tile,
)  # fmt: skip
from pairwise import every_pair


def against_the_definition(x, **options):
    want = everything([t.double() for t in x], partial(call, backend="recurrent", **options))
    assert_same(everything(x, partial(call, backend="numba", **options)), want, tolerance=2e-4)


@every_pair(V=[1, 15, 16, 17, 33, 80], B=[1, 2, 3, 4, 5, 6, 9])
def test_rows_and_units(B, V):
    """Every remainder of both, with rows that end early and rows that start again."""
    lengths = torch.arange(B).flip(0) * 7 % 8
    x = make(B, 7, 2, V, seed=B, dtype=torch.float32)
    against_the_definition(x, reset_BT=resets(B, 7, seed=V), lengths_B=lengths)


@pytest.mark.parametrize("V", [5, 16, 33])
def test_without_mixing(V):
    """No product fills the sums and the gradients of h anew at every step."""
    x, lengths = make(5, 7, 2, V, dtype=torch.float32), torch.tensor([7, 3, 0, 6, 7])
    against_the_definition(x, mixing=False, reset_BT=resets(5, 7), lengths_B=lengths)


@pytest.mark.parametrize("B", [scan.MAX_ROWS - 1, scan.MAX_ROWS + 1, 2 * scan.MAX_ROWS + 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_tiles_of_a_head(threads, B, count):
    threads(count)
    assert (scan.plan(B, 5, 3, 5, 0).items > 3) == (B > scan.MAX_ROWS or count == 2)
    lengths = torch.arange(B) % 6
    against_the_definition(make(B, 5, 3, 5, dtype=torch.float32), reset_BT=resets(B, 5), lengths_B=lengths)


@pytest.mark.parametrize("B", [1, 2, 3, 8])
@pytest.mark.parametrize("V", [1, 7, 8, 16, 20])
def test_step_by_step(B, V):
    """One step at a time, as in decoding, is the sequence: R is then read where it lies for a few rows."""
    x = make(B, 6, 2, V, dtype=torch.float32)
    want, last = call(*x, backend="numba")
    state, h = SLSTMState(*x[2:]), []
    for t in range(6):
        h_1, state = slstm(x[0][:, t : t + 1], x[1], state, backend="numba")
        h.append(h_1)
    torch.testing.assert_close(torch.cat(h, dim=1), want, rtol=1e-5, atol=1e-6)
    for got, expected in zip(state, last, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not scan.plan(min(B, 5), 1, 2, V, 0).packed
    assert scan.plan(B, 6, 2, V, 0).packed


@settings(max_examples=200)
@given(B=st.integers(1, 200), H=st.integers(1, 9), V=st.integers(1, 300), count=st.integers(1, 40))
def test_the_plan_covers_every_row_once(B, H, V, count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        items, rows, *_, sharing = scan.plan(B, 256, H, V, 16 * H * V * V)
    finally:
        torch.set_num_threads(before)
    assert items == H * -(-B // rows)
    assert 4 <= rows <= scan.MAX_ROWS or sharing > 1


@cache
def fresh_product(wide):
    """Compiled anew, for the width that is set when it is first called; the package's own stays as it is."""
    return njit(fastmath=FASTMATH)(product.py_func)


@every_pair(wide=[1, 4], rows=[1, 2, 3, 4, 5, 7, 8, 9], size=[(1, 1), (3, 2), (16, 4), (20, 5), (7, 11), (300, 5)])
def test_product(monkeypatch, wide, rows, size):
    """Whatever CPU this is: how many panels go together depends on the length of its vectors."""
    steps, panels = size
    monkeypatch.setattr(numba_tile, "WIDE", wide)
    monkeypatch.setattr(numba_tile, "four_rows", tile(4, wide))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows_by_four.py_func(rows), steps)).astype(np.float32)
    p = generator.standard_normal((panels, steps, PANEL)).astype(np.float32)
    blocks = -(-panels // 4)
    out = np.full((rows_by_four.py_func(rows), blocks, 5 * PANEL), np.nan, np.float32)
    out_at, x_at, p_at = (array.ctypes.data for array in (out, x, p))
    fresh_product(wide)(out_at, blocks * 5 * PANEL, 5 * PANEL, x_at, steps, rows, p_at, steps, panels)
    assert np.isnan(out[:, :, 4 * PANEL :]).all()  # what lies between the blocks is left alone
    got = out[:rows, :, : 4 * PANEL].reshape(rows, -1)
    np.testing.assert_allclose(got[:, : panels * PANEL], x[:rows] @ np.hstack(p), rtol=1e-4, atol=1e-5)
    assert np.isnan(got[:, panels * PANEL :]).all()


def test_tiles_are_in_registers():
    """One pass over k with all sums in vector registers: no loads or stores of sums inside the loop."""

    @njit
    def run(out, x, p, steps):
        out, x, p = address_of(out), address_of(x), address_of(p)
        four_rows(out, 4 * 64, x, 4 * steps, p, steps, 0)
        one_row(out, 4 * 64, x, 4 * steps, p, steps, 0)
        one_row_narrow(out, 4 * 64, x, 4 * steps, p, steps, 0)

    out, x, p = np.zeros((4, 64), np.float32), np.ones((4, 3), np.float32), np.ones((4, 3, PANEL), np.float32)
    run(out, x, p, 3)
    np.testing.assert_array_equal(out[:, : PANEL * WIDE], 3)
    (code,) = run.inspect_llvm().values()
    assert f"phi <{VECTOR_WIDTH} x float>" in code
    assert f"alloca <{VECTOR_WIDTH} x float>" not in code


def test_not_a_number_stays_in_its_row():
    """In the state, the input or the gradient of one row, it reaches no other row of the tile."""
    x = make(5, 6, 2, 20, dtype=torch.float32, fresh=0.0)
    want, last = call(*x, backend="numba")
    for place in (0, 2, 3, 4, 5):
        loud = [t.clone() for t in x]
        loud[place][1, 0] = torch.nan
        h_BTHV, state = call(*loud, backend="numba")
        others = torch.tensor([0, 2, 3, 4])
        assert torch.equal(h_BTHV[others], want[others])
        assert all(torch.equal(a[others], b[others]) for a, b in zip(state, last, strict=True))
        assert torch.isnan(h_BTHV[1]).any()


def test_a_reset_clears_what_is_not_a_number():
    x, reset_BT = make(2, 6, 2, 20, dtype=torch.float32), torch.zeros(2, 6, dtype=torch.bool)
    for part in x[2:]:
        part[1] = torch.nan
    reset_BT[1, 0] = True
    x = [t.requires_grad_(n < 5) for n, t in enumerate(x)]
    h_BTHV, state = call(*x, reset_BT=reset_BT, backend="numba")
    (h_BTHV.sum() + state.c_BHV.sum()).backward()
    for t in (h_BTHV, *state, *(t.grad for t in x[:5])):
        assert torch.isfinite(t).all()
    assert not x[2].grad[1].any()


def test_padding_may_hold_anything():
    """NaN in the input beyond a row's length, and in the gradient that comes back for those steps."""
    x = make(3, 6, 2, 20, dtype=torch.float32)
    lengths = torch.tensor([6, 0, 3])
    clean, loud = ([t.clone().requires_grad_(n < 5) for n, t in enumerate(x)] for _ in range(2))
    for inputs, filler in ((clean, 0.0), (loud, torch.nan)):
        generator = torch.Generator().manual_seed(1)
        dh = torch.randn(3, 6, 2, 20, generator=generator)
        for b, length in enumerate(lengths):
            inputs[0].data[b, length:] = filler
            dh[b, length:] = filler
        h_BTHV, state = call(*inputs, lengths_B=lengths, backend="numba")
        torch.autograd.backward([h_BTHV, state.n_BHV], [dh, torch.ones_like(state.n_BHV)])
    for a, b in zip(clean[:5], loud[:5], strict=True):
        assert torch.equal(a.grad, b.grad)
        assert not torch.isnan(b.grad).any()


@pytest.mark.parametrize("needed", range(5))
def test_gradients_that_are_asked_for(needed):
    """One input at a time: what is not asked for is not in the way."""
    x = make(2, 6, 2, 5, dtype=torch.float32)
    want = list(everything(x, partial(call, backend="numba")).values())[-5:]
    x = [t.clone().requires_grad_(n == needed) for n, t in enumerate(x)]
    h_BTHV, state = call(*x, backend="numba")
    generator = torch.Generator().manual_seed(9)
    parts = [h_BTHV, state.h_BHV, state.c_BHV, state.n_BHV]
    sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in parts).backward()
    torch.testing.assert_close(x[needed].grad, want[needed], rtol=1e-5, atol=1e-6)


def test_nothing_is_kept_without_gradients():
    x = make(2, 6, dtype=torch.float32)
    x[1].requires_grad_()
    with torch.no_grad():
        assert call(*x, backend="numba")[0].grad_fn is None
    assert call(*x, backend="numba")[0].grad_fn is not None


@pytest.mark.parametrize("V", [8, 21, 70])
@pytest.mark.parametrize("T", [1, 9], ids=["as it lies", "packed"])
def test_r_in_bfloat16_is_read_as_it_is_kept(T, V):
    x, r_HKGV, *state = make(3, T, 2, V, dtype=torch.float32)
    short_HKGV = r_HKGV.bfloat16()
    h_BTHV, after = slstm(x, short_HKGV, SLSTMState(*state), backend="numba")
    want_BTHV, want = slstm(x, short_HKGV.float(), SLSTMState(*state), backend="numba")
    assert torch.equal(h_BTHV, want_BTHV)
    assert all(map(torch.equal, after, want))
    assert not torch.equal(h_BTHV, slstm(x, r_HKGV, SLSTMState(*state), backend="numba")[0]) or T == 1


def test_inputs_in_any_order_of_memory():
    x = make(2, 6, 2, 5, dtype=torch.float32)
    want = everything(x, partial(call, backend="numba"))
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in x]
    assert not turned[0].is_contiguous()
    assert_same(everything(turned, partial(call, backend="numba")), want, tolerance=1e-6)
    h_BTHV, _ = slstm(x[0].requires_grad_(), x[1], backend="numba")
    h_BTHV.sum().backward()  # its gradient is one number, expanded
    assert torch.isfinite(x[0].grad).all()
