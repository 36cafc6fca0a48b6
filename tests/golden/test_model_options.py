"""Options that the authors' checkpoints may have, against their own packages in float64: biases, rounding, activations.

What they never set from a config, such as the bias of the paper's layer norms, is set in their modules by hand.
"""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple
from xlstm.components.ln import LayerNorm
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.ops.mlstm import mlstm
from peers import by_block, from_large, from_paper

VOCAB, T = 30, 16
PAPER_BIASES = {
    "xlstm_norm.bias": "mixer_norm.bias",
    "ffn_norm.bias": "mlp_norm.bias",
    "xlstm_block_stack.post_blocks_norm.bias": "norm.bias",
    "xlstm.proj_up.bias": "mixer.up.bias",
    "xlstm.proj_down.bias": "mixer.down.bias",
    "xlstm.q_proj.bias": "mixer.q.bias_D",
    "xlstm.k_proj.bias": "mixer.k.bias_D",
    "xlstm.v_proj.bias": "mixer.v.bias_D",
    "ffn.proj_up.bias": "mlp.up.bias",
    "ffn.proj_down.bias": "mlp.down.bias",
}
LARGE_BIASES = {
    "norm_mlstm.bias": "mixer_norm.bias",
    "norm_ffn.bias": "mlp_norm.bias",
    "backbone.out_norm.bias": "norm.bias",
    "mlstm_layer.q.bias": "mixer.q.bias",
    "mlstm_layer.k.bias": "mixer.k.bias",
    "mlstm_layer.v.bias": "mixer.v.bias",
    "mlstm_layer.ogate_preact.bias": "mixer.o.bias",
    "mlstm_layer.multihead_norm.bias": "mixer.norm.bias",
    "mlstm_layer.out_proj.bias": "mixer.out.bias",
    "ffn.proj_down.bias": "mlp.down.bias",
}
ACTIVATIONS = {  # ours, and what the authors call it
    "gelu": "gelu", "silu": "swish", "relu": "relu", "relu2": "relu^2", "sigmoid": "sigmoid", "selu": "selu",
}  # fmt: skip
PAPER_PLAIN = {
    "width": 40, "bias": False, "mlp_bias": False, "norm_bias": False, "out_norm": True, "activation": "gelu",
    "up_factor": 2.0, "up_multiple": 64,
}  # fmt: skip
PAPER_ALL = {
    "bias": True, "mlp_bias": True, "norm_bias": True, "out_norm": True, "activation": "relu2",
    "up_factor": 1.29, "up_multiple": 1,
}  # fmt: skip
PAPER = {
    "all at once": PAPER_ALL,
    "all without the last norm": {**PAPER_ALL, "out_norm": False},
    "bias": {"bias": True},
    "bias of the MLP": {"mlp_bias": True},
    "bias of the norms": {"norm_bias": True},
    "no last norm": {"out_norm": False},
    "width of any size": {"up_factor": 1.29, "up_multiple": 1},  # 51.6 becomes 52: 13 blocks of 4
    "width of a multiple": {"up_factor": 1.29, "up_multiple": 12},  # 60
    **{activation: {"activation": activation} for activation in ACTIVATIONS},
}


def shaken(model):
    """In float64, with every parameter away from the zeros and ones it starts from."""
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


def tokens():
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def split(tensors, prefix, biases):
    """Those that `peers` knows; and the biases, under our names."""
    found = {place + biases[leaf]: x for place, leaf, x in by_block(tensors, prefix) if leaf in biases}
    rest = {
        name: x for name, (_, leaf, x) in zip(tensors, by_block(tensors, prefix), strict=True) if leaf not in biases
    }
    return rest, found


def paper_names(tensors, gain):
    rest, biases = split(tensors, "xlstm_block_stack.blocks.", PAPER_BIASES)
    return from_paper(rest, gain) | biases


def large_names(tensors):
    rest, biases = split(tensors, "backbone.blocks.", LARGE_BIASES)
    halves = {}
    for place, leaf, x in by_block(rest, "backbone.blocks."):
        if leaf in ("ffn.proj_up_gate.bias", "ffn.proj_up.bias"):
            halves.setdefault(place, {})[leaf] = x
    for place, parts in halves.items():
        biases[place + "mlp.up.bias"] = torch.cat([parts["ffn.proj_up_gate.bias"], parts["ffn.proj_up.bias"]])
    return from_large({name: x for name, x in rest.items() if not name.endswith(("up.bias", "gate.bias"))}) | biases


