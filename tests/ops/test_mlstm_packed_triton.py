"""Packed sequences in the Triton kernels of the mLSTM: on a CPU through Triton's interpreter, on a GPU compiled."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from mlstm_cases import BORDERS, call, everything, one_by_one, packed, resets
from triton_cases import here

pytest.importorskip("triton", reason="Triton has no wheel for this system")


def check(borders, chunk_len, H=1, dtype=torch.int64, **options):
    """They are the sequences one by one."""
    x, options = here(packed(borders, H)), here(options)
    if options.get("input_gate") == "sigmoid":
        x[7] *= 0  # it has no stabilizer
    want = everything(x, partial(one_by_one, borders, **options))
    run = partial(call, cu_seqlens=torch.tensor(borders, dtype=dtype), backend="triton", chunk_len=chunk_len, **options)
    assert_same(everything([t.float() for t in x], run), want, tolerance=2e-5)


def test_packed_sequences_are_the_sequences():
    check(BORDERS, 16, H=2)


@pytest.mark.slow
def test_resets():
    check(BORDERS, 16, reset_BT=resets(1, BORDERS[-1]))


@pytest.mark.parametrize("input_gate", ["exp", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_chunks_of_two_tiles(input_gate):
    """The grid has room for a part of a chunk for every sequence; here one chunk stays empty."""
    check([0, 130, 256, 256], 128, dtype=torch.int32, input_gate=input_gate)
