"""The layout of the paper's own package, `xlstm`: the state dict of an xLSTMLMModel.

    token_embedding, lm_head                           embed, head
    xlstm_block_stack.post_blocks_norm                 norm
    xlstm_block_stack.blocks.b.xlstm_norm, ffn_norm    mixer_norm, mlp_norm       norms hold their gain less one
    ....b.ffn.proj_up, proj_down                       mlp.up, down
    ....b.xlstm: an mLSTM's                            mixer
         proj_up, proj_down, q_proj, k_proj, v_proj    up, down, q, k, v
         conv1d.conv, learnable_skip                   conv, skip
         mlstm_cell.igate, fgate, outnorm              i, f, norm
    ....b.xlstm: an sLSTM's
         fgate, igate, zgate, ogate                    w_HGVK, gates i, f, z, o: the first two names are swapped there
         slstm_cell._recurrent_kernel_, _bias_         r_HKGV, b_HGV
         conv1d.conv, group_norm                       conv, norm

What its `vanilla` cell stores as R [H, G V, K] and b [G H V], its `cuda` cell stores as R [H, K, G V] and b [H G V].
"""

from typing import Any, Literal

import torch
from torch import Tensor

from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.mlstm import MLSTM, MLSTMConfig
from exlstm.mixers.slstm import SLSTM, SLSTMConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.layout import (
    Layout,
    SavedSettings,
    Shapes,
    ceil_to,
    depth,
    factor,
    multiple_of,
    plain_stack,
    require,
    shape,
    tied,
)
from exlstm.models.checkpoints.rules import Rule, absent, conv, gain, one, repeated, same
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.layers import Activation

STACK = "xlstm_block_stack."
BLOCKS = STACK + "blocks."
EMBED, HEAD = "token_embedding.weight", "lm_head.weight"
LAST_NORM = STACK + "post_blocks_norm.weight"
GATES = ("fgate", "igate", "zgate", "ogate")  # that compute i, f, z, o
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "relu": "relu", "relu^2": "relu2", "sigmoid": "sigmoid", "swish": "silu", "selu": "selu",
}  # fmt: skip
FORGET_BIASES: dict[str, Literal["linspace", "zeros"]] = {
    "small_init": "linspace",
    "zeros": "zeros",
}  # others: "power_law"
NORM_EPS = 1e-5
LENGTH = 2048  # written as context_length, which that package needs and ours does not have


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """The config of weights with these shapes."""
    vocab_size, width = shape(shapes, EMBED, 2)
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=tuple(
            read_block(shapes, f"{BLOCKS}{index}.", width, settings) for index in range(depth(shapes, BLOCKS))
        ),
        norm="layer",
        norm_eps=NORM_EPS,
        tie_embeddings=tied(shapes, HEAD, settings, "tie_weights"),
        # a missing dropout is not reported as assumed: it changes no number outside of training
        dropout=settings.number("dropout", 0.0) if "dropout" in settings.data else 0.0,
        out_norm=LAST_NORM in shapes,
    )


def read_block(shapes: Shapes, place: str, width: int, settings: SavedSettings) -> BlockConfig:
    """Config of one block, mLSTM or sLSTM."""
    mlp = None
    if f"{place}ffn.proj_down.weight" in shapes:
        asked = settings.part("slstm_block", "feedforward").get("act_fn", "gelu")
        if not isinstance(asked, str) or asked not in ACTIVATIONS:
            raise ValueError(f"{settings.source} has act_fn {asked!r}; known are {', '.join(ACTIVATIONS)}.")
        hidden, bias = shape(shapes, place + "ffn.proj_down.weight", 2)[1], f"{place}ffn.proj_down.bias" in shapes
        mlp = MLPConfig(hidden=hidden, activation=ACTIVATIONS[asked], bias=bias)
    if f"{place}xlstm.slstm_cell._recurrent_kernel_" in shapes:
        return BlockConfig(mixer=read_slstm(shapes, place + "xlstm.", settings.part("slstm_block", "slstm")), mlp=mlp)
    return BlockConfig(mixer=read_mlstm(shapes, place + "xlstm.", width), mlp=mlp)


