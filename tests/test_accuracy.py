"""The accuracy rule accepts a reordered sum and rejects each planted fault."""

from typing import NamedTuple

import pytest
import torch

from accuracy import DRAWS, assert_as_accurate


class State(NamedTuple):
    total_BK: torch.Tensor
    unit_B: torch.Tensor  # carries no gradient, like a stabiliser


def definition(x_BTK, keep_BT):
    """A sum over time, one step after another, in float32 or wider."""
    wide_BTK = x_BTK.to(torch.promote_types(x_BTK.dtype, torch.float32))
    total_BK = torch.zeros_like(wide_BTK[:, 0])
    for t in range(x_BTK.shape[1]):
        total_BK = total_BK + wide_BTK[:, t] ** 2 * keep_BT[:, t, None]
    return total_BK.to(x_BTK.dtype), State(total_BK, total_BK.amax(-1).detach())


def fast(x_BTK, keep_BT):
    wide_BTK = x_BTK.to(torch.promote_types(x_BTK.dtype, torch.float32))
    total_BK = torch.einsum("btk,btk,bt->bk", wide_BTK, wide_BTK, keep_BT.to(wide_BTK.dtype))
    return total_BK.to(x_BTK.dtype), State(total_BK, total_BK.amax(-1).detach())


def worse_by(part):
    """`fast` with one fault."""

    def op(x_BTK, keep_BT):
        out_BK, state = fast(x_BTK, keep_BT)
        match part:
            case "output":
                out_BK = out_BK * 1.05
            case "state":
                state = state._replace(total_BK=state.total_BK.to(torch.float16).to(state.total_BK.dtype))
            case "gradient":
                out_BK = out_BK.detach() + 0.95 * (out_BK - out_BK.detach())
            case "gradient of the state":
                state = state._replace(total_BK=state.total_BK.detach())
            case "dtype":
                state = state._replace(unit_B=state.unit_B.double())
            case "nan":
                out_BK = out_BK * torch.tensor([[torch.nan]] + [[1.0]] * (out_BK.shape[0] - 1)).to(out_BK.dtype)
        return out_BK, state

    return op


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def draws(request):
    return [(torch.randn(3, 200, 4).to(request.param), torch.rand(3, 200) > 0.5) for _ in DRAWS]


def test_a_reordered_sum_passes(draws):
    assert_as_accurate(fast, definition, draws)


def test_one_unlucky_draw_is_not_enough(draws):
    """On some processor each sum is unlucky once; what is worse in most draws is worse."""

    def unlucky(times):
        calls = iter(range(len(draws)))

        def op(*x):
            return (worse_by("output") if next(calls) < times else fast)(*x)

        return op

    assert_as_accurate(unlucky(2), definition, draws)
    with pytest.raises(AssertionError, match=r"^output: relative error .* in 5 draws, allowed"):
        assert_as_accurate(unlucky(3), definition, draws)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("output", "^output: relative error"),
        ("state", "^state.total_BK: relative error"),
        ("gradient", "^gradient of x: relative error"),
        ("gradient of the state", "^gradient of x: relative error"),
        ("dtype", "^state.unit_B: is torch.float64"),
        ("nan", "^output: not finite"),
    ],
)
def test_each_fault_is_found(draws, fault, message):
    with pytest.raises(AssertionError, match=message):
        assert_as_accurate(worse_by(fault), definition, draws, names=("x", "keep"))
