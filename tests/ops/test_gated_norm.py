"""The gated norm of an mLSTM layer: its formula, and the Numba form against it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import DRAWS, assert_as_accurate, compare
from exlstm.ops.gated_norm import gated_norm
from exlstm.runtime.backend import recorded
from pairwise import every_pair

# options, and whether there is a skip
VARIANTS = [({"activation": activation}, skip) for activation in ("silu", "sigmoid") for skip in (True, False)]
VARIANTS += [({"norm": "rms"}, True), ({"norm": "rms", "activation": "sigmoid"}, False)]
VARIANTS += [({"gate_first": True}, False), ({"gate_first": True, "norm": "rms", "activation": "sigmoid"}, False)]
NAMES = ("h", "gain", "z", "skip", "c", "bias")


class Nothing(NamedTuple):
    """The state of an op that has none."""


def make(B, T, H, V, *, seed=0, skip=True, mean=0.0, scale=1.0, dtype=torch.float32):
    """h, gain, z and, if there is a skip, skip and c."""
    generator = torch.Generator().manual_seed(seed)
    E = H * V
    shapes = [(B, T, H, V), (E,), (B, T, E), *([(E,), (B, T, E)] if skip else [])]
    x = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    x[0] = scale * x[0] + mean
    x[2] *= 3.0
    return [t.to(dtype) for t in x]


def call(h, gain, z, *others, **options):
    """As `accuracy` wants it. The others are skip, c and bias; or bias; or skip and c."""
    skip, c = others[:2] if len(others) > 1 else (None, None)
    bias = others[-1] if len(others) % 2 else None
    return gated_norm(h, gain, z, skip_E=skip, c_BTE=c, bias_E=bias, **options), Nothing()


definition = partial(call, backend="torch")
numba = partial(call, backend="numba")


def everything(op, x, **options):
    """The output and every gradient, for one fixed loss."""
    return comparison.everything(x, partial(op, **options), NAMES[: len(x)])


def with_bias(x):
    """The same tensors and a bias after them."""
    return [*x, torch.randn(x[1].shape, generator=torch.Generator().manual_seed(8), dtype=x[1].dtype)]


def biased_names(x):
    """The names of what `with_bias` gives."""
    return (*NAMES[: len(x) - 1], "bias")


def by_formula(h, gain, z, skip, c, *, eps, bias=0.0, activation="silu", norm="layer", gate_first=False):
    """The page's equations, letter by letter."""
    gate = (z if activation == "silu" else 1) / (1 + torch.exp(-z))
    h = h * gate.view(h.shape) if gate_first else h
    centred = h if norm == "rms" else h - h.mean(-1, keepdim=True)
    n = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(2)
    inside = gain * n + bias + (0.0 if skip is None else skip * c)
    return inside if gate_first else inside * gate


