"""The same of the Triton kernels, through Triton's interpreter where there is no GPU."""

import pytest
import torch
from op_cases import TRITON, results
from triton_cases import here

pytest.importorskip("triton", reason="Triton has no wheel for this system")
every_op = pytest.mark.parametrize("name", TRITON)
# the mLSTM's kernels take the interpreter seconds
quick_ops = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.startswith("mlstm") else ()) for name in TRITON]
)


def given(name, B=3, T=3):
    """Inputs, a state, resets and lengths where Triton runs."""
    inputs, state = TRITON[name].make(B, T)
    reset = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.3
    lengths = torch.tensor([T, 0, T // 2][:B], dtype=torch.long)
    return here(inputs), type(state)(*here(list(state))), here({"reset_BT": reset, "lengths_B": lengths})


def same(got, want):
    """Bit for bit."""
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert torch.equal(got[key], value), key


@quick_ops
def test_states_are_widened_or_refused(name):
    inputs, state, rows = given(name)
    short = type(state)(*(s.bfloat16() for s in state))
    want = results(TRITON[name], inputs, type(state)(*(s.float() for s in short)), **rows)
    got = results(TRITON[name], inputs, short, **rows)
    same({key: x.float() for key, x in got.items()}, {
        key: x.bfloat16().float() if key.startswith("gradient of ") and key.rsplit(" ", 1)[1] in state._fields else x
        for key, x in want.items()
    })  # fmt: skip
    wrong = state._replace(**{state._fields[0]: state[0].double()})
    with pytest.raises(ValueError, match=r"of the state is torch.float64 .* it must be torch.float32"):
        TRITON[name].run(inputs, wrong)


@pytest.mark.slow
@quick_ops
def test_padding_may_be_anything(name):
    """Neither outputs, nor states, nor any gradient see it."""
    op, (inputs, state, rows) = TRITON[name], given(name)
    padding = torch.arange(3, device=inputs[0].device) >= rows["lengths_B"][:, None]
    found = []
    for fill in (0.0, torch.nan, torch.inf):
        for x in inputs[: len(op.ragged)]:
            x[padding] = fill
        found.append(results(op, inputs, state, **rows))
    assert all(x.isfinite().all() for x in found[0].values())
    for other in found[1:]:
        same(other, found[0])


@every_op
def test_no_rows(name):
    inputs, state, rows = given(name, 0)
    got = results(TRITON[name], inputs, state, **rows)
    assert got["output"].shape == (0, *results(TRITON[name], *given(name, 1)[:2])["output"].shape[1:])
    assert not any(x.any() for x in got.values())


@pytest.mark.slow
@every_op
def test_what_changes_before_the_backward_is_noticed(name):
    """torch says so, or the gradient did not need it."""
    op = TRITON[name]

    def gradients(number):
        inputs, state, rows = given(name)
        everything = [*inputs, *state, rows["reset_BT"]]
        wanted = [x.requires_grad_() for x in everything[:-1]]
        y, after = op.run(inputs, state, reset_BT=rows["reset_BT"])
        if number is not None:
            with torch.no_grad():
                everything[number].logical_not_() if number == len(wanted) else everything[number].add_(1)
        outputs = [out for out in (y, *after) if out.requires_grad]
        return torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs], allow_unused=True)

    want = gradients(None)
    for number in range(len(op.ragged) + len(op.weights) + len(op.kind._fields) + 1):
        try:
            got = gradients(number)
        except RuntimeError as refusal:
            if "modified" not in str(refusal):
                raise
            continue
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None), number
            assert a is None or torch.equal(a, b), number
