"""transformers' `mamba2`, and the authors' files (state-spaces/mamba2), which call the embedding by another name.

backbone.embeddings, norm_f, lm_head        embed, norm, head
backbone.layers.b.norm                      mixer_norm
                 .mixer.in_proj, out_proj   mixer.up, down
                 .mixer.conv1d, norm        mixer.conv, norm
                 .mixer.dt_bias, A_log, D   mixer.dt_bias_H, log_a_H, skip_H
"""

from typing import Any

from exlstm.mixers.mamba2 import Mamba2Config
from exlstm.models.block import BlockConfig
from exlstm.models.checkpoints.layout import (
    SavedSettings,
    Shapes,
    ceil_to,
    depth,
    factor,
    multiple_of,
    require,
    shape,
)
from exlstm.models.checkpoints.rules import Rule, conv, same
from exlstm.models.checkpoints.transformers.mamba import LAYERS, embedding, expansion
from exlstm.models.checkpoints.transformers.parts import (
    ends,
    equal_blocks,
    is_tied,
    plain_model,
    transformers_layout,
)
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import round_up

UNLIMITED = (float("inf"), None, {"__float__": "Infinity"})  # upper limits of a step, as saved by several versions
WEIGHTS = {
    "up.weight": "in_proj.weight",
    "down.weight": "out_proj.weight",
    "norm.weight": "norm.weight",
    "dt_bias_H": "dt_bias",
    "log_a_H": "A_log",
    "skip_H": "D",
}


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes; the number of groups and the eps of norms are in no shape."""
    vocab_size, width = shape(shapes, embedding(shapes), 2)
    eps, authors = settings.number("layer_norm_epsilon", 1e-5), "ssm_cfg" in settings.data
    groups = settings.part("ssm_cfg").whole("ngroups", 1) if authors else settings.whole("n_groups", 8)
    limit = settings.data.get("time_step_limit")
    if isinstance(limit, list) and (len(limit) != 2 or limit[0] != 0 or limit[1] not in UNLIMITED):
        raise ValueError(f"{settings.source} has time_step_limit {limit!r}; this version has no limit of steps.")
    blocks = []
    for index in range(depth(shapes, LAYERS)):
        layer = f"{LAYERS}{index}.mixer."
        (inner,), (heads,) = shape(shapes, f"{layer}norm.weight", 1), shape(shapes, f"{layer}A_log", 1)
        channels, _, window = shape(shapes, f"{layer}conv1d.weight", 3)
        multiple = multiple_of(inner)
        mixer = Mamba2Config(
            heads=heads,
            up_factor=factor(width, inner, ceil_to(multiple), 2.0),
            state=(channels - inner) // (2 * groups),
            groups=groups,
            conv_width=window,
            norm_eps=eps,
            up_multiple=multiple,
        )
        blocks.append(BlockConfig(mixer=mixer))
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(blocks),
        norm="rms",
        norm_eps=eps,
        tie_embeddings=is_tied(shapes, settings, default=authors),
    )


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    found = ends(model, shapes, embed=embedding(shapes), norm="backbone.norm_f")
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.mixer.", f"{LAYERS}{index}.mixer."
        found.append(same(f"blocks.{index}.mixer_norm.weight", f"{LAYERS}{index}.norm.weight"))
        found += conv(f"{ours}conv", f"{theirs}conv1d")
        found += [same(f"{ours}{name}", f"{theirs}{other}") for name, other in WEIGHTS.items()]
    return found


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `mamba2`. ValueError for what it cannot hold."""
    block = equal_blocks(config)
    mixer = block.mixer
    assert isinstance(mixer, Mamba2Config)
    require(
        {
            **plain_model(config, norm="rms"),
            "the MLP of block 0": (block.mlp, None),
            "norm_eps of the mixers": (mixer.norm_eps, config.norm_eps),
        }
    )
    inner = round_up(mixer.up_factor * config.width, mixer.up_multiple)
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.blocks),
        "state_size": mixer.state,
        "expand": expansion(config.width, inner),
        "num_heads": mixer.heads,
        "head_dim": inner // mixer.heads,
        "n_groups": mixer.groups,
        "conv_kernel": mixer.conv_width,
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


MAMBA2 = transformers_layout(
    has=(r"backbone\.layers\.\d+\.mixer\.dt_bias$",),
    read=read,
    rules=rules,
    write=write,
    model_types=("mamba2",),
    fits=lambda config: isinstance(config.blocks[0].mixer, Mamba2Config),
)
