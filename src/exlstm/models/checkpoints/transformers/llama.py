"""transformers' `llama`, and `mistral`, which is llama with a window and without biases.

model.embed_tokens, model.norm, lm_head                 embed, norm, head
model.layers.b.input_layernorm                          mixer_norm
              .self_attn.q_proj, k_proj, v_proj, o_proj mixer.q, k, v, out
              .post_attention_layernorm                 mlp_norm
              .mlp.gate_proj, up_proj                   mlp.up = [gate; up]
              .mlp.down_proj                            mlp.down
"""

from typing import Any

from exlstm.mixers.attention import Attention, AttentionConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.layout import SavedSettings, Shapes, depth, require, shape
from exlstm.models.checkpoints.rules import Rule, concatenated, same
from exlstm.models.checkpoints.transformers.parts import (
    activation,
    activation_name,
    ends,
    equal_blocks,
    is_tied,
    kinds,
    plain_model,
    root,
    rope_base,
    transformers_layout,
)
from exlstm.models.lm import LM, LMConfig

LENGTH = 2048  # written as max_position_embeddings; ours does not bound the length of a sequence


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes; heads, eps and rotary positions are in no shape."""
    start = root(shapes, "model.")
    vocab_size, width = shape(shapes, f"{start}embed_tokens.weight", 2)
    layers = f"{start}layers."
    heads, base = settings.whole("num_attention_heads", 32), rope_base(settings)
    window = None if settings.data.get("sliding_window") is None else settings.whole("sliding_window", 4096)
    act = activation(settings, "hidden_act", "silu")
    blocks = []
    for index in range(depth(shapes, layers)):
        attention, mlp = f"{layers}{index}.self_attn.", f"{layers}{index}.mlp."
        head_width = shape(shapes, f"{attention}q_proj.weight", 2)[0] // heads
        kv_heads = shape(shapes, f"{attention}k_proj.weight", 2)[0] // max(1, head_width)
        bias, out_bias = f"{attention}q_proj.bias" in shapes, f"{attention}o_proj.bias" in shapes
        mixer = AttentionConfig(
            heads=heads,
            kv_heads=None if kv_heads == heads else kv_heads,
            window=window,
            rope_base=base,
            head_width=None if head_width * heads == width else head_width,
            bias=bias,
            out_bias=None if bias == out_bias else out_bias,
        )
        hidden, mlp_bias = shape(shapes, f"{mlp}down_proj.weight", 2)[1], f"{mlp}down_proj.bias" in shapes
        blocks.append(BlockConfig(mixer=mixer, mlp=MLPConfig(hidden=hidden, activation=act, bias=mlp_bias)))
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(blocks),
        norm="rms",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        tie_embeddings=is_tied(shapes, settings, default=False),
    )


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    start = root(shapes, "model.")
    found = ends(model, shapes, embed=f"{start}embed_tokens.weight", norm=f"{start}norm")
    for index, block in enumerate(model.config.blocks):
        mixer, mlp = model.blocks[index].mixer, block.mlp
        assert isinstance(mixer, Attention)
        assert mlp is not None
        ours, theirs = f"blocks.{index}.", f"{start}layers.{index}."
        for norm, name in (("mixer_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            found.append(same(f"{ours}{norm}.weight", f"{theirs}{name}.weight"))
        for layer, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
            bias = getattr(mixer, layer).bias is not None
            found += [same(f"{ours}mixer.{layer}.{kind}", f"{theirs}self_attn.{name}.{kind}") for kind in kinds(bias)]
        for kind in kinds(mlp.bias):
            ups = [f"{theirs}mlp.{name}.{kind}" for name in ("gate_proj", "up_proj")]
            found.append(concatenated(f"{ours}mlp.up.{kind}", ups, [mlp.hidden] * 2))
            found.append(same(f"{ours}mlp.down.{kind}", f"{theirs}mlp.down_proj.{kind}"))
    return found


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `llama`, or with a window of `mistral`. ValueError for what they cannot hold."""
    block = equal_blocks(config)
    mixer, mlp = block.mixer, block.mlp
    assert isinstance(mixer, AttentionConfig)
    if mlp is None:
        raise ValueError("block 0 has no MLP; with this layout it has to have one.")
    require(
        {
            **plain_model(config, norm="rms"),
            "rope_share": (mixer.rope_share, 1.0),
            "out_bias": (mixer.bias if mixer.out_bias is None else mixer.out_bias, mixer.bias),
            "gated": (mlp.gated, True),
        }
    )
    if mixer.window is not None:
        require({"bias beside a window": (mixer.bias, False), "bias of the MLPs beside a window": (mlp.bias, False)})
    found = {
        "architectures": ["LlamaForCausalLM" if mixer.window is None else "MistralForCausalLM"],
        "model_type": "llama" if mixer.window is None else "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": len(config.blocks),
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads or mixer.heads,
        "head_dim": mixer.head_width or config.width // mixer.heads,
        "hidden_act": activation_name(mlp.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": mixer.rope_base,  # of versions before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_base},
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if mixer.window is None:
        return {**found, "attention_bias": mixer.bias, "mlp_bias": mlp.bias}
    return {**found, "sliding_window": mixer.window}


def fits(config: LMConfig) -> bool:
    """True for a model that begins with attention with rotary positions."""
    mixer = config.blocks[0].mixer
    return isinstance(mixer, AttentionConfig) and mixer.rope_base is not None


LLAMA = transformers_layout(
    has=(r"(model\.)?layers\.\d+\.self_attn\.",),
    read=read,
    rules=rules,
    write=write,
    model_types=("llama", "mistral"),
    fits=fits,
    ignored=r".*\.rotary_emb\.inv_freq",
)
