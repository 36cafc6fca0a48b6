"""Linear maps of few rows: every kind of weights, every size of tile, against float64."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import KINDS, exact, make, room

from accuracy import DRAWS, compare
from exlstm.ops.linear import MOST_ROWS, Int4Weight, dequantised, linear, linears, to_int4, to_int8
from exlstm.ops.linear.numba.op import Plan
from exlstm.runtime.backend import recorded

SUM = 4 * torch.finfo(torch.float32).eps  # 16 lanes, or parts of 128 numbers, make long sums more exact than this
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def check(x, weight, bias):
    y = linear(x, weight, bias, backend="numba")
    assert (y.dtype, y.shape) == (x.dtype, (*x.shape[:-1], weight.shape[0]))
    wanted, unit = exact(x, weight, bias), room(x, weight, bias)
    # rounded once to the result's dtype
    assert ((y - wanted).abs() <= SUM * unit + torch.finfo(x.dtype).eps / 2 * wanted.abs() * (1 + 1e-3)).all()


@settings(max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    N=st.integers(1, 21),
    K=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 256, 300])),
    M=st.one_of(st.integers(1, 9), st.sampled_from([12, 16, 33, 70])),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_definition(kind, N, K, M, biased, seed):
    weight, bias = make(kind, N, K, seed)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(seed + 1))
    check(x.bfloat16() if kind == "bfloat16" else x, weight, bias if biased else None)
    if kind.startswith("int"):
        check(x.bfloat16(), weight, bias.bfloat16() if biased else None)


@kinds
def test_many_items(kind, two_threads):
    """Larger than one item and than one thread's share, with odd ends."""
    for N, K, M in [(1031, 520, 1), (1031, 520, 3), (3001, 129, 2), (1031, 520, 20), (130, 300, 1100)]:
        weight, bias = make(kind, N, K)
        x = torch.randn(M, K)
        check(x.bfloat16() if kind == "bfloat16" else x, weight, bias)


@pytest.mark.parametrize("rows", [5, 20])
@kinds
def test_as_accurate_as_torch(kind, rows):
    """The accuracy rule: at most twice the error of torch's product of the same numbers."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32

    def forms(seed):
        weight, bias = make(kind, 200, 700, seed)
        maps = torch.randn(rows, 700).to(dtype), weight, bias.to(dtype)
        return [{"y": y} for y in (exact(*maps), linear(*maps, backend="torch"), linear(*maps, backend="numba"))]

    compare(map(forms, DRAWS))


@kinds
def test_a_row_does_not_depend_on_its_company(kind, two_threads):
    weight, bias = make(kind, 1031, 300)
    x = torch.randn(10, 300).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    if Plan([(weight, bias, torch.float32)]).few < 10:
        x = x[:8]  # where the other form begins
    alone = torch.cat([linear(row, weight, bias, backend="numba") for row in x.split(1)])
    for rows in range(2, len(x)):
        assert torch.equal(linear(x[:rows], weight, bias, backend="numba"), alone[:rows])
    torch.set_num_threads(1)
    assert torch.equal(linear(x, weight, bias, backend="numba"), alone)


@kinds
def test_a_row_of_many_does_not_depend_on_its_company(kind, two_threads):
    weight, bias = make(kind, 1031, 300)
    x = torch.randn(70, 300).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    all_rows = linear(x, weight, bias, backend="numba")
    few = Plan([(weight, bias, torch.float32)]).few
    for rows in {few + 1, max(few + 1, 33), 64}:
        assert torch.equal(linear(x[:rows], weight, bias, backend="numba"), all_rows[:rows])
    torch.set_num_threads(1)
    assert torch.equal(linear(x, weight, bias, backend="numba"), all_rows)


@pytest.mark.parametrize("shape", [(40,), (1, 40), (2, 3, 40), (1, 1, 40), (2, 1, 2, 40)])
def test_shapes(shape):
    weight, bias = make("float32", 6, 40)
    check(torch.randn(shape), weight, bias)


def test_inputs_that_are_not_contiguous():
    weight, bias = make("float32", 6, 40)
    check(torch.randn(40, 3).T, weight, bias)
    check(torch.randn(3, 80)[:, ::2], weight, bias)
    check(torch.randn(3, 81)[:, 1:41], weight, bias)
    check(torch.randn(1, 40).expand(3, 40), weight, bias)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@kinds
def test_what_is_not_finite_stays_so(kind, bad, rows):
    weight, _ = make(kind, 5, 140)
    x = torch.randn(rows, 140).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    x[1, 3] = bad
    y = linear(x, weight, backend="numba")
    assert not y[1].isfinite().any()
    assert y[torch.arange(rows) != 1].isfinite().all()


def test_rounding_to_bfloat16_is_to_the_nearest_even():
    """y = x 1, so that only the last rounding counts: halfway cases, the largest numbers, subnormal ones, NaN."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x00000001, 0x7F800001, -1, 0x3F807FFF])
    x = bits.to(torch.int32).view(torch.float32)
    got = linears(x[:, None], [(torch.ones(1, 1), None, torch.bfloat16)], backend="numba")[0][:, 0]
    torch.testing.assert_close(got, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [2, 60])