@pytest.mark.parametrize(("options", "skip"), VARIANTS)
def test_the_definition_is_the_formula(options, skip):
    for eps in (1e-5, 0.5):
        x = make(2, 3, 3, 5, skip=skip, dtype=torch.float64)
        want = by_formula(*x, *[None] * (5 - len(x)), eps=eps, **options)
        got, _ = definition(*x, eps=eps, **options)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        *_, bias = x = with_bias(x)
        want = by_formula(*x[:-1], *[None] * (6 - len(x)), eps=eps, bias=bias, **options)
        torch.testing.assert_close(definition(*x, eps=eps, **options)[0], want, rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(
    B=st.integers(1, 3), T=st.integers(1, 40), H=st.integers(1, 4), V=st.integers(1, 37), seed=st.integers(0, 2**31),
    variant=st.sampled_from(VARIANTS), eps=st.sampled_from([1e-6, 1e-5, 0.1]),
)  # fmt: skip
def test_any_shape_is_the_definition(B, T, H, V, seed, variant, eps):
    others, skip = variant
    # a head of one or two channels is all mean, or all sign: there eps decides, and 1e-6 leaves few digits
    options = {**others, "eps": eps if V > 2 else 0.1}
    x = make(B, T, H, V, seed=seed, skip=skip)
    want = everything(definition, [t.double() for t in x], **options)
    comparison.assert_same(everything(numba, x, **options), want, tolerance=2e-5 if V > 4 else 1e-3)


@pytest.mark.breadth(8)
@every_pair(variant=VARIANTS, size=[(1, 4, 128), (512, 4, 128), (70, 3, 33), (50, 1, 1000), (40, 30, 4)])
def test_accuracy(variant, size):
    others, skip = variant
    options, draws = {**others, "eps": 1e-5}, [make(2, *size, seed=seed, skip=skip) for seed in DRAWS]
    assert_as_accurate(partial(numba, **options), partial(definition, **options), draws, names=NAMES)


@every_pair(variant=VARIANTS, size=[(1, 4, 128), (70, 3, 33), (40, 30, 4)])
def test_accuracy_with_a_bias(variant, size):
    """Outputs and every gradient, over several tiles of rows."""
    others, skip = variant
    options, draws = {**others, "eps": 1e-5}, [make(2, *size, seed=seed, skip=skip) for seed in DRAWS]
    draws = [with_bias(x) for x in draws]
    names = biased_names(draws[0])
    assert_as_accurate(partial(numba, **options), partial(definition, **options), draws, names=names)


def test_a_bias_seen_from_afar_and_its_gradient_alone():
    """It need not be contiguous; and without a gradient of its own it gets none."""
    x = with_bias(make(2, 40, 2, 9, skip=False))
    apart = torch.stack([x[3], x[3] + 1], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    assert torch.equal(numba(*x[:3], apart)[0], numba(*x)[0])
    with torch.no_grad():
        assert torch.equal(call(*x[:3], apart)[0], call(*x)[0])
    dy_BTE = torch.randn(2, 40, 18)
    for number in range(4):
        together, alone = [t.clone().requires_grad_() for t in x], [t.clone() for t in x]
        alone[number].requires_grad_()
        numba(*together)[0].backward(dy_BTE)
        numba(*alone)[0].backward(dy_BTE)
        assert torch.equal(alone[number].grad, together[number].grad)
        assert [t.grad is None for t in alone] == [n != number for n in range(4)]


@pytest.mark.parametrize(("mean", "scale"), [(100.0, 1.0), (1e4, 1.0), (1e4, 0.01), (0.0, 1e-4), (1.0, 1e-6), (0, 1e6)])
def test_accuracy_with_a_large_mean_or_a_tiny_variance(mean, scale):
    draws = [make(2, 60, 3, 100, seed=seed, mean=mean, scale=scale) for seed in DRAWS]
    for eps in (1e-5, 1e-12):
        assert_as_accurate(partial(numba, eps=eps), partial(definition, eps=eps), draws, names=NAMES)


def test_a_head_that_is_constant():
    """The variance is zero, and eps keeps the result finite: n = 0, though the mean cannot be rounded to be exact."""
    x = make(1, 3, 2, 100)
    x[0] = torch.full_like(x[0], 0.1)
    found = everything(numba, x)
    assert all(torch.isfinite(value).all() for value in found.values())
    gate = torch.nn.functional.silu(x[2])
    torch.testing.assert_close(found["output"], x[3] * x[4] * gate, rtol=1e-5, atol=1e-5)
    # rounding must not make the variance negative, however small eps is
    x[0] = (10.0 * torch.rand(200)).exp()[:, None, None, None].expand(200, 1, 2, 100)
    x[2], x[4] = x[2][:, :1].expand(200, 1, 200), x[4][:, :1].expand(200, 1, 200)
    assert all(torch.isfinite(value).all() for value in everything(numba, x, eps=1e-24).values())


def test_a_very_wide_head_that_is_constant():
    """The mean is then many digits off, and rounding alone makes the variance of some of these negative."""
    x = make(1, 40, 1, 65537, skip=False)
    x[0] = (10.0 * torch.rand(40)).exp()[None, :, None, None].expand(1, 40, 1, 65537)
    for value in everything(numba, x, eps=1e-12).values():
        assert torch.isfinite(value).all()


def test_gates_that_are_open_or_shut():
    x = make(1, 4, 2, 8)
    x[2][:, 0], x[2][:, 1], x[2][:, 2], x[2][:, 3] = 200.0, -200.0, 20.0, -20.0
    for activation in ("silu", "sigmoid"):
        want = everything(definition, [t.double() for t in x], activation=activation)
        comparison.assert_same(everything(numba, x, activation=activation), want, tolerance=2e-6)


@pytest.mark.parametrize("number", [0, 2, 4], ids=["h", "z", "c"])
def test_rows_that_are_part_of_longer_ones(number):
    """As the two halves of the up-projection are: read where they stand."""
    x = make(3, 40, 2, 9)
    want = everything(numba, x)
    for B in (1, 3):
        for part in (
            torch.cat([x[number], x[number] + 1], dim=-1)[..., : x[number].shape[-1]],
            torch.cat([x[number], x[number] + 1], dim=1)[:, : x[number].shape[1]],
            torch.stack([x[number], x[number] + 1], dim=-1)[..., 0],
            x[number].transpose(0, 1).contiguous().transpose(0, 1),
        ):
            apart = [t[:B] if n in (0, 2, 4) else t for n, t in enumerate(x)]
            apart[number] = part[:B]
            y_BTE, _ = numba(*apart)
            assert torch.equal(y_BTE, want["output"][:B])


@pytest.mark.parametrize("number", [0, 2, 4, 5], ids=["h", "z", "c", "gradient of y"])
@pytest.mark.parametrize("cut", ["a half of each row", "every other number"])
def test_gradients_from_rows_that_are_part_of_longer_ones(number, cut):
    x = [*make(3, 40, 2, 9), torch.randn(3, 40, 18)]
    results = []
    for apart in (False, True):
        leaves = [t.clone().requires_grad_() for t in x[:5]]
        seen = [*leaves, x[5]]
        if apart:
            both, width = [seen[number], seen[number] + 1], seen[number].shape[-1]
            halves = cut == "a half of each row"
            seen[number] = torch.cat(both, dim=-1)[..., :width] if halves else torch.stack(both, dim=-1)[..., 0]
            assert not seen[number].is_contiguous()
        y_BTE, _ = numba(*seen[:5])
        results.append(torch.autograd.grad(y_BTE, leaves, seen[5]))
    for name, got, want in zip(NAMES[:5], *results, strict=True):
        assert torch.equal(got, want), name


def test_an_expanded_gradient():
    """`sum().backward()` sends one number, seen from everywhere."""
    grads = []
    for op, dtype in ((numba, torch.float32), (definition, torch.float64)):
        x = [t.to(dtype).requires_grad_() for t in make(2, 5, 2, 6)]
        op(*x)[0].sum().backward()
        grads.append({f"gradient of {name}": t.grad for name, t in zip(NAMES[:5], x, strict=True)})
    comparison.assert_same(*grads, tolerance=1e-5)


@pytest.mark.parametrize("number", [0, 2, 4], ids=["h", "z", "c"])
def test_nan_stays_in_its_row_and_shows(number):
    x = make(2, 40, 2, 9)
    want = everything(numba, x)
    x[number][1, 7:9] = torch.nan
    got = everything(numba, x)
    others = torch.ones(2, 40, dtype=torch.bool)
    others[1, 7:9] = False
    for name in ("output", "gradient of h", "gradient of z", "gradient of c"):
        assert torch.equal(got[name][others], want[name][others]), name
    assert got["output"][1, 7:9].isnan().all()
    # c does not reach the gain: they are added
    assert got["gradient of skip" if number == 4 else "gradient of gain"].isnan().all()


def test_what_comes_in_is_left_as_it_was_and_nothing_is_shared():
    x = [t.requires_grad_() for t in make(2, 40, 2, 9)]
    before = [t.detach().clone() for t in x]
    y_BTE, _ = numba(*x)
    dy_BTE = torch.randn_like(y_BTE)
    dy_before_BTE = dy_BTE.clone()
    grads = torch.autograd.grad(y_BTE, x, dy_BTE)
    for now, then in zip([*x, dy_BTE], [*before, dy_before_BTE], strict=True):
        assert torch.equal(now.detach(), then)
    places = [t.untyped_storage().data_ptr() for t in (*x, y_BTE, dy_BTE, *grads[:1], *grads[2:3], *grads[4:])]
    assert len(set(places)) == len(places)


def test_some_gradients_alone():
    dy_BTE, together = torch.randn(1, 5, 12), [t.requires_grad_() for t in make(1, 5, 2, 6)]
    numba(*together)[0].backward(dy_BTE)
    for number, want in enumerate(together):
        x = make(1, 5, 2, 6)
        x[number].requires_grad_()
        numba(*x)[0].backward(dy_BTE)
        assert torch.equal(x[number].grad, want.grad)
        assert all(t.grad is None for n, t in enumerate(x) if n != number)


def test_threads_change_nothing(monkeypatch):
    """Any number of threads, work large or small, and several callers at once."""
    monkeypatch.setattr("exlstm.runtime.cpu.launch.THREAD_US", 1e-6)
    x = with_bias(make(3, 67, 3, 16))
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(everything(numba, x))
    with ThreadPoolExecutor(3) as callers:
        results += callers.map(lambda _: everything(numba, x), range(6))
    for result in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(result[name], tensor), name


def test_nothing_at_all():
    x = [t.requires_grad_() for t in make(0, 5, 2, 6)]
    y_BTE, _ = numba(*x)
    assert y_BTE.shape == (0, 5, 12)
    y_BTE.sum().backward()
    assert not x[1].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    """The torch form, in the dtype of h, statistics wide."""
    x = make(2, 5, 2, 64, mean=10.0, dtype=dtype)
    x[0].requires_grad_()
    with recorded() as choices:
        y_BTE, _ = call(*x)
    assert choices[0].op == "gated_norm"
    assert choices[0].backend == "torch"
    assert str(dtype).removeprefix("torch.") in choices[0].why
    assert y_BTE.dtype == dtype
    want, _ = definition(*(t.double() for t in x))
    torch.testing.assert_close(y_BTE.double(), want, rtol=0.05, atol=0.05)


@torch.no_grad()
@every_pair(
    dtype=[torch.float32, torch.bfloat16],
    size=[(1, 1, 1, 1), (1, 1, 4, 16), (3, 1, 2, 33), (2, 5, 3, 8)],
    variant=VARIANTS,
    bias=[True, False],
)
def test_a_few_rows_without_gradients(dtype, size, variant, bias):
    """One kernel for both dtypes; c and z may be parts of longer rows."""
    compare(exact_plain_and_one_kernel(seed, dtype, size, variant, bias) for seed in DRAWS)


def exact_plain_and_one_kernel(seed, dtype, size, variant, bias):
    chosen, skip = variant
    B, T, H, V = size
    h, gain, z, s, c = make(B, T, H, V, seed=seed, mean=3.0, dtype=dtype)
    z, c = (torch.cat([x, x + 1, x], dim=-1)[..., H * V : 2 * H * V] for x in (z, c))
    options = {"skip_E": s, "c_BTE": c} if skip else {}
    options |= {"bias_E": torch.randn(H * V).to(dtype)} if bias else {}
    with recorded() as choices:
        got = gated_norm(h, gain, z, **chosen, **options)
    assert choices[0].backend == "numba"
    wide = {name: x.double() for name, x in options.items()}
    exact = gated_norm(h.double(), gain.double(), z.double(), backend="torch", **chosen, **wide)
    with torch.enable_grad():  # so that no norm inside runs on this kernel too
        plain = gated_norm(h, gain.requires_grad_(), z, backend="torch", **chosen, **options)
    return [{"y": y} for y in (exact, plain.detach(), got)]


def test_which_backend_runs():
    x = make(1, 1, 2, 4)
    with recorded() as choices:
        call(*x)
        call(*x[:3], backend="torch")
    assert [choice.backend for choice in choices] == ["numba", "torch"]


def test_autocast_does_not_narrow_it():
    x = make(2, 5, 2, 8)
    want = everything(numba, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = everything(call, x)
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_errors():
    h, gain, z, skip, c = make(2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"z has shape \(2, 3, 7\); with h \(2, 3, 2, 4\) it must be \(2, 3, 8\)"):
        gated_norm(h, gain, z[..., :7])
    with pytest.raises(ValueError, match=r"gain has shape \(2, 4\)"):
        gated_norm(h, gain.view(2, 4), z)
    with pytest.raises(ValueError, match=r"skip has shape \(1,\)"):
        gated_norm(h, gain, z, skip_E=skip[:1], c_BTE=c)
    with pytest.raises(ValueError, match=r"c has shape \(2, 2, 8\)"):
        gated_norm(h, gain, z, skip_E=skip, c_BTE=c[:, :2])
    with pytest.raises(ValueError, match=r"bias has shape \(2, 4\)"):
        gated_norm(h, gain, z, bias_E=gain.view(2, 4))
    with pytest.raises(ValueError, match="skip and c come together"):
        gated_norm(h, gain, z, skip_E=skip)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        gated_norm(h, gain, z, activation="relu")
    with pytest.raises(ValueError, match="backend 'numba' of gated_norm cannot run"):
        gated_norm(h.double(), gain, z, backend="numba")
