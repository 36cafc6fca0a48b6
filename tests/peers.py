"""Models of the peers, and maps of their weights to our names. Used by tests/golden and by benchmarks.

`from_paper` and `from_large` take any tensors by name, weights or gradients.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)

# the paper's layers in `xlstm`: what they call, and where it goes; norms hold the gain less one
PAPER = {
    "token_embedding.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "xlstm.learnable_skip": "mixer.skip",
    "xlstm.proj_up.weight": "mixer.up.weight",
    "xlstm.proj_down.weight": "mixer.down.weight",
    "xlstm.q_proj.weight": "mixer.q.weight_HVK",
    "xlstm.k_proj.weight": "mixer.k.weight_HVK",
    "xlstm.v_proj.weight": "mixer.v.weight_HVK",
    "xlstm.conv1d.conv.bias": "mixer.conv.bias_D",
    "xlstm.mlstm_cell.igate.weight": "mixer.i.weight",
    "xlstm.mlstm_cell.igate.bias": "mixer.i.bias",
    "xlstm.mlstm_cell.fgate.weight": "mixer.f.weight",
    "xlstm.mlstm_cell.fgate.bias": "mixer.f.bias",
    "ffn.proj_up.weight": "mlp.up.weight",
    "ffn.proj_down.weight": "mlp.down.weight",
}
PAPER_GAINS = {
    "xlstm_block_stack.post_blocks_norm.weight": "norm.weight",
    "xlstm_norm.weight": "mixer_norm.weight",
    "ffn_norm.weight": "mlp_norm.weight",
    "xlstm.mlstm_cell.outnorm.weight": "mixer.norm.weight",
    "xlstm.group_norm.weight": "mixer.norm.weight",
}
# xLSTM-7B's layers in `xlstm.xlstm_large` and in transformers
LARGE = {
    "embedding.weight": "embed.weight",
    "backbone.embeddings.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "backbone.out_norm.weight": "norm.weight",
    "norm_mlstm.weight": "mixer_norm.weight",
    "mlstm_layer.q.weight": "mixer.q.weight",
    "mlstm_layer.k.weight": "mixer.k.weight",
    "mlstm_layer.v.weight": "mixer.v.weight",
    "mlstm_layer.ogate_preact.weight": "mixer.o.weight",
    "mlstm_layer.igate_preact.weight": "mixer.i.weight",
    "mlstm_layer.igate_preact.bias": "mixer.i.bias",
    "mlstm_layer.fgate_preact.weight": "mixer.f.weight",
    "mlstm_layer.fgate_preact.bias": "mixer.f.bias",
    "mlstm_layer.multihead_norm.weight": "mixer.norm.weight",
    "mlstm_layer.out_proj.weight": "mixer.out.weight",
    "norm_ffn.weight": "mlp_norm.weight",
    "ffn.proj_down.weight": "mlp.down.weight",
}


def paper_model(*, vocab_size: int, width: int, length: int, blocks: int, slstm_at: list[int]) -> xLSTMLMModel:
    """The paper's language model in `xlstm`, with its native backends and 4 heads, fresh."""
    config = xLSTMLMModelConfig(
        vocab_size=vocab_size,
        context_length=length,
        num_blocks=blocks,
        embedding_dim=width,
        slstm_at=slstm_at,
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=4)),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(num_heads=4, backend="vanilla"), feedforward=FeedForwardConfig()
        ),
    )
    model = xLSTMLMModel(config)
    model.reset_parameters()
    return model


def by_block(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, str, Tensor]]:
    """(our name of the block or nothing, the rest of the official name, tensor) of every tensor."""
    for name, x in tensors.items():
        rest = name.removeprefix(prefix)
        index, _, leaf = rest.partition(".") if rest != name else ("", "", name)
        yield f"blocks.{index}." if index else "", leaf, x


def from_paper(tensors: dict[str, Tensor], gain: int) -> dict[str, Tensor]:
    """Official names and layouts to ours; `gain` is what is added to a norm's weight: 1, or 0 for gradients."""
    ours: dict[str, Tensor] = {}
    gates: dict[str, dict[int, Tensor]] = {}
    for place, leaf, x in by_block(tensors, "xlstm_block_stack.blocks."):
        if leaf in PAPER:
            ours[place + PAPER[leaf]] = x
        elif leaf in PAPER_GAINS:
            ours[place + PAPER_GAINS[leaf]] = x + gain
        elif leaf == "xlstm.conv1d.conv.weight":
            ours[place + "mixer.conv.weight_DW"] = x[:, 0]
        elif leaf == "xlstm.slstm_cell._bias_":
            ours[place + "mixer.b_HGV"] = x.view(4, 4, -1).transpose(0, 1)  # [gate, head, channel]
        elif leaf == "xlstm.slstm_cell._recurrent_kernel_":
            H, _, K = x.shape  # [head, (gate, to), from]
            ours[place + "mixer.r_HKGV"] = x.view(H, 4, K, K).permute(0, 3, 1, 2)
        else:
            # the official names are swapped: fgate feeds the input gate and igate the forget gate
            gate = {"fgate": 0, "igate": 1, "zgate": 2, "ogate": 3}[leaf.split(".")[1]]
            gates.setdefault(place, {})[gate] = x
    for place, parts in gates.items():
        ours[place + "mixer.w_HGVK"] = torch.stack([parts[gate] for gate in range(4)], dim=1)
    return ours


def from_large(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; gate and up are one matrix here, the gate first."""
    ours: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for place, leaf, x in by_block(tensors, "backbone.blocks."):
        if leaf in ("ffn.proj_up_gate.weight", "ffn.proj_up.weight"):
            halves.setdefault(place, {})[leaf] = x
        else:
            ours[place + LARGE[leaf]] = x
    for place, parts in halves.items():
        ours[place + "mlp.up.weight"] = torch.cat([parts["ffn.proj_up_gate.weight"], parts["ffn.proj_up.weight"]])
    return ours
