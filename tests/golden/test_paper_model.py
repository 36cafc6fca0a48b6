"""The paper's language model against the authors' own, `xlstm` 2.0.6, in float64: logits, steps, every gradient."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.ops.mlstm import mlstm
from peers import from_paper, paper_model

WIDTH, VOCAB, T = 64, 50, 24


def official(slstm_at, blocks=3):
    torch.manual_seed(0)
    model = paper_model(vocab_size=VOCAB, width=WIDTH, length=T, blocks=blocks, slstm_at=slstm_at).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


def ours(model, slstm_at, blocks=3):
    pattern = "".join("s" if index in slstm_at else "m" for index in range(blocks))
    copy = LM(lm_from_pattern(pattern, vocab_size=VOCAB, width=WIDTH)).double()
    copy.load_state_dict(from_paper(model.state_dict(), gain=1))
    return copy


@pytest.fixture(params=[[], [1], [0, 1, 2]], ids=["1:0", "2:1", "0:1"])
def pair(request):
    model = official(request.param)
    return model, ours(model, request.param)


def tokens():
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def without_eps(pair, monkeypatch):
    """eps is added in the unit m, and the official parallel form starts from another unit: leave it out of both."""
    model, copy = pair
    monkeypatch.setattr("exlstm.mixers.mlstm.mlstm", partial(mlstm, eps=0.0))
    for block in model.xlstm_block_stack.blocks:
        if hasattr(block.xlstm, "mlstm_cell"):
            block.xlstm.mlstm_cell.backend_fn = partial(parallel_stabilized_simple, eps=0.0)
    return model, copy


def test_logits(pair):
    model, copy = pair
    with torch.no_grad():
        torch.testing.assert_close(copy(tokens())[0], model(tokens()), rtol=1e-5, atol=2e-5)


def test_logits_and_every_gradient_to_the_last_digits(pair, monkeypatch):
    model, copy = without_eps(pair, monkeypatch)
    want, got = model(tokens()), copy(tokens())[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    targets = tokens().roll(-1, 1).flatten()
    for logits in (want, got):
        cross_entropy(logits.flatten(0, 1), targets).backward()
    gradients = from_paper({name: p.grad for name, p in model.named_parameters()}, gain=0)
    parameters = dict(copy.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: n + m)


def test_step_by_step_to_the_last_digits(pair):
    """The official steps start from m = 0 as ours do, so eps has the same size in both."""
    model, copy = pair
    state, after, x = {}, None, tokens()
    with torch.no_grad():
        for t in range(8):
            want, state = model.step(x[:, t : t + 1].clone(), state)
            got, after = copy(x[:, t : t + 1], after)
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_states_hold_the_same_memory(pair):
    """After 8 steps: k is stored unscaled here and divided by sqrt(K) there; the sLSTM's state is the same."""
    model, copy = pair
    state, x = {}, tokens()[:, :8]
    with torch.no_grad():
        for t in range(8):
            _, state = model.step(x[:, t : t + 1].clone(), state)
        _, after = copy(x)
    for index, block in enumerate(after):
        theirs = state[f"block_{index}"]
        torch.testing.assert_close(block.conv.past_BSD, theirs["conv_state"][0][:, 1:], rtol=1e-9, atol=1e-9)
        if "mlstm_state" in theirs:
            c, n, m = theirs["mlstm_state"]
            root = c.shape[-1] ** 0.5
            # the unit m is the same, for both start from m = 0
            torch.testing.assert_close(block.cell.m_BH, m[..., 0, 0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(block.cell.c_BHKV, c * root, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(block.cell.n_BHK, n[..., 0] * root, rtol=1e-9, atol=1e-9)
        else:
            for got, want in zip(block.cell, theirs["slstm_state"], strict=True):
                torch.testing.assert_close(got.flatten(1), want, rtol=1e-9, atol=1e-9)


def test_fast_kernels_in_float32(pair):
    """The Numba scan and the chunkwise form, as they run by default, on the same weights."""
    model, copy = pair
    with torch.no_grad():
        want = model(tokens())
        torch.testing.assert_close(copy.float()(tokens())[0].double(), want, rtol=1e-4, atol=2e-4)


def test_counts_are_the_official_ones(pair):
    model, copy = pair
    assert sum(p.numel() for p in copy.parameters()) == sum(p.numel() for p in model.parameters())
