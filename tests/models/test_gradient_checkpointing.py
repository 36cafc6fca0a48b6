"""Gradient checkpointing: the same gradients, bit for bit, from fewer tensors kept."""

from dataclasses import replace

import pytest
import torch

from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.replicas import ThreadedReplicas


def gradients(model: LM, *, carried: bool = False, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Of a loss of two calls, the second of which may go on from the state of the first."""
    torch.manual_seed(1)
    tokens_BT, reset_BT = torch.randint(11, (2, 12)), torch.rand(2, 12) < 0.1
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        one_BTC, state = model(tokens_BT, reset_BT=reset_BT)
        two_BTC, _ = model(tokens_BT, state if carried else None, lengths_B=torch.tensor([12, 7]))
    (one_BTC.logsumexp(-1).sum() + two_BTC[:, :7].logsumexp(-1).sum()).backward()
    return [parameter.grad for parameter in model.parameters()]


def build(blocks: str, **changes: object) -> LM:
    torch.manual_seed(0)
    return LM(replace(lm_from_pattern(blocks, vocab_size=11, width=32), **changes))


@pytest.mark.parametrize(
    ("blocks", "changes", "options"),
    [
        ("msMl", {}, {}),
        ("msMl", {}, {"carried": True}),
        ("msa", {"dropout": 0.3}, {}),
        ("ms", {}, {"dtype": torch.bfloat16}),
    ],
    ids=["plain", "carried state", "dropout", "bfloat16"],
)
def test_gradients_are_equal_bit_for_bit(blocks: str, changes: dict, options: dict) -> None:
    model = build(blocks, **changes)
    plain = gradients(model, **options)
    model.gradient_checkpointing = True
    for one, other in zip(plain, gradients(model, **options), strict=True):
        assert torch.equal(one, other)


def kept_bytes(model: LM) -> int:
    """Of the tensors that a backward keeps, each memory once and without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in parameters:
            kept[memory.data_ptr()] = memory.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        x_BTD, _ = model.hidden(torch.randint(11, (2, 64)))
    del x_BTD
    return sum(kept.values())


def test_only_the_inputs_of_blocks_are_kept() -> None:
    model = build("msmsms")
    without = kept_bytes(model)
    model.gradient_checkpointing = True
    with_it = kept_bytes(model)
    assert with_it < without / 10
    # tokens, and what the last norm keeps, beside the input of each block
    assert with_it <= 10 * 2 * 64 * 32 * 4


def test_a_copy_for_a_thread_does_it_too() -> None:
    model = build("m")
    model.gradient_checkpointing = True
    assert all(replica.gradient_checkpointing for replica in ThreadedReplicas(model, 3).models)
