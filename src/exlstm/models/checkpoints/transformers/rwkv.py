"""transformers' `rwkv`: RWKV-4. A layer is two blocks here, the time mix and the channel mix.

    rwkv.embeddings, blocks.0.pre_ln, ln_out, head      embed, embed_norm, norm, head
    rwkv.blocks.b.ln1                                   block 2 b: mixer_norm
                 .attention.time_decay, time_first          mixer.decay_E, first_E
                           .time_mix_key, _value, ...       mixer.mix_k_D, mix_v_D, mix_r_D     [1, 1, D] there
                           .key, value, receptance, output  mixer.k, v, r, out
    rwkv.blocks.b.ln2                                   block 2 b + 1: mixer_norm
                 .feed_forward.time_mix_key, ...            mixer.mix_k_D, mix_r_D
                              .key, receptance, value       mixer.k, r, v

transformers' last norm has an eps of 1e-5 whatever the config says.
"""

from typing import Any

from exlstm.mixers.rwkv4 import RWKV4Config
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.models.block import BlockConfig
from exlstm.models.checkpoints.layout import (
    SavedSettings,
    Shapes,
    ceil_to,
    depth,
    factor,
    require,
    same_eps,
    shape,
)
from exlstm.models.checkpoints.rules import Rule, one, same
from exlstm.models.checkpoints.transformers.parts import ends, is_tied, plain_model, transformers_layout
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import round_up

BLOCKS, HEAD, EMBED = "rwkv.blocks.", "head.weight", "rwkv.embeddings.weight"
LAYERS = {"k": "key", "v": "value", "r": "receptance"}
EPS = 1e-5
LENGTH = 1024  # written as context_length, which bounds one call of transformers' model


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes, which tell all of it."""
    vocab_size, width = shape(shapes, EMBED, 2)
    same_eps(settings, "layer_norm_epsilon", EPS)
    blocks: list[BlockConfig] = []
    for index in range(depth(shapes, BLOCKS)):
        layer = f"{BLOCKS}{index}."
        (inner,), hidden = shape(shapes, f"{layer}attention.time_decay", 1), f"{layer}feed_forward.key.weight"
        inner_factor = factor(width, inner, ceil_to(1), 1.0)
        hidden_factor = factor(width, shape(shapes, hidden, 2)[0], ceil_to(1), 4.0)
        blocks += [
            BlockConfig(mixer=RWKV4Config(up_factor=inner_factor)),
            BlockConfig(mixer=RWKVChannelConfig(up_factor=hidden_factor)),
        ]
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(blocks),
        norm="layer",
        norm_eps=EPS,
        norm_bias=True,
        embed_norm=True,
        tie_embeddings=is_tied(shapes, settings, default=False, head=HEAD),
    )


def mix(ours: str, theirs: str) -> Rule:
    """Rule of shares, which have two more axes there."""
    return one(ours, theirs, lambda x: x.flatten(), lambda mix_D: mix_D[None, None])


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    found = ends(model, shapes, embed=EMBED, norm="rwkv.ln_out", head=HEAD)
    found += [same(f"embed_norm.{kind}", f"{BLOCKS}0.pre_ln.{kind}") for kind in ("weight", "bias")]
    for index in range(len(model.blocks)):
        ours, theirs, half = f"blocks.{index}.", f"{BLOCKS}{index // 2}.", index % 2
        found += [same(f"{ours}mixer_norm.{kind}", f"{theirs}ln{half + 1}.{kind}") for kind in ("weight", "bias")]
        part = f"{theirs}{('attention', 'feed_forward')[half]}."
        found += [same(f"{ours}mixer.{name}.weight", f"{part}{layer}.weight") for name, layer in LAYERS.items()]
        mixed = {name: layer for name, layer in LAYERS.items() if name != "v" or not half}
        found += [mix(f"{ours}mixer.mix_{name}_D", f"{part}time_mix_{layer}") for name, layer in mixed.items()]
        if not half:
            found.append(same(f"{ours}mixer.out.weight", f"{part}output.weight"))
            found += [same(f"{ours}mixer.{name}_E", f"{part}time_{name}") for name in ("decay", "first")]
    return found


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `rwkv`. ValueError for what it cannot hold."""
    for index, block in enumerate(config.blocks):
        first = config.blocks[index % 2]
        kind = (RWKV4Config, RWKVChannelConfig)[index % 2]
        if not isinstance(block.mixer, kind) or block.mlp is not None:
            found = f"{type(block.mixer).__name__}{' with an MLP' if block.mlp else ''}"
            raise ValueError(f"block {index} is {found}; with this layout it has to be {kind.__name__}.")
        if block != first:
            raise ValueError(f"block {index} differs from block {index % 2}; this layout has layers of one kind only.")
    if len(config.blocks) % 2:
        raise ValueError(f"there are {len(config.blocks)} blocks; with this layout they have to be pairs.")
    mixer, channel = config.blocks[0].mixer, config.blocks[1].mixer
    assert isinstance(mixer, RWKV4Config)
    assert isinstance(channel, RWKVChannelConfig)
    require(
        {
            **plain_model(config, norm="layer"),
            "embed_norm": (config.embed_norm, True),
            "norm_eps": (config.norm_eps, EPS),
            "share": (channel.share, "present"),
            "receptance": (channel.receptance, True),
        }
    )
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.blocks) // 2,
        "attention_hidden_size": round_up(mixer.up_factor * config.width, mixer.up_multiple),
        "intermediate_size": round_up(channel.up_factor * config.width, channel.up_multiple),
        "layer_norm_epsilon": EPS,
        "rescale_every": 0,
        "context_length": LENGTH,
        "tie_word_embeddings": config.tie_embeddings,
    }


RWKV = transformers_layout(
    has=(r"rwkv\.blocks\.",),
    read=read,
    rules=rules,
    write=write,
    model_types=("rwkv",),
    fits=lambda config: isinstance(config.blocks[0].mixer, RWKV4Config),
)
