"""The recurrent block of Hawk against transformers' RecurrentGemma, and counts of parameters."""

import pytest
import torch
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

from exlstm.mixers.rglru import RGLRUConfig
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.summary import parameters
from exlstm.ops.rglru import rglru_gates
from exlstm.ops.scan import scan

WIDTH, INNER, HEADS = 24, 32, 4


def theirs():
    config = RecurrentGemmaConfig(
        hidden_size=WIDTH,
        lru_width=INNER,
        num_attention_heads=HEADS,
        conv1d_width=4,
        num_hidden_layers=2,
        vocab_size=11,
    )
    torch.manual_seed(0)
    block = RecurrentGemmaRecurrentBlock(config, 0)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(0.3 * torch.randn_like(p))
        block.rg_lru.recurrent_param.add_(-4)
    return block


def weights(block):
    """Theirs under our names: gates [heads, in, out] become [heads, out, in]."""
    lru, conv = block.rg_lru, block.conv_1d
    found = {"lam_E": lru.recurrent_param, "conv.weight_DW": conv.weight[:, 0], "conv.bias_D": conv.bias}
    for ours, name in (("r", "recurrent"), ("i", "input")):
        found[f"{ours}.weight_HVK"] = getattr(lru, f"{name}_gate_weight").mT
        found[f"{ours}.bias_D"] = getattr(lru, f"{name}_gate_bias").flatten()
    for name in ("x", "y", "out"):
        layer = getattr(block, f"linear_{name}")
        found |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return found


@pytest.mark.parametrize("T", [1, 5, 64, 67])
def test_the_block(T):
    block = theirs()
    mixer = RGLRUConfig(heads=HEADS, up_factor=INNER / WIDTH).build(WIDTH)
    mixer.load_state_dict(weights(block))
    x = torch.randn(2, T, WIDTH)
    want, _ = block(x, torch.arange(T).expand(2, T), None, use_cache=False)
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-4, atol=1e-5)


def test_resets():
    """Positions that begin again at 0."""
    lru = theirs().rg_lru
    position = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]])
    u = torch.randn(2, 10, INNER)
    want = lru(u, position)
    r, i = (
        torch.einsum("bthk,hkv->bthv", u.view(2, 10, HEADS, -1), getattr(lru, f"{name}_gate_weight")).flatten(2)
        + getattr(lru, f"{name}_gate_bias").flatten()
        for name in ("recurrent", "input")
    )
    seen, reset = torch.zeros(2, dtype=torch.bool), position == 0
    a, b, _ = rglru_gates(u, r, i, lru.recurrent_param, seen, reset_BT=reset)
    torch.testing.assert_close(scan(a, b, reset_BT=reset)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "factor"), [(8, 1.0), (11, 11 / 8)])
def test_counts(heads, factor):
    """2 (d E + E) + 5 E + 2 (E^2 / H + E) + E + E d + d, and an MLP of expansion 3 with biases."""
    d, E = 1024, round(1024 * factor)
    with torch.device("meta"):
        mixer = RGLRUConfig(heads=heads, up_factor=factor).build(d)
    want = 2 * (d * E + E) + 5 * E + 2 * (E * E // heads + E) + E + E * d + d
    assert parameters(mixer) == want
    if factor == 1:
        config = lm_from_pattern("rglru*24", vocab_size=50304, width=d, heads=heads)
        with torch.device("meta"):
            body = parameters(LM(config)) - 2 * 50304 * d
        assert body == 24 * (want + 9 * d * d + 7 * d + 2 * d) + d


def test_initial_decays():
    """With open gates a^(1/8) is from 0.9 to 0.999 at first."""
    torch.manual_seed(0)
    lam_E = RGLRUConfig().build(1024).lam_E
    a = torch.exp(-torch.nn.functional.softplus(lam_E))
    assert 0.9 <= a.min() < 0.905
    assert 0.998 < a.max() <= 0.9991