def paper_pair(changes):
    """An mLSTM and an sLSTM block of theirs, and the same of ours."""
    o = {**PAPER_PLAIN, **changes}
    layer = mLSTMLayerConfig(
        num_heads=4, proj_factor=o["up_factor"], round_proj_up_to_multiple_of=o["up_multiple"]
    )  # fmt: skip
    mlp = FeedForwardConfig(bias=o["mlp_bias"], act_fn=ACTIVATIONS[o["activation"]])
    config = xLSTMLMModelConfig(
        vocab_size=VOCAB, context_length=T, num_blocks=2, embedding_dim=o["width"], slstm_at=[1], bias=o["bias"],
        add_post_blocks_norm=o["out_norm"], mlstm_block=mLSTMBlockConfig(mlstm=layer),
        slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=4, backend="vanilla"), feedforward=mlp),
    )  # fmt: skip
    model = xLSTMLMModel(config)
    model.reset_parameters()
    if o["norm_bias"]:
        for norm in [module for module in model.modules() if type(module) is LayerNorm]:
            norm.bias = torch.nn.Parameter(torch.zeros_like(norm.weight))
    model = shaken(model)
    mixer = MLSTMConfig(bias=o["bias"], up_factor=o["up_factor"], up_multiple=o["up_multiple"])
    hidden = model.xlstm_block_stack.blocks[1].ffn.proj_down.in_features
    block = BlockConfig(
        mixer=SLSTMConfig(), mlp=MLPConfig(hidden=hidden, activation=o["activation"], bias=o["mlp_bias"])
    )
    copy = LM(
        LMConfig(
            vocab_size=VOCAB, width=o["width"], blocks=(BlockConfig(mixer=mixer), block), norm_bias=o["norm_bias"],
            out_norm=o["out_norm"],
        )
    ).double()  # fmt: skip
    copy.load_state_dict(paper_names(model.state_dict(), gain=1))
    return model, copy


@pytest.mark.parametrize("changes", PAPER.values(), ids=PAPER)
def test_the_paper_model_to_the_last_digits(changes, monkeypatch):
    """Logits and every gradient. eps is added in the unit m, which the official parallel form starts elsewhere."""
    model, copy = paper_pair(changes)
    monkeypatch.setattr("exlstm.mixers.mlstm.mlstm", partial(mlstm, eps=0.0))
    model.xlstm_block_stack.blocks[0].xlstm.mlstm_cell.backend_fn = partial(parallel_stabilized_simple, eps=0.0)
    want, got = model(tokens()), copy(tokens())[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    gradients = paper_names(gradients_of(model, want), gain=0)
    assert_same_gradients(gradients_of(copy, got), gradients)


@pytest.mark.parametrize(
    "changes", [PAPER_ALL, {**PAPER_ALL, "out_norm": False, "activation": "selu"}], ids=["norm", "no"]
)
def test_the_paper_model_step_by_step(changes):
    model, copy = paper_pair(changes)
    state, after, x = {}, None, tokens()
    with torch.no_grad():
        for t in range(6):
            want, state = model.step(x[:, t : t + 1].clone(), state)
            got, after = copy(x[:, t : t + 1], after)
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def gradients_of(model, logits):
    cross_entropy(logits.flatten(0, 1), tokens().roll(-1, 1).flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(got, want):
    assert got.keys() == want.keys()
    for name, x in got.items():
        assert x.abs().max() > 0, name
        torch.testing.assert_close(x, want[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: n + m)


def large_pair(use_bias, out_norm, mode="train"):
    """Two blocks of theirs, which give and take states, and the same of ours."""
    config = xLSTMLargeConfig(
        embedding_dim=48, num_heads=4, num_blocks=2, vocab_size=VOCAB, use_bias=use_bias, add_out_norm=out_norm,
        chunk_size=16, mode=mode, inference_state_dtype="float64", return_last_states=True,
        chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native",
        step_kernel="native", autocast_kernel_dtype="float32",
        norm_reduction_force_float32=False,
    )  # fmt: skip
    model = shaken(xLSTMLarge(config))
    hidden = model.backbone.blocks[0].ffn.up_proj_dim
    block = BlockConfig(
        mixer=MLSTMLargeConfig(bias=use_bias), mlp=MLPConfig(hidden=hidden, activation="silu", bias=use_bias)
    )
    copy = LM(
        LMConfig(
            vocab_size=VOCAB, width=48, blocks=(block,) * 2, norm="rms", norm_eps=1e-6, logit_cap=30.0,
            norm_bias=use_bias, out_norm=out_norm,
        )
    ).double()  # fmt: skip
    copy.load_state_dict(large_names(model.state_dict()))
    return model, copy


@pytest.mark.parametrize("out_norm", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_the_large_model_to_the_last_digits(use_bias, out_norm):
    """Logits, states and every gradient."""
    model, copy = large_pair(use_bias, out_norm)
    (want, states), (got, after) = model(tokens()), copy(tokens())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for index, block in enumerate(after):
        for x, y in zip(block, states[index], strict=True):
            torch.testing.assert_close(x, y.view_as(x), rtol=1e-9, atol=1e-9)
    assert_same_gradients(gradients_of(copy, got), large_names(gradients_of(model, want)))


@pytest.mark.parametrize("out_norm", [True, False])
def test_the_large_model_step_by_step(out_norm):
    model, copy = large_pair(True, out_norm, mode="inference")
    state, after, x = None, None, tokens()
    with torch.no_grad():
        for t in range(6):
            want, state = model(x[:, t : t + 1], state)
            got, after = copy(x[:, t : t + 1], after)
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
