"""RWKV-4 against transformers' recurrence and model, and counts of parameters of the channel mix."""

import pytest
import torch
from transformers import RwkvConfig, RwkvModel
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from exlstm.mixers import MIXERS
from exlstm.models.summary import parameters
from exlstm.ops.wkv4 import WKV4State, wkv4


@pytest.mark.parametrize("T", [1, 5, 64, 67])
@pytest.mark.parametrize("backend", ["numba", "chunkwise", "recurrent"])
def test_the_recurrence(T, backend):
    """From nothing, and from a state."""
    decay, first, k, v = torch.randn(24), torch.randn(24), 3 * torch.randn(2, T, 24), torch.randn(2, T, 24)
    want, after = rwkv_linear_attention_cpu(decay, first, k, v, return_state=True)
    got, state = wkv4(k, v, -decay.exp(), first, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    want, after = rwkv_linear_attention_cpu(decay, first, k, v, after, return_state=True)
    got, state = wkv4(k, v, -decay.exp(), first, WKV4State(*state), backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for part, expected in zip(state, after, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


MIXES = {"mix_k_D": "time_mix_key", "mix_v_D": "time_mix_value", "mix_r_D": "time_mix_receptance"}
MATRICES = {"k": "key", "v": "value", "r": "receptance", "out": "output"}
CELL = {"decay_E": "time_decay", "first_E": "time_first"}


def weights(theirs):
    """Of one of their halves of a layer under our names."""
    found = {ours: getattr(theirs, name).flatten() for ours, name in (MIXES | CELL).items() if hasattr(theirs, name)}
    return found | {
        f"{ours}.weight": getattr(theirs, name).weight for ours, name in MATRICES.items() if hasattr(theirs, name)
    }


def test_a_layer():
    """Both halves, each behind its norm, as one of transformers' blocks."""
    torch.manual_seed(0)
    theirs = RwkvModel(
        RwkvConfig(vocab_size=11, hidden_size=32, num_hidden_layers=2, attention_hidden_size=48, rescale_every=0)
    ).blocks[1]
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.2 * torch.randn_like(p)
    time = MIXERS["rwkv4"](up_factor=1.5).build(32, depth=4, index=2)
    channel = MIXERS["rwkv_channel"]().build(32, depth=4, index=3)
    time.load_state_dict(weights(theirs.attention))
    channel.load_state_dict(weights(theirs.feed_forward))
    x = torch.randn(2, 19, 32)
    want = theirs(x)[0]
    y = x + time(theirs.ln1(x))[0]
    y = y + channel(theirs.ln2(y))[0]
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 9 * 1024**2 + 2 * 1024),
        ({"up_factor": 3.5, "up_multiple": 32}, 8 * 1024**2 + 2 * 1024),
        ({"share": "past", "receptance": False}, 8 * 1024**2 + 1024),
    ],
)
def test_counts_of_the_channel_mix(fields, count):
    """Of versions 4, 5 and 7."""
    with torch.device("meta"):
        assert parameters(MIXERS["rwkv_channel"](**fields).build(1024)) == count


def test_the_other_convention_is_the_same_map():
    """A share of the past is one of the present, less one."""
    one, other = (MIXERS["rwkv_channel"](share=share).build(16) for share in ("present", "past"))
    weights = {name: torch.randn_like(x) for name, x in one.state_dict().items()}
    one.load_state_dict(weights)
    other.load_state_dict({name: 1 - x if name.startswith("mix") else x for name, x in weights.items()})
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(one(x)[0], other(x)[0], rtol=1e-4, atol=1e-5)