def read_mlstm(shapes: Shapes, layer: str, width: int) -> MLSTMConfig:
    """Config of an mLSTM layer, from shapes alone."""
    inner, usual = shape(shapes, layer + "proj_down.weight", 2)[1], MLSTMConfig()
    multiple = multiple_of(inner)
    return MLSTMConfig(
        heads=shape(shapes, layer + "mlstm_cell.igate.weight", 2)[0],
        up_factor=factor(width, inner, ceil_to(multiple), usual.up_factor),
        up_multiple=multiple,
        conv_width=shape(shapes, layer + "conv1d.conv.weight", 3)[2],
        qkv_block=shape(shapes, layer + "q_proj.weight", 3)[1],
        norm_eps=NORM_EPS,
        bias=f"{layer}proj_down.bias" in shapes,
    )


def read_slstm(shapes: Shapes, layer: str, settings: SavedSettings) -> SLSTMConfig:
    """Config of an sLSTM layer: heads and window from shapes, initial values from the settings."""
    if (function := settings.get("function", "slstm")) != "slstm":
        raise ValueError(f"{settings.source} has an sLSTM with the function {function!r}; this version reads 'slstm'.")
    convolution = f"{layer}conv1d.conv.weight"
    return SLSTMConfig(
        heads=shape(shapes, layer + "igate.weight", 3)[0],
        conv_width=shape(shapes, convolution, 3)[2] if convolution in shapes else 0,
        recurrent_init="uniform" if settings.data.get("recurrent_weight_init") == "standard" else "zeros",
        forget_bias=FORGET_BIASES.get(str(settings.data.get("bias_init")), "power_law"),
        norm_eps=NORM_EPS,
    )


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Rules of the model; written as the `vanilla` cell stores it."""
    config, names = model.config, shapes or {}
    # the package itself stores a tied head twice
    if config.tie_embeddings and (shapes is None or HEAD in names):
        found = [repeated("embed.weight", (EMBED, HEAD))]
    else:
        found = [same("embed.weight", EMBED)]
    if not config.tie_embeddings:
        found.append(same("head.weight", HEAD))
    if config.out_norm:
        found.append(gain("norm.weight", LAST_NORM))
    for index, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{index}.", f"{BLOCKS}{index}."
        found.append(gain(f"{ours}mixer_norm.weight", f"{theirs}xlstm_norm.weight"))
        mixer = model.blocks[index].mixer
        if isinstance(mixer, MLSTM):
            found += mlstm_rules(mixer, ours + "mixer.", theirs + "xlstm.")
        else:
            assert isinstance(mixer, SLSTM)
            found += slstm_rules(mixer, ours + "mixer.", theirs + "xlstm.", shapes)
        if block.mlp is not None:
            found.append(gain(f"{ours}mlp_norm.weight", f"{theirs}ffn_norm.weight"))
            for kind in ("weight", "bias") if block.mlp.bias else ("weight",):
                found += [same(f"{ours}mlp.{x}.{kind}", f"{theirs}ffn.proj_{x}.{kind}") for x in ("up", "down")]
    return found


def mlstm_rules(mixer: MLSTM, ours: str, theirs: str) -> list[Rule]:
    """Rules of the paper's mLSTM layer."""
    found = [same(f"{ours}{x}.weight", f"{theirs}proj_{x}.weight") for x in ("up", "down")]
    found += [same(f"{ours}{x}.weight_HVK", f"{theirs}{x}_proj.weight") for x in "qkv"]
    found += [
        same(f"{ours}{x}.{kind}", f"{theirs}mlstm_cell.{x}gate.{kind}") for x in "if" for kind in ("weight", "bias")
    ]
    if mixer.config.bias:
        found += [same(f"{ours}{x}.bias", f"{theirs}proj_{x}.bias") for x in ("up", "down")]
        found += [same(f"{ours}{x}.bias_D", f"{theirs}{x}_proj.bias") for x in "qkv"]
    found += [
        same(f"{ours}skip", f"{theirs}learnable_skip"),
        gain(f"{ours}norm.weight", f"{theirs}mlstm_cell.outnorm.weight"),
    ]
    return [*found, *conv(f"{ours}conv", f"{theirs}conv1d.conv")]


