"""Two layouts of xLSTM-7B that differ in one name: `xlstm_large` of the official package, and transformers' `xlstm`.

Linear layers are stored one by one ("single") or concatenated ("fused"). For every block b:

    backbone.blocks.b.norm_mlstm                     mixer_norm
    backbone.blocks.b.mlstm_layer.q, k, v            mixer.q, k, v
                      .ogate_preact                  mixer.o           fused: qkv_opreact = [q; k; v; o]
                      .igate_preact, fgate_preact    mixer.i, f        fused: ifgate_preact = [i; f]
                      .multihead_norm, out_proj      mixer.norm, out
    backbone.blocks.b.norm_ffn                       mlp_norm
    backbone.blocks.b.ffn.proj_up_gate, proj_up      mlp.up = [gate; up]   fused: proj_up_gate_z
                         .proj_down                  mlp.down
"""

from dataclasses import replace
from functools import partial
from typing import Any

from exlstm.mixers.mlstm_large import MLSTMLarge, MLSTMLargeConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.layout import (
    Layout,
    SavedSettings,
    Shapes,
    depth,
    factor,
    multiple_of,
    plain_stack,
    require,
    same_eps,
    shape,
    tied,
)
from exlstm.models.checkpoints.rules import Rule, absent, concatenated, repeated, same, split
from exlstm.models.lm import LM, LMConfig

BLOCKS = "backbone.blocks."
HEAD, LAST_NORM = "lm_head.weight", "backbone.out_norm"
LARGE_EMBED, HUGGINGFACE_EMBED = "embedding.weight", "backbone.embeddings.weight"
CELL_EPS = 1e-6


def read(shapes: Shapes, settings: SavedSettings, *, embed: str, tie: str | None) -> LMConfig:
    """The config of weights with these shapes. tie: the setting that says whether the head is the embedding.

    transformers ignores that setting for this model: a stored head is not tied.
    """
    vocab_size, width = shape(shapes, embed, 2)
    norm_eps = settings.number("norm_eps", 1e-6)
    same_eps(settings, "eps", CELL_EPS)
    cap = None if settings.get("gate_soft_cap", 15.0) is None else settings.number("gate_soft_cap", 15.0)
    name = "output_logit_soft_cap"
    logit_cap = None if settings.get(name, 30.0) is None else settings.number(name, 30.0)
    blocks = tuple(
        read_block(shapes, f"{BLOCKS}{index}.", width, MLSTMLargeConfig(gate_cap=cap, norm_eps=norm_eps))
        for index in range(depth(shapes, BLOCKS))
    )
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=blocks,
        norm="rms",
        norm_eps=norm_eps,
        tie_embeddings=tie is not None and HEAD not in shapes and tied(shapes, HEAD, settings, tie),
        logit_cap=logit_cap,
        norm_bias=f"{BLOCKS}0.norm_mlstm.bias" in shapes,
        out_norm=f"{LAST_NORM}.weight" in shapes,
    )


def read_block(shapes: Shapes, place: str, width: int, config: MLSTMLargeConfig) -> BlockConfig:
    """One block, single or fused."""
    layer = place + "mlstm_layer."
    values = shape(shapes, layer + "out_proj.weight", 2)[1]
    if f"{layer}qkv_opreact.weight" in shapes:
        keys = (shape(shapes, layer + "qkv_opreact.weight", 2)[0] - 2 * values) // 2
        heads = shape(shapes, layer + "ifgate_preact.weight", 2)[0] // 2
    else:
        keys = shape(shapes, layer + "q.weight", 2)[0]
        heads = shape(shapes, layer + "igate_preact.weight", 2)[0]
    config = replace(
        config,
        heads=heads,
        key_factor=factor(width, keys, int, config.key_factor),
        value_factor=factor(width, values, int, config.value_factor),
        bias=f"{layer}out_proj.bias" in shapes,
    )
    hidden, bias = shape(shapes, place + "ffn.proj_down.weight", 2)[1], f"{place}ffn.proj_down.bias" in shapes
    return BlockConfig(mixer=config, mlp=MLPConfig(hidden=hidden, activation="silu", bias=bias))


