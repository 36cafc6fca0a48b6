"""transformers' `gpt2`: GPT-2, and GPT-3 without its sparse attention. Matrices are stored transposed, [in, out].

transformer.wte, wpe, ln_f                  embed, positions, norm
transformer.h.b.ln_1, ln_2                  mixer_norm, mlp_norm
               .attn.c_attn                 mixer.q, k, v: columns of one matrix
               .attn.c_proj                 mixer.out
               .mlp.c_fc, mlp.c_proj        mlp.up, down
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.mixers.attention import AttentionConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.layout import SavedSettings, Shapes, depth, require, shape
from exlstm.models.checkpoints.rules import Rule, one, same, split, split_rows
from exlstm.models.checkpoints.transformers.parts import (
    activation,
    activation_name,
    ends,
    equal_blocks,
    is_tied,
    plain_model,
    root,
    transformers_layout,
)
from exlstm.models.lm import LM, LMConfig

LAYERS = {"mixer.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes; heads, activation and eps are in no shape."""
    start = root(shapes, "transformer.")
    vocab_size, width = shape(shapes, f"{start}wte.weight", 2)
    for name, only in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if settings.data.get(name, only) is not only:
            raise ValueError(f"{settings.source} has {name} {settings.data[name]!r}; this version has {only} only.")
    mixer = AttentionConfig(heads=settings.whole("n_head", 12), rope_base=None, bias=True)
    act = activation(settings, "activation_function", "gelu_new")
    blocks = tuple(
        BlockConfig(
            mixer=mixer,
            mlp=MLPConfig(
                hidden=shape(shapes, f"{start}h.{index}.mlp.c_fc.weight", 2)[1], activation=act, bias=True, gated=False
            ),
        )
        for index in range(depth(shapes, f"{start}h."))
    )
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=blocks,
        norm="layer",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        tie_embeddings=is_tied(shapes, settings, default=True),
        # a missing dropout is not reported as assumed: it changes no number outside of training
        dropout=settings.number("resid_pdrop", 0.0) if "resid_pdrop" in settings.data else 0.0,
        positions=shape(shapes, f"{start}wpe.weight", 2)[0],
    )


def transposed_split(ours: Sequence[str], theirs: str, sizes: Sequence[int]) -> Rule:
    """Rule for several of ours that are columns of one of theirs."""

    def to_theirs(xs: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(xs)).t()]

    return Rule(tuple(ours), (theirs,), lambda xs: split_rows([xs[0].t()], sizes), to_theirs)


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    start, width = root(shapes, "transformer."), model.config.width
    found = ends(model, shapes, embed=f"{start}wte.weight", norm=f"{start}ln_f")
    found.append(same("positions.weight", f"{start}wpe.weight"))
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.", f"{start}h.{index}."
        for norm, name in (("mixer_norm", "ln_1"), ("mlp_norm", "ln_2")):
            found += [same(f"{ours}{norm}.{kind}", f"{theirs}{name}.{kind}") for kind in ("weight", "bias")]
        for kind, rule in (("weight", transposed_split), ("bias", split)):
            parts = [f"{ours}mixer.{layer}.{kind}" for layer in "qkv"]
            found.append(rule(parts, f"{theirs}attn.c_attn.{kind}", [width] * 3))
        for layer, name in LAYERS.items():
            found.append(one(f"{ours}{layer}.weight", f"{theirs}{name}.weight", Tensor.t, Tensor.t))
            found.append(same(f"{ours}{layer}.bias", f"{theirs}{name}.bias"))
    return found


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `gpt2`. ValueError for what it cannot hold."""
    block = equal_blocks(config)
    mixer, mlp = block.mixer, block.mlp
    assert isinstance(mixer, AttentionConfig)
    if mlp is None:
        raise ValueError("block 0 has no MLP; with this layout it has to have one.")
    if config.positions is None:
        raise ValueError("positions is None; with this layout there has to be a table of them.")
    require(
        {
            **plain_model(config, norm="layer", positions=config.positions),
            "bias": (mixer.bias, True),
            "out_bias": (mixer.out_bias is not False, True),
            "kv_heads": (mixer.kv_heads or mixer.heads, mixer.heads),
            "head_width": (mixer.head_width or config.width // mixer.heads, config.width // mixer.heads),
            "window": (mixer.window, None),
            "gated": (mlp.gated, False),
            "bias of the MLPs": (mlp.bias, True),
        }
    )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": len(config.blocks),
        "n_head": mixer.heads,
        "n_inner": mlp.hidden,
        "activation_function": activation_name(mlp.activation),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def fits(config: LMConfig) -> bool:
    """True for a model that begins with attention without rotary positions."""
    mixer = config.blocks[0].mixer
    return isinstance(mixer, AttentionConfig) and mixer.rope_base is None


GPT2 = transformers_layout(
    has=(r"(transformer\.)?(wte|wpe)\.",),
    read=read,
    rules=rules,
    write=write,
    model_types=("gpt2",),
    fits=fits,
    # buffers of masks, which older versions saved
    ignored=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
)
