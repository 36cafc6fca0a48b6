"""transformers' `recurrent_gemma`: Griffin's blocks, recurrent and with windowed attention. Gains are stored less one.

model.embed_tokens, model.final_norm, lm_head    embed, norm, head: the embedding is scaled by sqrt(width)
model.layers.b.temporal_pre_norm                 mixer_norm
              .temporal_block: RG-LRU            mixer
                  .linear_y, linear_x, linear_out    y, x, out
                  .conv_1d                           conv
                  .rg_lru.recurrent_param            lam_E
                         .recurrent_gate, input_gate r, i: their blocks are transposed, [in, out]
              .temporal_block: attention         mixer
                  .q_proj, k_proj, v_proj, o_proj    q, k, v, out
              .channel_pre_norm                  mlp_norm
              .mlp_block.gate_proj, up_proj      mlp.up = [gate; up]
                        .down_proj               mlp.down
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.rglru import RGLRU, RGLRUConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.layout import (
    SavedSettings,
    Shapes,
    ceil_to,
    depth,
    factor,
    require,
    shape,
)
from exlstm.models.checkpoints.rules import Rule, concatenated, conv, gain, one, same
from exlstm.models.checkpoints.transformers.parts import (
    activation,
    ends,
    is_tied,
    kinds,
    plain_model,
    root,
    rope_base,
    transformers_layout,
)
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import round_up

LINEARS = {"y": "linear_y", "x": "linear_x", "out": "linear_out"}
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
GATES = {"r": "recurrent_gate", "i": "input_gate"}
LENGTH = 8192  # written as max_position_embeddings


def scale(width: int) -> float:
    """sqrt(width) in bfloat16, as transformers has it."""
    return torch.tensor(width**0.5, dtype=torch.bfloat16).item()


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes; heads and window of attention, caps and eps are in no shape."""
    start = root(shapes, "model.")
    vocab_size, width = shape(shapes, f"{start}embed_tokens.weight", 2)
    if (act := activation(settings, "hidden_activation", "gelu_pytorch_tanh")) != "gelu_tanh":
        raise ValueError(f"{settings.source} has hidden_activation {act!r}; this version has 'gelu_pytorch_tanh' only.")
    blocks = []
    for index in range(depth(shapes, f"{start}layers.")):
        layer = f"{start}layers.{index}."
        hidden = shape(shapes, f"{layer}mlp_block.down_proj.weight", 2)[1]
        mlp = MLPConfig(hidden=hidden, activation=act, bias=True)
        blocks.append(BlockConfig(mixer=read_mixer(shapes, settings, f"{layer}temporal_block.", width), mlp=mlp))
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(blocks),
        norm="rms",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        tie_embeddings=is_tied(shapes, settings, default=True),
        logit_cap=settings.number("logits_soft_cap", 30.0),
        embed_scale=scale(width),
    )


def read_mixer(shapes: Shapes, settings: SavedSettings, place: str, width: int) -> MixerConfig:
    """Config of a recurrent block, or of attention."""
    if f"{place}rg_lru.recurrent_param" in shapes:
        inner, _, window = shape(shapes, f"{place}conv_1d.weight", 3)
        heads = shape(shapes, f"{place}rg_lru.input_gate_weight", 3)[0]
        return RGLRUConfig(heads=heads, up_factor=factor(width, inner, ceil_to(1), 1.0), conv_width=window)
    heads = settings.whole("num_attention_heads", 10)
    head_width = shape(shapes, f"{place}q_proj.weight", 2)[0] // heads
    kv_heads = shape(shapes, f"{place}k_proj.weight", 2)[0] // max(1, head_width)
    rotary = settings.part("rope_parameters")
    return AttentionConfig(
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        window=settings.whole("attention_window_size", 2048),
        rope_base=rope_base(settings),
        rope_share=(rotary if "partial_rotary_factor" in rotary.data else settings).number(
            "partial_rotary_factor", 0.5
        ),
        head_width=None if head_width * heads == width else head_width,
        bias=f"{place}q_proj.bias" in shapes,
        out_bias=True,
    )


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    start, config = root(shapes, "model."), model.config
    found = ends(model, shapes, embed=f"{start}embed_tokens.weight", norm=None)
    found.append(gain("norm.weight", f"{start}final_norm.weight"))
    for index, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{index}.", f"{start}layers.{index}."
        found.append(gain(f"{ours}mixer_norm.weight", f"{theirs}temporal_pre_norm.weight"))
        found.append(gain(f"{ours}mlp_norm.weight", f"{theirs}channel_pre_norm.weight"))
        mixer, place = model.blocks[index].mixer, f"{theirs}temporal_block."
        if isinstance(mixer, RGLRU):
            found += rglru_rules(mixer, f"{ours}mixer.", place)
        else:
            for layer, name in PROJECTIONS.items():
                bias = getattr(mixer, layer).bias is not None
                found += [same(f"{ours}mixer.{layer}.{kind}", f"{place}{name}.{kind}") for kind in kinds(bias)]
        assert block.mlp is not None
        for kind in kinds(bias=True):
            ups = [f"{theirs}mlp_block.{name}.{kind}" for name in ("gate_proj", "up_proj")]
            found.append(concatenated(f"{ours}mlp.up.{kind}", ups, [block.mlp.hidden] * 2))
            found.append(same(f"{ours}mlp.down.{kind}", f"{theirs}mlp_block.down_proj.{kind}"))
    return found


