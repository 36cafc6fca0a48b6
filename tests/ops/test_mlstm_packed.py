"""Packed sequences of the mLSTM are the sequences one by one: outputs, states, and all gradients."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from mlstm_cases import BACKENDS, call, everything, make, resets
from same import assert_same

from exlstm.ops.mlstm import MLSTMState, mlstm

BORDERS = [0, 7, 8, 8, 50, 75]  # one step, and none at all


def packed(borders, seed=0, **options):
    """The eight tensors: one row of inputs, and a state for each sequence."""
    row = make(1, borders[-1], 2, 8, 6, seed=seed, positive=True, **options)
    return row[:5] + make(len(borders) - 1, 1, 2, 8, 6, seed=seed + 1, positive=True, **options)[5:]


def one_by_one(borders, *x, reset_BT=None, **options):
    """What packing has to equal."""
    found = []
    for number, (begin, end) in enumerate(pairwise(borders)):
        state = MLSTMState(*(t[number : number + 1] for t in x[5:]))
        if begin == end:
            found.append((x[2][:, :0], state))
            continue
        reset = None if reset_BT is None else reset_BT[:, begin:end]
        found.append(mlstm(*(t[:, begin:end] for t in x[:5]), state, reset_BT=reset, backend="recurrent", **options))
    outputs, states = zip(*found, strict=True)
    return torch.cat(outputs, dim=1), MLSTMState(*map(torch.cat, zip(*states, strict=True)))


@pytest.mark.parametrize("backend", [*BACKENDS, "numba", "triton"])
@pytest.mark.parametrize("with_resets", [False, True])
def test_packed_sequences_are_the_sequences(backend, with_resets):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton has no wheel for this system")
    x, options = packed(BORDERS), {"reset_BT": resets(1, BORDERS[-1]) if with_resets else None}
    want = everything(x, partial(one_by_one, BORDERS, **options))
    x = [t.float() for t in x] if backend in ("numba", "triton") else x
    run = partial(call, cu_seqlens=torch.tensor(BORDERS), backend=backend, chunk_len=16, **options)
    assert_same(everything(x, run), want, tolerance=2e-5 if x[0].dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_more_tiles_than_sequences_fill(input_gate):
    """Triton's grid has room for a part of a chunk for every sequence; here most of it stays empty."""
    pytest.importorskip("triton", reason="Triton has no wheel for this system")
    borders = [0, 64, 128, 128]
    x = packed(borders)
    x[7] *= input_gate == "exp"  # the sigmoid gate needs no stabiliser and has none
    want = everything(x, partial(one_by_one, borders, input_gate=input_gate))
    run = partial(
        call, cu_seqlens=torch.tensor(borders, dtype=torch.int32), backend="triton", chunk_len=64, input_gate=input_gate
    )
    assert_same(everything([t.float() for t in x], run), want, tolerance=2e-5)


@pytest.mark.parametrize(
    ("borders", "said"),
    [
        ([0, 5, 3, 10], r"cu_seqlens is \[0, 5, 3, 10\]; it must rise from 0 to the 10 steps of the row"),
        ([0, 5], r"cu_seqlens is \[0, 5\]; it must rise from 0 to the 10 steps of the row"),
        ([1, 10], r"it must rise from 0"),
        ([0.0, 10.0], r"cu_seqlens is torch.float32 of shape \(2,\); it must hold integers"),
        ([0], r"shape \(1,\); it must hold integers"),
    ],
)
def test_borders_that_do_not_fit(borders, said):
    x = make(1, 10)
    with pytest.raises(ValueError, match=said):
        mlstm(*x[:5], cu_seqlens=torch.tensor(borders))


def test_what_does_not_go_together():
    x = make(2, 10)
    with pytest.raises(ValueError, match=r"there must be one row and there are 2; join them along the time"):
        mlstm(*x[:5], cu_seqlens=torch.tensor([0, 10]))
    x = make(1, 10)
    with pytest.raises(ValueError, match=r"lengths_B and cu_seqlens are both given"):
        mlstm(*x[:5], lengths_B=torch.tensor([4]), cu_seqlens=torch.tensor([0, 10]))
    with pytest.raises(ValueError, match=r"C_?.*state|c_.*of the state"):
        mlstm(*x[:5], MLSTMState(*x[5:]), cu_seqlens=torch.tensor([0, 5, 10]))
