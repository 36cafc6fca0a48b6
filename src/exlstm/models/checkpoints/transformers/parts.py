"""Parts that layouts of transformers' models share: names of files, ends of a model, activations, rotary positions."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from exlstm.models.block import BlockConfig
from exlstm.models.checkpoints.layout import Layout, SavedSettings, Shapes, plain_stack
from exlstm.models.checkpoints.rules import Rule, repeated, same
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import Activation
from exlstm.ops.norm import Norm

HEAD = "lm_head.weight"
# transformers' names of activations that are the same here; the first of each of ours is written
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2", "sigmoid": "sigmoid",
}  # fmt: skip


def shard_name(number: int, count: int) -> str:
    """File name of a shard."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


# a folder as transformers writes it
transformers_layout = partial(Layout, name="huggingface", config_file="config.json", shard=shard_name, indexed=True)


def root(names: Iterable[str] | None, prefix: str) -> str:
    """The prefix of all names but the head's: it is written, and left out in files of a model without a head."""
    return prefix if names is None or any(name.startswith(prefix) for name in names) else ""


def ends(model: LM, shapes: Shapes | None, *, embed: str, norm: str | None, head: str = HEAD) -> list[Rule]:
    """Rules of the embedding, the head, and the last norm if it has a name here.

    A tied head is not written, but may be stored.
    """
    config = model.config
    stored_twice = config.tie_embeddings and shapes is not None and head in shapes
    found = [repeated("embed.weight", (embed, head)) if stored_twice else same("embed.weight", embed)]
    if not config.tie_embeddings:
        found.append(same("head.weight", head))
    last = [] if norm is None else kinds(config.norm_bias)
    return found + [same(f"norm.{kind}", f"{norm}.{kind}") for kind in last]


def kinds(bias: bool) -> list[str]:
    """Kinds of a layer's parameters: weight, and perhaps bias."""
    return ["weight", "bias"] if bias else ["weight"]


def is_tied(shapes: Shapes, settings: SavedSettings, *, default: bool, head: str = HEAD) -> bool:
    """True if the head is the embedding: by the setting, or by transformers' default where a head is stored."""
    name = "tie_word_embeddings"
    if name in settings.data:
        return settings.flag(name)
    if head not in shapes and not default:
        settings.assumed[name] = True
    return default or head not in shapes


def activation(settings: SavedSettings, name: str, default: str) -> Activation:
    """The activation that a setting names. ValueError for one that is not known."""
    asked = settings.get(name, default)
    if not isinstance(asked, str) or asked not in ACTIVATIONS:
        raise ValueError(f"{settings.source} has {name} {asked!r}; known are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[asked]


def activation_name(ours: Activation) -> str:
    """transformers' name of an activation. ValueError for one that it does not have."""
    found = next((name for name, value in ACTIVATIONS.items() if value == ours), None)
    if found is None:
        raise ValueError(f"the activation is {ours!r}; with this layout it has to be one of {', '.join(ACTIVATIONS)}.")
    return found


def rope_base(settings: SavedSettings) -> float:
    """Base of rotary positions, from transformers' settings of any version. ValueError for another kind of them."""
    nested = settings.part("rope_parameters" if "rope_parameters" in settings.data else "rope_scaling")
    kind = nested.data.get("rope_type", nested.data.get("type", "default"))
    if kind not in ("default", None):
        raise ValueError(f"{settings.source} has rotary positions of type {kind!r}; this version has the default only.")
    return (nested if "rope_theta" in nested.data else settings).number("rope_theta", 10_000.0)


def equal_blocks(config: LMConfig) -> BlockConfig:
    """The block that all blocks are. ValueError if they differ."""
    for index, block in enumerate(config.blocks):
        if block != config.blocks[0]:
            raise ValueError(f"block {index} differs from block 0; this layout has blocks of one kind only.")
    return config.blocks[0]


def plain_model(config: LMConfig, *, norm: Norm, positions: int | None = None) -> dict[str, tuple[Any, Any]]:
    """Settings, for `require`, that most of transformers' models fix."""
    return {
        "norm": (config.norm, norm),
        "norm_bias": (config.norm_bias, norm == "layer"),
        "out_norm": (config.out_norm, True),
        "logit_cap": (config.logit_cap, None),
        **plain_stack(config),
        "positions": (config.positions, positions),
    }