def rules(model: LM, shapes: Shapes | None, *, embed: str, last_norm_bias: bool) -> list[Rule]:
    """Rules of the model. last_norm_bias: True if the last norm has a bias where the other norms do."""
    config, names = model.config, shapes or {}
    stored_twice = config.tie_embeddings and shapes is None
    found = [repeated("embed.weight", (embed, HEAD)) if stored_twice else same("embed.weight", embed)]
    if not config.tie_embeddings:
        found.append(same("head.weight", HEAD))
    for index in range(len(config.blocks)):
        found += block_rules(model, index, fused=f"{BLOCKS}{index}.mlstm_layer.qkv_opreact.weight" in names)
    if config.out_norm:
        found.append(same("norm.weight", f"{LAST_NORM}.weight"))
        if config.norm_bias and (last_norm_bias if shapes is None else f"{LAST_NORM}.bias" in names):
            found.append(same("norm.bias", f"{LAST_NORM}.bias"))
        elif config.norm_bias:
            found.append(absent("norm.bias", (config.width,), 0))
    return found


def block_rules(model: LM, index: int, *, fused: bool) -> list[Rule]:
    """Rules of one block."""
    config, mixer = model.config, model.blocks[index].mixer
    assert isinstance(mixer, MLSTMLarge)
    mlp = config.blocks[index].mlp
    assert mlp is not None
    ours, theirs = f"blocks.{index}.", f"{BLOCKS}{index}."
    keys, values = mixer.config.heads * mixer.key_width, mixer.config.heads * mixer.value_width
    norms, cell, hidden = kinds(config.norm_bias), kinds(mixer.config.bias), [mlp.hidden] * 2
    found = [same(f"{ours}{norm}_norm.{kind}", f"{theirs}norm_{name}.{kind}") for kind in norms for norm, name in
             (("mixer", "mlstm"), ("mlp", "ffn"))]  # fmt: skip
    single = {"norm": "multihead_norm", "out": "out_proj"}
    projections = {"q": "q", "k": "k", "v": "v", "o": "ogate_preact"}
    gates = {"i": "igate_preact", "f": "fgate_preact"}
    for kind in cell:
        found += [same(f"{ours}mixer.{x}.{kind}", f"{theirs}mlstm_layer.{name}.{kind}") for x, name in single.items()]
    for group, joint, sizes, which in (
        (projections, "qkv_opreact", [keys, keys, values, values], cell),
        (gates, "ifgate_preact", [mixer.config.heads] * 2, kinds(True)),
    ):
        for kind in which:
            if fused:
                found.append(
                    split([f"{ours}mixer.{x}.{kind}" for x in group], f"{theirs}mlstm_layer.{joint}.{kind}", sizes)
                )
            else:
                found += [
                    same(f"{ours}mixer.{x}.{kind}", f"{theirs}mlstm_layer.{name}.{kind}") for x, name in group.items()
                ]
    for kind in kinds(mlp.bias):
        ups = [f"{theirs}ffn.{name}.{kind}" for name in ("proj_up_gate", "proj_up")]
        up = f"{ours}mlp.up.{kind}"
        found.append(same(up, f"{theirs}ffn.proj_up_gate_z.{kind}") if fused else concatenated(up, ups, hidden))
        found.append(same(f"{ours}mlp.down.{kind}", f"{theirs}ffn.proj_down.{kind}"))
    return found


def kinds(bias: bool) -> list[str]:
    """Kinds of a layer's parameters: weight, and perhaps bias."""
    return ["weight", "bias"] if bias else ["weight"]


