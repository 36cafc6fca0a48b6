"""Quantised models: what is replaced, what is not, and how much worse they are."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import exlstm
from exlstm.infer.quantize import with_weights
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.models.lm import LM, BlockConfig, LMConfig, MLPConfig
from exlstm.nn.linear import Int4Linear, Int8Linear

LAYERS = {"int8": Int8Linear, "int4": Int4Linear}
bits = pytest.mark.parametrize("weights", LAYERS)


def build(tie=False, width=32):
    configs = [
        MLSTMLargeConfig(heads=2),
        exlstm.MLSTMConfig(heads=2),
        exlstm.SLSTMConfig(heads=2),
        AttentionConfig(heads=2),
    ]
    blocks = tuple(BlockConfig(mixer=c, mlp=MLPConfig(hidden=48)) for c in configs)
    return LM(LMConfig(vocab_size=50, width=width, blocks=blocks, tie_embeddings=tie)).eval()


@bits
def test_what_is_quantised(weights):
    model = build()
    found = exlstm.quantize(model, weights)
    kinds = {name: type(module) for name, module in found.named_modules()}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            gate = name.endswith(("mixer.i", "mixer.f"))
            assert kinds[name] is (type(layer) if gate else LAYERS[weights]), name
    before, after = model.state_dict(), found.state_dict()
    kept = before.keys() & after.keys()
    names = ("embed.weight", "norm.weight", "blocks.0.mixer.i.weight", "blocks.0.mixer.f.bias", "blocks.1.mixer.skip")
    assert kept >= {*names, "blocks.1.mixer.q.weight_HVK", "blocks.1.mixer.conv.weight_DW", "blocks.2.mixer.r_HKGV"}
    for name in kept:
        assert torch.equal(before[name], after[name])
        assert before[name].data_ptr() != after[name].data_ptr(), "it is a copy"
    assert all(x.dtype in (torch.float32, torch.int8, torch.uint8) for x in after.values())


@bits
def test_the_original_is_left_alone(weights):
    model = build()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    exlstm.quantize(model, weights)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())
    assert all(not isinstance(module, Int8Linear | Int4Linear) for module in model.modules())


@bits
@torch.no_grad()
def test_a_tied_head_leaves_the_embedding_alone(weights):
    model = build(tie=True)
    found = exlstm.quantize(model, weights)
    assert torch.equal(found.embed.weight, model.embed.weight)
    assert isinstance(found.head, LAYERS[weights])


@bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prefill_and_decoding_agree(weights, dtype):
    """Many rows take torch's product with expanded weights, one takes our kernel: the same model."""
    model = exlstm.quantize(build(), weights).to(dtype)
    tokens_BT = torch.randint(50, (1, 100))
    whole_BTC, _ = model(tokens_BT)
    state, parts = None, []
    for t in range(100):
        logits_BTC, state = model(tokens_BT[:, t : t + 1], state)
        parts.append(logits_BTC)
    error = (torch.cat(parts, 1) - whole_BTC).abs().max() / whole_BTC.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


@bits
@torch.no_grad()
def test_state_dict_round_trip(weights):
    model, other = build(), build()
    for parameter in other.parameters():
        parameter.zero_()
    found, fresh = exlstm.quantize(model, weights), exlstm.quantize(other, weights)
    fresh.load_state_dict(found.state_dict())
    tokens_BT = torch.randint(50, (2, 9))
    assert torch.equal(found(tokens_BT)[0], fresh(tokens_BT)[0])


def test_explain_and_summary_know_quantised_models():
    model = build()
    found = exlstm.quantize(model, "int8")
    assert re.search(r"linear +\d+ +numba", exlstm.explain(found, 1, 1))
    assert found.summary()
    assert found.config == model.config


def test_mistakes():
    model = build()
    with pytest.raises(ValueError, match=r"^weights are 'int3'; they can be one of int8, int4\.$"):
        exlstm.quantize(model, "int3")
    with pytest.raises(ValueError, match="quantised already"):
        exlstm.quantize(exlstm.quantize(model, "int8"), "int4")


def test_with_weights():
    model = build()
    assert with_weights(model, "as-saved") is model
    assert isinstance(with_weights(model, "int4").head, Int4Linear)
    assert with_weights(model, "bfloat16").head.weight.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt a simple language: each token follows from the last by a fixed rule, most of the time."""
    torch.manual_seed(0)
    model = build(width=64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = nll(model, language(16, 33))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def language(rows, length):
    tokens = [torch.randint(50, (rows,))]
    for _ in range(length - 1):
        tokens.append(torch.where(torch.rand(rows) < 0.9, (7 * tokens[-1] + 3) % 50, torch.randint(50, (rows,))))
    return torch.stack(tokens, 1)


def nll(model, tokens_BT):
    logits_BTC, _ = model(tokens_BT[:, :-1])
    return functional.cross_entropy(logits_BTC.flatten(0, 1), tokens_BT[:, 1:].flatten())


@torch.no_grad()
@pytest.mark.parametrize(("weights", "allowed"), [("int8", 0.002), ("int4", 0.1)])
def test_perplexity(trained, weights, allowed):
    """Of a model that has learnt something; perplexity may grow by this share."""
    text = language(32, 65)
    before = nll(trained, text).item()
    assert before < 0.6 * math.log(50), "it has learnt nothing"
    after = nll(exlstm.quantize(trained, weights), text).item()
    assert abs(math.exp(after - before) - 1) < allowed
