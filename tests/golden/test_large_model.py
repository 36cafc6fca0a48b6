"""xLSTM-7B's architecture, small, against the official `xLSTMLarge` and transformers' `xlstm`."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import xLSTMConfig, xLSTMForCausalLM
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from peers import from_large

WIDTH, HEADS, BLOCKS, VOCAB, FFN = 128, 4, 2, 50, 384


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.5 if "norm" in name or "head" in name else 0.1) * torch.randn_like(parameter)
    return model


def ours(model, dtype):
    block = BlockConfig(mixer=MLSTMLargeConfig(heads=HEADS), mlp=MLPConfig(hidden=FFN, activation="silu"))
    config = LMConfig(
        vocab_size=VOCAB, width=WIDTH, blocks=(block,) * BLOCKS, norm="rms", norm_eps=1e-6, logit_cap=30.0
    )
    copy = LM(config).to(dtype)
    copy.load_state_dict(from_large(model.state_dict()))
    return copy


def official():
    config = xLSTMLargeConfig(
        embedding_dim=WIDTH, num_heads=HEADS, num_blocks=BLOCKS, vocab_size=VOCAB, chunk_size=16, mode="train",
        return_last_states=True, chunkwise_kernel="chunkwise--native_autograd",
        sequence_kernel="native_sequence__native", step_kernel="native", autocast_kernel_dtype="float32",
        norm_reduction_force_float32=False,
    )  # fmt: skip
    return shaken(xLSTMLarge(config)).double()


def tokens(T=32):
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def test_logits_states_and_every_gradient():
    """float64. Both start from m = 0 and scale q, so even eps and the states are the same."""
    model = official()
    copy = ours(model, torch.float64)
    (want, states), (got, after) = model(tokens()), copy(tokens())
    assert want.abs().max() > 10  # both soft caps are at work
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for index, block in enumerate(after):
        for x, y in zip(block, states[index], strict=True):
            torch.testing.assert_close(x, y.view_as(x), rtol=1e-9, atol=1e-9)
    for logits in (want, got):
        cross_entropy(logits.flatten(0, 1), tokens().roll(-1, 1).flatten()).backward()
    gradients = from_large({name: p.grad for name, p in model.named_parameters()})
    parameters = dict(copy.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_a_state_taken_over_from_the_official_model():
    """Prefill there, decode here."""
    model = official()
    copy = ours(model, torch.float64)
    with torch.no_grad():
        _, states = model(tokens())
        _, after = copy(tokens())
        theirs = tuple(
            type(block)(*(y.view_as(x) for x, y in zip(block, states[index], strict=True)))
            for index, block in enumerate(after)
        )
        torch.testing.assert_close(copy(tokens(5), theirs)[0], copy(tokens(5), after)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [1, 37, 64])
def test_transformers(T):
    """Any length, in float32, which is what transformers computes its logits in."""
    config = xLSTMConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_heads=HEADS, embedding_dim=WIDTH,
        num_blocks=BLOCKS, chunk_size=16, use_cache=False,
    )  # fmt: skip
    model = shaken(xLSTMForCausalLM(config)).eval()
    copy = ours(model, torch.float32)
    with torch.no_grad():
        want, got = model(tokens(T), use_cache=False).logits, copy(tokens(T))[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)