def write(config: LMConfig) -> dict[str, Any]:
    """Settings that the two layouts share. ValueError that names the block, or the setting, that they cannot hold."""
    first = config.blocks[0]
    for index, block in enumerate(config.blocks):
        if not isinstance(block.mixer, MLSTMLargeConfig) or block.mlp is None:
            found = f"{type(block.mixer).__name__}{'' if block.mlp else ' without an MLP'}"
            raise ValueError(f"block {index} is {found}; this layout has xLSTM-7B's mLSTM with an MLP only.")
        if block != first:
            raise ValueError(f"block {index} differs from block 0; this layout has blocks of one kind only.")
    mixer, mlp = first.mixer, first.mlp
    assert isinstance(mixer, MLSTMLargeConfig)
    assert mlp is not None
    needed = {
        "input_gate": (mixer.input_gate, "exp"),
        "normalize": (mixer.normalize, True),
        "activation": (mlp.activation, "silu"),
        "gated": (mlp.gated, True),
        "norm": (config.norm, "rms"),
        "norm_eps of the mixers": (mixer.norm_eps, config.norm_eps),
        "bias of the MLPs": (mlp.bias, mixer.bias),
        "norm_bias": (config.norm_bias, mixer.bias),
        **plain_stack(config),
    }
    require(needed)
    multiple = multiple_of(mlp.hidden)
    return {
        "vocab_size": config.vocab_size,
        "embedding_dim": config.width,
        "num_blocks": len(config.blocks),
        "num_heads": mixer.heads,
        "use_bias": mixer.bias,
        "norm_eps": config.norm_eps,
        "add_out_norm": config.out_norm,
        "qk_dim_factor": mixer.key_factor,
        "v_dim_factor": mixer.value_factor,
        # rounded down after adding the multiple less one, to floating numbers, there
        "ffn_proj_factor": factor(
            config.width, mlp.hidden, lambda x: int((x + multiple - 1) // multiple * multiple), 2.667
        ),
        "ffn_round_up_to_multiple_of": multiple,
        "gate_soft_cap": mixer.gate_cap,
        "output_logit_soft_cap": config.logit_cap,
        "eps": CELL_EPS,
        "weight_mode": "single",
    }


def write_large(config: LMConfig) -> dict[str, Any]:
    """config.yaml of `xlstm_large`, with kernels and a mode that run everywhere."""
    if config.tie_embeddings:
        raise ValueError("the head is tied to the embedding, which xlstm-large cannot express; use another layout.")
    return {
        **write(config),
        "mode": "inference",
        "return_last_states": True,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
        "autocast_kernel_dtype": "float32",
        "inference_state_dtype": "float32",
    }


def write_huggingface(config: LMConfig) -> dict[str, Any]:
    """config.json of transformers' `xlstm`."""
    settings = write(config)
    for name in ("gate_soft_cap", "output_logit_soft_cap"):
        if settings[name] is None:
            raise ValueError(f"{name} is None; transformers' xlstm has to have one.")
    return {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        **settings,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.blocks),
        "tie_word_embeddings": False,  # a head that is the embedding is stored beside it
    }


LARGE = Layout(
    name="xlstm-large",
    has=(r"embedding\.weight$",),
    config_file="config.yaml",
    read=partial(read, embed=LARGE_EMBED, tie=None),
    rules=partial(rules, embed=LARGE_EMBED, last_norm_bias=True),
    write=write_large,
    shard=lambda number, count: "model.safetensors" if count == 1 else f"model_{number}.safetensors",
    indexed=False,
)
HUGGINGFACE = Layout(
    name="huggingface",
    has=(r"backbone\.embeddings\.", r"backbone\.blocks\."),
    config_file="config.json",
    read=partial(read, embed=HUGGINGFACE_EMBED, tie="tie_word_embeddings"),
    rules=partial(rules, embed=HUGGINGFACE_EMBED, last_norm_bias=False),
    write=write_huggingface,
    shard=lambda number, count: (
        "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    ),
    indexed=True,
    model_types=("xlstm",),
    fits=lambda config: isinstance(config.blocks[0].mixer, MLSTMLargeConfig),
)
