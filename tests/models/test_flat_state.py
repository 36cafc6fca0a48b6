"""States as one vector per row: of every mixer, of language models, and what is refused."""

from dataclasses import replace

import pytest
import torch
from encoder_cases import WIDTH, assert_close, build, inputs

import exlstm
from exlstm.mixers import MIXERS
from exlstm.mixers.state import leaves, rows

GROWING = {"attention", "hyena"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "pattern",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in MIXERS if n not in GROWING), "msMl", "rglru"],
)
def test_flat_states(pattern, dtype):
    """The same numbers in one row; a row of zeros is the state before the first step, so a row times 0 is a reset."""
    model, x = build(pattern, dtype=dtype), inputs(dtype=dtype)
    _, state = model(x)
    flat = exlstm.flat_state(model, state)
    assert flat.shape == (3, model.state_size)
    assert flat.dtype is dtype
    if not any(part.dtype is torch.bool for part in leaves(state)):
        assert model.state_size * flat.itemsize == model.state_bytes()
    again = exlstm.unflat_state(model, flat)
    for got, want in zip(leaves(again), leaves(state), strict=True):
        assert got.dtype is want.dtype
        assert torch.equal(got, want)
    assert not exlstm.flat_state(model, model.zero_state(3)).any()
    assert torch.equal(exlstm.flat_state(model, rows(state, torch.tensor([2, 0]))), flat[[2, 0]])

    keep, reset = torch.tensor([[1.0], [0.0], [1.0]], dtype=dtype), torch.zeros(3, 12, dtype=torch.bool)
    reset[1, 0] = True
    y, after = model(x, exlstm.unflat_state(model, keep * flat))
    z, other = model(x, state, reset=reset)
    assert_close(y, z, 1e-10 if dtype is torch.float64 else 1e-5)
    assert len(leaves(after)) == len(leaves(other))


def test_flat_states_of_an_lm_and_of_counts():
    """int64 is exact far beyond what float32 holds, and gradients flow through floats."""
    config = exlstm.lm_from_pattern("ms,linformer", vocab_size=7, width=WIDTH)
    model = exlstm.LM(replace(config, positions=40))
    logits, state = model(torch.randint(7, (2, 6)))
    *_, position = state
    many = torch.tensor([2**40 + 12345, 2**24 + 1])
    state = (*state[:-1], type(position)(*(many.reshape(part.shape) for part in position)))
    flat = exlstm.flat_state(model, state)
    assert flat.dtype is torch.float32
    assert model.state_size * 4 == model.state_bytes()
    for got, want in zip(leaves(exlstm.unflat_state(model, flat)), leaves(state), strict=True):
        assert torch.equal(got, want)
    flat = flat.detach().requires_grad_()
    exlstm.unflat_state(model, flat)[1].cell.c_BHV.sum().backward()
    assert flat.grad.sum() == 2 * WIDTH


def test_an_unflattened_state_has_its_own_memory():
    model = build("m")
    flat = exlstm.flat_state(model, model(inputs())[1])
    state = exlstm.unflat_state(model, flat)
    before = [part.clone() for part in leaves(state)]
    flat.zero_()
    assert all(map(torch.equal, leaves(state), before))
    assert all(part.is_contiguous() for part in leaves(state))


WRONG_FLAT = [
    (lambda: exlstm.flat_state(build("a"), ()), r"grows, from .* bytes to .*; use blocks with a state of fixed size"),
    (lambda: build("hyena").state_size, "grows"),
    (lambda: exlstm.flat_state(build("m"), (1, 2)), r"has 2 entries for 1 blocks; pass the state"),
    (lambda: exlstm.flat_state(build("m"), None), r"has NoneType entries"),
    (
        lambda: exlstm.unflat_state(build("m"), torch.zeros(2, 3)),
        r"has shape \(2, 3\); this model takes \[batch, \d+\]",
    ),
    (lambda: exlstm.unflat_state(build("m"), None), r"is a NoneType; this model takes"),
    (lambda: exlstm.unflat_state(build("l"), torch.zeros(2, 32)), r"is torch.float32, and this .* takes torch.float64"),
    (
        lambda: exlstm.flat_state(build("m", bidirectional=True), ()),
        r"has no state, .*; use one with bidirectional=False",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG_FLAT, ids=[message for _, message in WRONG_FLAT])
def test_wrong_flat_states(call, message):
    with pytest.raises(ValueError, match=message):
        call()
