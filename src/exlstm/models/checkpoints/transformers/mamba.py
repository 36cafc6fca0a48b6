"""transformers' `mamba`, and the authors' files (state-spaces/mamba), which call the embedding by another name.

backbone.embeddings, norm_f, lm_head        embed, norm, head
backbone.layers.b.norm                      mixer_norm
                 .mixer.in_proj, out_proj   mixer.up, down
                 .mixer.conv1d              mixer.conv
                 .mixer.x_proj, dt_proj     mixer.low, dt
                 .mixer.A_log, D            mixer.log_a_EZ, skip_E
"""

from typing import Any

from exlstm.mixers.mamba import MambaConfig
from exlstm.models.block import BlockConfig
from exlstm.models.checkpoints.layout import SavedSettings, Shapes, ceil_to, depth, factor, require, shape
from exlstm.models.checkpoints.rules import Rule, conv, same
from exlstm.models.checkpoints.transformers.parts import (
    ends,
    equal_blocks,
    is_tied,
    plain_model,
    transformers_layout,
)
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import round_up

LAYERS = "backbone.layers."
LINEARS = {"up": "in_proj", "down": "out_proj", "low": "x_proj", "dt": "dt_proj"}
VECTORS = {"log_a_EZ": "A_log", "skip_E": "D"}


def embedding(shapes: Shapes | None) -> str:
    """Name of the embedding; transformers' own is written."""
    authors = "backbone.embedding.weight"
    return authors if shapes is not None and authors in shapes else "backbone.embeddings.weight"


def expansion(width: int, inner: int) -> int:
    """Inner channels per channel of the model. ValueError unless they are a whole number, as transformers needs."""
    if inner % width:
        raise ValueError(f"the inner width is {inner}; with this layout it has to be a multiple of the width {width}.")
    return inner // width


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes, which tell all but the eps of norms."""
    vocab_size, width = shape(shapes, embedding(shapes), 2)
    blocks = []
    for index in range(depth(shapes, LAYERS)):
        layer = f"{LAYERS}{index}.mixer."
        (inner, states), rank = shape(shapes, f"{layer}A_log", 2), shape(shapes, f"{layer}dt_proj.weight", 2)[1]
        mixer = MambaConfig(
            states=states,
            up_factor=factor(width, inner, ceil_to(1), 2.0),
            conv_width=shape(shapes, f"{layer}conv1d.weight", 3)[2],
            rank=None if rank == -(-width // 16) else rank,
        )
        blocks.append(BlockConfig(mixer=mixer))
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(blocks),
        norm="rms",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=is_tied(shapes, settings, default=True),
    )


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model."""
    found = ends(model, shapes, embed=embedding(shapes), norm="backbone.norm_f")
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.mixer.", f"{LAYERS}{index}.mixer."
        found.append(same(f"blocks.{index}.mixer_norm.weight", f"{LAYERS}{index}.norm.weight"))
        found += conv(f"{ours}conv", f"{theirs}conv1d")
        found += [same(f"{ours}{name}.weight", f"{theirs}{layer}.weight") for name, layer in LINEARS.items()]
        found.append(same(f"{ours}dt.bias", f"{theirs}dt_proj.bias"))
        found += [same(f"{ours}{name}", f"{theirs}{vector}") for name, vector in VECTORS.items()]
    return found


def write(config: LMConfig) -> dict[str, Any]:
    """config.json of `mamba`. ValueError for what it cannot hold."""
    block = equal_blocks(config)
    mixer = block.mixer
    assert isinstance(mixer, MambaConfig)
    require(
        {
            **plain_model(config, norm="rms"),
            "the MLP of block 0": (block.mlp, None),
            "norm_dtbc": (mixer.norm_dtbc, False),
        }
    )
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.blocks),
        "state_size": mixer.states,
        "expand": expansion(config.width, round_up(mixer.up_factor * config.width, mixer.up_multiple)),
        "conv_kernel": mixer.conv_width,
        "time_step_rank": mixer.rank or -(-config.width // 16),
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


MAMBA = transformers_layout(
    has=(r"backbone\.layers\.\d+\.mixer\.x_proj\.",),
    read=read,
    rules=rules,
    write=write,
    model_types=("mamba",),
    fits=lambda config: isinstance(config.blocks[0].mixer, MambaConfig),
)
