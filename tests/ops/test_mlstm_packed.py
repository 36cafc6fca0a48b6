"""Packed sequences of the mLSTM are the sequences one by one: outputs, states, and all gradients."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from mlstm_cases import BACKENDS, BORDERS, call, everything, make, one_by_one, packed, resets

from exlstm.ops.mlstm import MLSTMState, mlstm


@pytest.mark.parametrize("backend", [*BACKENDS, "numba"])
@pytest.mark.parametrize("with_resets", [False, True])
def test_packed_sequences_are_the_sequences(backend, with_resets):
    x, options = packed(BORDERS), {"reset_BT": resets(1, BORDERS[-1]) if with_resets else None}
    want = everything(x, partial(one_by_one, BORDERS, **options))
    x = [t.float() for t in x] if backend == "numba" else x
    run = partial(call, cu_seqlens=torch.tensor(BORDERS), backend=backend, chunk_len=16, **options)
    assert_same(everything(x, run), want, tolerance=2e-5 if x[0].dtype == torch.float32 else 1e-9)


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