def rglru_rules(mixer: RGLRU, ours: str, theirs: str) -> list[Rule]:
    """Rules of a recurrent block."""
    found = [
        same(f"{ours}{layer}.{kind}", f"{theirs}{name}.{kind}")
        for layer, name in LINEARS.items()
        for kind in ("weight", "bias")
    ]
    found += conv(f"{ours}conv", f"{theirs}conv_1d")
    found.append(same(f"{ours}lam_E", f"{theirs}rg_lru.recurrent_param"))
    heads = mixer.config.heads
    for layer, name in GATES.items():
        place = f"{theirs}rg_lru.{name}"
        found.append(one(f"{ours}{layer}.weight_HVK", f"{place}_weight", transposed, transposed))
        found.append(one(f"{ours}{layer}.bias_D", f"{place}_bias", Tensor.flatten, lambda b_D: b_D.view(heads, -1)))
    return found


def transposed(x: Tensor) -> Tensor:
    """Every block transposed."""
    return x.transpose(-2, -1)


def kinds_of(config: LMConfig) -> dict[type, int]:
    """The first block of each kind of mixer. ValueError for blocks that this layout cannot hold."""
    firsts: dict[type, int] = {}
    for index, block in enumerate(config.blocks):
        if not isinstance(block.mixer, RGLRUConfig | AttentionConfig) or block.mlp is None:
            found = f"{type(block.mixer).__name__}{'' if block.mlp else ' without an MLP'}"
            raise ValueError(f"block {index} is {found}; this layout has RG-LRU and attention with an MLP only.")
        first = firsts.setdefault(type(block.mixer), index)
        if block.mixer != config.blocks[first].mixer or block.mlp != config.blocks[0].mlp:
            raise ValueError(f"block {index} differs from block {first}; this layout has one kind of each only.")
    return firsts


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `recurrent_gemma`. ValueError for what it cannot hold."""
    firsts = kinds_of(config)
    mlp, lru, attention = config.blocks[0].mlp, RGLRUConfig(), None
    for index in firsts.values():
        mixer = config.blocks[index].mixer
        lru, attention = (mixer, attention) if isinstance(mixer, RGLRUConfig) else (lru, mixer)
    assert mlp is not None
    if config.logit_cap is None:
        raise ValueError("logit_cap is None; with this layout there has to be one.")
    attention = attention or AttentionConfig(heads=lru.heads, window=2048, rope_share=0.5, out_bias=True)
    assert isinstance(attention, AttentionConfig)
    require(
        {
            **plain_model(config, norm="rms"),
            "logit_cap": (config.logit_cap, config.logit_cap),
            "embed_scale": (config.embed_scale, scale(config.width)),
            "activation": (mlp.activation, "gelu_tanh"),
            "gated": (mlp.gated, True),
            "bias of the MLPs": (mlp.bias, True),
            "heads of attention": (attention.heads, lru.heads),
            "head_width": (attention.head_width or config.width // lru.heads, config.width // lru.heads),
            "out_bias": (attention.bias if attention.out_bias is None else attention.out_bias, True),
            "a window": (attention.window is not None, True),
            "rotary positions": (attention.rope_base is not None, True),
        }
    )
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": 2 * mlp.hidden,
        "num_hidden_layers": len(config.blocks),
        "block_types": [
            "recurrent" if isinstance(block.mixer, RGLRUConfig) else "attention" for block in config.blocks
        ],
        "num_attention_heads": lru.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "attention_window_size": attention.window,
        "attention_bias": attention.bias,
        "lru_width": round_up(lru.up_factor * config.width, lru.up_multiple),
        "conv1d_width": lru.conv_width,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "logits_soft_cap": config.logit_cap,
        "partial_rotary_factor": attention.rope_share,
        "rope_theta": attention.rope_base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": attention.rope_base,
            "partial_rotary_factor": attention.rope_share,
        },
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": config.tie_embeddings,
    }


RECURRENT_GEMMA = transformers_layout(
    has=(r"(model\.)?layers\.\d+\.temporal_block\.",),
    read=read,
    rules=rules,
    write=write,
    model_types=("recurrent_gemma",),
    fits=lambda config: isinstance(config.blocks[0].mixer, RGLRUConfig),
)
