"""A training step of an xLSTM language model against transformers' Llama with as many parameters.

xLSTM-7B's blocks (M: mLSTM without up-projection, SwiGLU) at width 256, 4 blocks, 4 heads; Llama of the same width,
depth and MLP. 8192 tokens a step, in sequences of 512, 2048 and 8192.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.bench import Bench
from benchmarks.cpu.training import PLAIN, ROWS, batch, plain_step, rows_step, tokens_per_second
from benchmarks.gate import check_training, logits_of
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.summary import parameters

VOCABULARY, HEADS, BLOCKS = 256, 4, 4


def run(bench: Bench) -> None:
    """Times the plain loop for all lengths, and rows on threads where there is more than one row."""
    width, tokens = (64, 256) if bench.quick else (256, 8192)
    for T in (64, 128, 256) if bench.quick else (512, 2048, 8192):
        if not bench.wants(f"t{T}"):
            continue
        tokens_BT = batch(VOCABULARY, tokens // T, T)
        ours, llama = xlstm(width), llama_like(width)
        runs = {PLAIN: plain_step(ours, tokens_BT), "Llama": plain_step(llama, tokens_BT)}
        if len(tokens_BT) > 1:
            runs[ROWS] = rows_step(xlstm(width), tokens_BT)
        about = f"step of MMMM and of Llama (width {width}, 4 blocks), batch {len(tokens_BT)} x {T}, AdamW, float32"
        bench.measure(f"t{T}", about, runs, partial(check, xlstm(width), llama, tokens_BT),
                      derive=partial(derive, tokens))  # fmt: skip


def xlstm(width: int) -> LM:
    torch.manual_seed(0)
    return LM(lm_from_pattern("M" * BLOCKS, vocab_size=VOCABULARY, width=width, heads=HEADS))


def llama_like(
    width: int, *, hidden: int | None = None, blocks: int = BLOCKS, heads: int = HEADS,
    vocabulary: int = VOCABULARY, longest: int = 8192,
) -> nn.Module:  # fmt: skip
    """transformers' Llama with torch's fused attention; hidden None is the MLP of our model of this width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = hidden or lm_from_pattern("M", vocab_size=8, width=width).blocks[0].mlp.hidden
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=blocks,
        num_attention_heads=heads, max_position_embeddings=longest + 256, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def check(ours: LM, llama: nn.Module, tokens_BT: torch.Tensor) -> dict[str, Any]:
    """The accuracy rule for ours; that the sizes are equal; that Llama's logits are numbers."""
    sizes = {"exlstm": parameters(ours), "Llama": parameters(llama)}
    assert abs(sizes["exlstm"] / sizes["Llama"] - 1) < 0.01, f"parameters {sizes} differ by more than 1 %"
    with torch.no_grad():
        assert torch.isfinite(logits_of(llama, tokens_BT[:1, :64])).all(), "Llama's logits are not finite"
    return check_training(ours, tokens_BT[:2, :160]) | {"parameters": sizes}


def derive(tokens: int, timings: Any, _speed: Any) -> dict[str, Any]:
    return {"tokens_per_second": tokens_per_second(tokens, timings)}