def slstm_rules(mixer: SLSTM, ours: str, theirs: str, shapes: Shapes | None) -> list[Rule]:
    """Rules of the sLSTM layer, as the `vanilla` or the `cuda` cell stores it."""
    H, _, V, _ = mixer.w_HGVK.shape
    kernel, norm = f"{theirs}slstm_cell._recurrent_kernel_", f"{theirs}group_norm.weight"
    cuda = shapes is not None and shapes.get(kernel) == (H, V, 4 * V)

    def r_to_ours(x: Tensor) -> Tensor:
        return x.view(H, V, 4, V) if cuda else x.view(H, 4, V, V).permute(0, 3, 1, 2)

    def r_to_theirs(r_HKGV: Tensor) -> Tensor:
        return r_HKGV.flatten(2) if cuda else r_HKGV.permute(0, 2, 3, 1).flatten(1, 2)

    def b_to_ours(x: Tensor) -> Tensor:
        return x.view(H, 4, V) if cuda else x.view(4, H, V).transpose(0, 1)

    def b_to_theirs(b_HGV: Tensor) -> Tensor:
        return (b_HGV if cuda else b_HGV.transpose(0, 1)).flatten()

    found = [
        Rule(
            (f"{ours}w_HGVK",),
            tuple(f"{theirs}{gate}.weight" for gate in GATES),
            lambda ws: [torch.stack(list(ws), dim=1)],
            lambda ws: list(ws[0].unbind(1)),
        ),
        one(f"{ours}r_HKGV", kernel, r_to_ours, r_to_theirs),
        one(f"{ours}b_HGV", f"{theirs}slstm_cell._bias_", b_to_ours, b_to_theirs),
    ]
    if shapes is None or norm in shapes:
        found.append(gain(f"{ours}norm.weight", norm))
    else:
        found.append(absent(f"{ours}norm.weight", (H * V,), 1))
    return found if mixer.conv is None else [*found, *conv(f"{ours}conv", f"{theirs}conv1d.conv")]


def write(config: LMConfig) -> dict[str, Any]:
    """Settings of an xLSTMLMModelConfig. ValueError for a block or a setting that it cannot hold."""
    needed = {"norm": "layer", "norm_eps": NORM_EPS, "norm_bias": False, "logit_cap": None}
    require({**{name: (getattr(config, name), only) for name, only in needed.items()}, **plain_stack(config)})
    firsts: dict[type, int] = {}
    for index, block in enumerate(config.blocks):
        check_block(config, index)
        first = firsts.setdefault(type(block.mixer), index)
        if block != config.blocks[first]:
            raise ValueError(
                f"block {index} differs from block {first}; this layout has one kind of mLSTM, one of sLSTM."
            )
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "tie_weights": config.tie_embeddings,
        "embedding_dim": config.width,
        "num_blocks": len(config.blocks),
        "context_length": LENGTH,
        "add_post_blocks_norm": config.out_norm,
        "add_embedding_dropout": config.dropout > 0,
        "dropout": config.dropout,
        "bias": False,
        "slstm_at": [index for index, block in enumerate(config.blocks) if isinstance(block.mixer, SLSTMConfig)],
    }
    for block in (config.blocks[index] for index in firsts.values()):
        if isinstance(block.mixer, MLSTMConfig):
            settings |= {"bias": block.mixer.bias, "mlstm_block": {"mlstm": write_mlstm(block.mixer)}}
        elif isinstance(block.mixer, SLSTMConfig):
            mlp = None if block.mlp is None else write_mlp(block.mlp, config.width)
            settings["slstm_block"] = {"slstm": write_slstm(block.mixer), "feedforward": mlp}
    return settings


