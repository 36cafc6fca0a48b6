"""Parameters, FLOPs and state bytes of a model, counted, and the table of them."""

from typing import TYPE_CHECKING, Protocol

from torch import nn

from exlstm.mixers.contract import Mixer
from exlstm.nn.linear import Linear, QuantizedLinear

if TYPE_CHECKING:
    from exlstm.models.lm import LM


def weight_flops(module: nn.Module) -> float:
    """FLOPs per token of all matrices: 2 per weight. Vectors, biases and gates of learned graphs are not counted."""
    left_out = "b_HGV", "graph_HKV"
    matrices = (p for name, p in module.named_parameters() if p.ndim >= 2 and not name.endswith(left_out))
    return 2.0 * (sum(p.numel() for p in matrices) + quantized_weights(module))


class MixerStack(Protocol):
    """A model whose FLOPs are counted: blocks with mixers, and a head."""

    @property
    def head(self) -> Linear:
        """The linear map of the output."""

    @property
    def blocks(self) -> nn.ModuleList:
        """All blocks, in order."""

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block, in order."""


def flops_per_token(model: MixerStack, mode: str, length: int) -> float:
    """FLOPs per token: "train" (forward and backward, 3 times the forward), "prefill" or "decode" at that context.

    The embedding counts nothing, the head counts once per token, also in prefill.
    """
    forward = 2.0 * model.head.in_features * model.head.out_features
    for block, mixer in zip(model.blocks, model.mixers, strict=True):
        forward += weight_flops(block) + mixer.cell_flops("decode" if mode == "decode" else "prefill", length)
    return 3 * forward if mode == "train" else forward


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    """The layers by name whose weights are in buffers, which torch does not count as parameters."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}


def quantized_weights(module: nn.Module) -> int:
    """Number of quantized weights."""
    return sum(layer.in_features * layer.out_features for layer in quantized_layers(module).values())


def parameters(module: nn.Module) -> int:
    """Number of parameters, quantized ones included, shared ones once."""
    biases = (layer.bias for layer in quantized_layers(module).values())
    in_buffers = quantized_weights(module) + sum(bias.numel() for bias in biases if bias is not None)
    return sum(p.numel() for p in module.parameters()) + in_buffers


def storage(module: nn.Module) -> str:
    """Formats and bytes of the weights: "int4 and float32, 1,234 bytes"."""
    quantized = quantized_layers(module).values()
    tensors = [*module.parameters(), *(x for layer in quantized for x in layer.buffers())]
    kinds = {type(layer).__name__.removesuffix("Linear").lower() for layer in quantized}
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    names = " and ".join([*sorted(kinds), *sorted(dtypes)])
    return f"{names}, {sum(x.numel() * x.itemsize for x in tensors):,} bytes"


def readable(count: float) -> str:
    """A count with a unit: 1234567 is "1.23 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def block_line(model: "LM", index: int) -> str:
    """Row of the table for a block."""
    config, block = model.config.blocks[index], model.blocks[index]
    kind = type(config.mixer).__name__.removesuffix("Config")
    plain = "" if config.mlp is None or config.mlp.gated else " plain"
    mlp = "" if config.mlp is None else f" + MLP {config.mlp.hidden} {config.mlp.activation}{plain}"
    state = model.mixers[index].state_bytes(0)
    return f"{index:>5}  {kind + mlp:<34} {parameters(block):>14,} {state:>14,}"


class Table(str):
    """Text whose repr is itself, so that a prompt or a notebook shows its lines."""

    __slots__ = ()
    __repr__ = str.__str__


def summary(model: "LM", length: int) -> Table:
    """Table of `LM.summary`; equal blocks in a row are one line."""
    config = model.config
    lines = [f"{'block':>5}  {'mixer':<34} {'parameters':>14} {'state bytes':>14}"]
    index = 0
    while index < len(config.blocks):
        last = index
        while last + 1 < len(config.blocks) and config.blocks[last + 1] == config.blocks[index]:
            last += 1
        lines.append(block_line(model, index) + (f"   each, to block {last}" if last > index else ""))
        index = last + 1
    embedding = model.embed.weight.numel()
    shared = config.tie_embeddings and not isinstance(model.get_submodule("head"), QuantizedLinear)
    tied = "tied to the head" if shared else "and as many in the head"
    now, later = model.state_bytes(length), model.state_bytes(16 * length)
    costs = [f"{mode} {readable(flops_per_token(model, mode, length))}" for mode in ("train", "prefill", "decode")]
    lines.append(f"embedding {config.vocab_size:,} x {config.width} = {embedding:,} parameters, {tied}")
    if config.positions is not None:
        count = config.positions * config.width
        lines.append(f"positions {config.positions:,} x {config.width} = {count:,} parameters")
    lines += [
        f"total {parameters(model):,} parameters",
        f"weights {storage(model)}",
        f"FLOPs per token at {length:,} tokens of context: {', '.join(costs)}",
        f"state bytes per sequence: {now:,} after {length:,} tokens, {later:,} after {16 * length:,}",
    ]
    return Table("\n".join(lines))