def test_several_maps_are_one_job(rows, two_threads):
    """Of different kinds, sizes and result dtypes, in order."""
    x = torch.randn(rows, 260).bfloat16()
    made = [make(kind, N, 260, seed) for seed, (kind, N) in enumerate(zip(KINDS, (900, 4, 1203, 700), strict=True))]
    dtypes = [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    maps = [(weight, bias, dtype) for (weight, bias), dtype in zip(made, dtypes, strict=True)]
    with recorded() as choices:
        together = linears(x, maps, backend="numba")
    assert [(c.op, c.backend) for c in choices] == [("linear", "numba")]
    for y, each in zip(together, maps, strict=True):
        assert y.dtype == each[2]
        assert torch.equal(y, linears(x, [each], backend="numba")[0])
        wanted, unit = exact(x, *each[:2]), room(x, *each[:2])
        assert ((y - wanted).abs() <= SUM * unit + torch.finfo(y.dtype).eps / 2 * wanted.abs() * (1 + 1e-3)).all()


def test_threads_may_call_at_once(two_threads):
    """Each in a region of its own: no caller gets the numbers of another."""
    made = [make("bfloat16", 1200, 256, seed) for seed in range(4)]
    x = torch.randn(4, 2, 256).bfloat16()
    wanted = [linear(x[n], *made[n], backend="numba") for n in range(4)]

    def work(n):
        torch.set_num_threads(2)
        with torch.no_grad():
            return [linear(x[n], *made[n], backend="numba") for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(pool.map(work, range(4))):
            assert all(torch.equal(y, wanted[n]) for y in found)


FORK = """
import os, threading, torch
from exlstm.ops.linear import linear
torch.set_num_threads(2)
torch.set_grad_enabled(False)
w, x = torch.randn(3000, 512), torch.randn(1, 512)
y = linear(x, w, backend="numba")
child = os.fork()
again = linear(x, w, backend="numba")
if child == 0:
    alive = any(t.name.startswith("exlstm-pool") for t in threading.enumerate())
    os._exit(0 if torch.equal(y, again) and alive else 1)
assert torch.equal(y, again)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_has_a_pool_of_its_own():
    """And both processes end."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def backend_of(x, weight, bias=None, **options):
    with recorded() as choices:
        linear(x, weight, bias, **options)
    return choices[0]


def test_choices():
    x, w, b = torch.randn(1, 8), torch.randn(5, 8), torch.randn(5)
    assert backend_of(x, w, b).backend == "numba"
    few, many = (backend_of(torch.randn(MOST_ROWS["float32"] + n, 8), w) for n in (0, 1))
    assert few.backend == "numba"
    assert many.backend == "torch"
    assert "from 129 rows on torch is faster in float32" in many.why
    assert backend_of(torch.randn(200, 8), to_int8(w)).backend == "numba"
    assert backend_of(x.double(), w.double()).why == (
        "not numba: it computes with float32 and bfloat16, and the input is torch.float64"
    )
    assert backend_of(x[:0], w).backend == "torch"
    assert "contiguous" in backend_of(x, torch.randn(8, 5).T).why
    assert "contiguous" in backend_of(x, w, torch.randn(10)[::2]).why
    with torch.enable_grad():
        assert "gradients" in backend_of(x.clone().requires_grad_(), w).why
        assert "gradients" in backend_of(x, w.clone().requires_grad_()).why
        assert "gradients" in backend_of(x, w, b.clone().requires_grad_()).why
        assert backend_of(x, w, b).backend == "numba"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backend_of(x, w, b).backend == "torch"
    with pytest.raises(ValueError, match=r"^backend 'numba' of linear cannot run: it computes with float32 and"):
        linear(x.double(), w.double(), backend="numba")


@pytest.mark.parametrize(("x", "b"), [((1, 9), (5,)), ((), None), ((8,), (8,)), ((1, 8), (1, 5)), ((2, 7), None)])
def test_shapes_that_do_not_fit(x, b):
    with pytest.raises(ValueError, match=r"with weights of shape \(5, 8\) x must be \[..., 8\] and b \[5\]"):
        linear(torch.randn(x), torch.randn(5, 8), None if b is None else torch.randn(b))


def test_transforms_see_a_product():
    """vmap, counters and the tracer get torch's linear: our kernels would be invisible to them or would fail."""
    x, w = torch.randn(3, 1, 8), torch.randn(5, 8)
    torch.testing.assert_close(torch.vmap(linear, (0, None))(x, w), x @ w.T)
    torch.testing.assert_close(
        torch.vmap(linear, (None, 0))(x[0], torch.stack([w, 2 * w])), x[:1] @ torch.stack([w, 2 * w]).mT
    )
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        linear(x[0], w)
    assert counter.get_total_flops() == 2 * 5 * 8


@pytest.mark.parametrize("K", [1, 7, 128, 130, 300])
@pytest.mark.parametrize("width", [1.0, 1e-6, 1e6])
def test_error_of_quantised_weights(K, width):
    """Half a step: of 1/127 of a row's largest weight, or of a fifteenth of a group's range."""
    w_NK = width * torch.randn(11, K)
    error_NK = (dequantised(to_int8(w_NK)) - w_NK).abs()
    assert (error_NK <= w_NK.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
    weight = to_int4(w_NK)
    error_NK = (dequantised(weight) - w_NK).abs()
    padded = torch.cat([w_NK, w_NK[:, -1:].expand(-1, -K % 128)], 1).view(11, -1, 128)
    allowed_NG = (padded.amax(2) - padded.amin(2)) / 15 / 2
    # a narrowed range may cut the largest by a tenth of the range
    groups = torch.cat([error_NK, torch.zeros(11, -K % 128)], 1).view(11, -1, 128)
    assert (groups.square().mean(2) <= (1.001 * allowed_NG).square() + 1e-20 * width**2).all()
    assert (groups <= 1.001 * allowed_NG[..., None] * 4).all()


def test_int4_takes_the_better_range():
    w_NK = torch.randn(64, 1024)
    step = (w_NK.view(64, 8, 128).amax(2) - w_NK.view(64, 8, 128).amin(2)) / 15
    low = w_NK.view(64, 8, 128).amin(2)
    plain = ((w_NK.view(64, 8, 128) - low[..., None]) / step[..., None]).round() * step[..., None] + low[..., None]
    before = (plain.flatten(1) - w_NK).norm()
    assert (dequantised(to_int4(w_NK)) - w_NK).norm() < 0.97 * before


def test_constant_and_empty_ranges():
    for value in (0.0, 1.0, -3e-39):
        w_NK = torch.full((3, 130), value)
        for quantise in (to_int8, to_int4):
            torch.testing.assert_close(dequantised(quantise(w_NK)), w_NK, rtol=1e-6, atol=1e-38)


def test_int4_packs_two_to_a_byte():
    weight = to_int4(torch.randn(3, 130))
    assert isinstance(weight, Int4Weight)
    assert (weight.q_NGP.dtype, tuple(weight.q_NGP.shape), weight.shape) == (torch.uint8, (3, 2, 64), (3, 130))