def check_block(config: LMConfig, index: int) -> None:
    """ValueError for a block that this layout cannot hold."""
    block, mixer = config.blocks[index], config.blocks[index].mixer
    if not isinstance(mixer, MLSTMConfig | SLSTMConfig):
        raise ValueError(f"block {index} is {type(mixer).__name__}; this layout has the paper's mLSTM and sLSTM only.")
    if isinstance(mixer, MLSTMConfig):
        if block.mlp is not None:
            raise ValueError(f"block {index} is an mLSTM with an MLP; in this layout only an sLSTM has one.")
        plain: MixerConfig = MLSTMConfig(
            heads=mixer.heads, up_factor=mixer.up_factor, up_multiple=mixer.up_multiple, conv_width=mixer.conv_width,
            qkv_block=mixer.qkv_block, bias=mixer.bias,
        )  # fmt: skip
        if mixer.conv_width < 2:
            raise ValueError(f"block {index} has conv_width {mixer.conv_width}; this layout needs at least 2.")
    else:
        plain = SLSTMConfig(
            heads=mixer.heads, conv_width=mixer.conv_width,
            recurrent_init=mixer.recurrent_init, forget_bias=mixer.forget_bias,
            recurrence_blocks=mixer.heads if mixer.recurrence_blocks == mixer.heads else None,
            # fields of other structures
            recurrence_rank=mixer.recurrence_rank, recurrence_degree=mixer.recurrence_degree,
            recurrence_seed=mixer.recurrence_seed,
        )  # fmt: skip
    if mixer != plain:
        odd = next(name for name, value in vars(plain).items() if getattr(mixer, name) != value)
        raise ValueError(
            f"block {index} has {odd} {getattr(mixer, odd)!r}; this layout has {getattr(plain, odd)!r} only."
        )


def write_mlstm(mixer: MLSTMConfig) -> dict[str, Any]:
    """Settings of an mLSTM layer."""
    return {
        "num_heads": mixer.heads,
        "proj_factor": mixer.up_factor,
        "round_proj_up_to_multiple_of": mixer.up_multiple,
        "conv1d_kernel_size": mixer.conv_width,
        "qkv_proj_blocksize": mixer.qkv_block,
    }


def write_slstm(mixer: SLSTMConfig) -> dict[str, Any]:
    """Settings of an sLSTM layer; `vanilla` runs everywhere, in float32."""
    return {
        "num_heads": mixer.heads,
        "conv1d_kernel_size": mixer.conv_width,
        "function": "slstm",
        "backend": "vanilla",
        "dtype": "float32",
        "recurrent_weight_init": "standard" if mixer.recurrent_init == "uniform" else "zeros",
        "bias_init": {"linspace": "small_init", "zeros": "zeros"}.get(mixer.forget_bias, "powerlaw_blockdependent"),
    }


def write_mlp(mlp: MLPConfig, width: int) -> dict[str, Any]:
    """Settings of the MLP after an sLSTM. ValueError for one that this layout cannot hold."""
    multiple, names = multiple_of(mlp.hidden), {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if not mlp.gated or mlp.activation not in names:
        kind = f"{'a gated' if mlp.gated else 'a plain'} MLP with {mlp.activation}"
        raise ValueError(f"there is {kind}; this layout has gated ones with {', '.join(names)} only.")
    return {
        "proj_factor": factor(width, mlp.hidden, ceil_to(multiple), 1.3),
        "round_proj_up_to_multiple_of": multiple,
        "act_fn": names[mlp.activation],
        "bias": mlp.bias,
    }


CLASSIC = Layout(
    name="classic",
    has=(r"xlstm_block_stack\.|token_embedding\.",),
    config_file="config.yaml",
    read=read,
    rules=rules,
    write=write,
    shard=lambda number, count: "model.safetensors" if count == 1 else f"model_{number}.safetensors",
    indexed=False,
)
