"""Copies of a model for threads: the same memory, gradients of their own."""

import pytest
import torch
from torch.nn import functional

import exlstm
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.replicas import ThreadedReplicas, share_weights


def build(**options: bool) -> LM:
    config = lm_from_pattern("msMal", vocab_size=11, width=32)
    return LM(LMConfig(**{**vars(config), **options}))


def quantised() -> LM:
    return exlstm.quantize(build(), "int8")


def places(model: LM) -> list[int]:
    return [x.data_ptr() for x in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("make", [build, quantised])
def test_a_copy_has_the_memory_of_the_model(make) -> None:
    model = make()
    replica = share_weights(model)
    assert replica is not model
    assert list(replica.state_dict()) == list(model.state_dict())
    assert places(replica) == places(model)
    tokens_BT = torch.randint(11, (2, 5))
    assert torch.equal(replica(tokens_BT)[0], model(tokens_BT)[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # as an optimiser does
    assert torch.equal(replica(tokens_BT)[0], model(tokens_BT)[0])


def test_a_copy_of_a_tied_model_is_tied() -> None:
    replica = share_weights(build(tie_embeddings=True))
    assert replica.head.weight is replica.embed.weight


def test_a_copy_keeps_what_is_frozen() -> None:
    model = build()
    model.embed.requires_grad_(False)
    assert [p.requires_grad for p in share_weights(model).parameters()] == [p.requires_grad for p in model.parameters()]


def test_copies_have_gradients_of_their_own_until_they_are_gathered() -> None:
    model = build()
    replicas = ThreadedReplicas(model, 2)
    tokens_BT, targets_BT = torch.randint(11, (2, 4, 7))

    def work(model: LM, part: slice, number: int) -> None:
        logits_BTC = model.read_out(replicas.hidden[number](tokens_BT[part])[0])
        functional.cross_entropy(logits_BTC.flatten(0, 1), targets_BT[part].flatten(), reduction="sum").backward()

    replicas.run(work, 4)
    half, other = ([p.grad.clone() for p in m.parameters()] for m in replicas.models)
    assert not any(torch.equal(a, b) for a, b in zip(half, other, strict=True) if a.any())
    replicas.gather_gradients()
    for parameter, a, b in zip(model.parameters(), half, other, strict=True):
        assert torch.equal(parameter.grad, a + b)
    assert all(p.grad is None for p in replicas.models[1].parameters())
