"""A training step of the paper's blocks against the reference implementation, `xlstm` with its native backends.

4 blocks of width 256, 4 heads, vocabulary 256, batch 4 of 512 tokens; the same weights in both.
Freed memory stays in the process, as in `exlstm train`, for both.
"""

import copy
from functools import partial
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.cpu.training import PLAIN, ROWS, batch, plain_step, rows_step, tokens_per_second
from benchmarks.gate import check_same, check_training
from benchmarks.machine import has_bfloat16
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.runtime.allocator import keep_freed_memory
from peers import from_paper, paper_model

VOCABULARY = 256
MIXES = {"mlstm": "mmmm", "one_slstm": "mmms", "all_slstm": "ssss"}
BF16 = torch.bfloat16


@keep_freed_memory()
def run(bench: Bench) -> None:
    """Times every mix in float32, and mLSTM blocks also with bfloat16 products."""
    width, B, T = (64, 2, 64) if bench.quick else (256, 4, 512)
    tokens_BT = batch(VOCABULARY, B, T)
    for mix, pattern in MIXES.items():
        about = f"step of {pattern} (width {width}, 4 heads, vocabulary {VOCABULARY}), batch {B} x {T}, AdamW"
        if bench.wants(f"{mix}_float32"):
            ours, peer = pair(pattern, width, T)
            runs = {
                PLAIN: plain_step(copy.deepcopy(ours), tokens_BT),
                ROWS: rows_step(copy.deepcopy(ours), tokens_BT),
                "xlstm": plain_step(copy.deepcopy(peer), tokens_BT),
            }
            bench.measure(
                f"{mix}_float32", f"{about}, float32", runs, partial(check, ours, peer, tokens_BT),
                derive=partial(derive, B * T), warmup=1 if mix == "all_slstm" else 2,
            )  # fmt: skip
    if bench.wants("mlstm_bfloat16"):
        ours, peer = pair("mmmm", width, T)
        runs = {
            f"{PLAIN}, bfloat16": plain_step(copy.deepcopy(ours), tokens_BT, BF16),
            f"{ROWS}, bfloat16": rows_step(copy.deepcopy(ours), tokens_BT, BF16),
            "xlstm": plain_step(copy.deepcopy(peer), tokens_BT),
        }
        if has_bfloat16() or bench.quick:  # elsewhere it takes 14 seconds a step and shows nothing
            runs["xlstm, bfloat16"] = plain_step(copy.deepcopy(peer), tokens_BT, BF16)
        about = f"step of mmmm (width {width}), batch {B} x {T}, AdamW, matrix products in bfloat16 (autocast)"
        bench.measure("mlstm_bfloat16", about, runs, partial(check, ours, peer, tokens_BT, BF16),
                      derive=partial(derive, B * T), warmup=1)  # fmt: skip


def pair(pattern: str, width: int, length: int) -> tuple[LM, torch.nn.Module]:
    """Our model and the peer with the same weights; recurrent weights, zero at first, are drawn at random."""
    torch.manual_seed(0)
    slstm_at = [index for index, letter in enumerate(pattern) if letter == "s"]
    peer = paper_model(vocab_size=VOCABULARY, width=width, length=length, blocks=len(pattern), slstm_at=slstm_at)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    ours = LM(lm_from_pattern(pattern, vocab_size=VOCABULARY, width=width))
    ours.load_state_dict(from_paper(peer.state_dict(), gain=1))
    return ours, peer


def check(ours: LM, peer: torch.nn.Module, tokens_BT: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """On the first tokens of two rows: several chunks, and the definition stays affordable."""
    few_BT = tokens_BT[:2, :160]
    found = check_training(ours, few_BT, dtype)
    return found | check_same(ours, peer, tokens_BT[:1], partial(from_paper, gain=0))


def derive(tokens: int, timings: Any, _speed: Any) -> dict[str, Any]:
    return {"tokens_per_second": tokens_per_second(tokens, timings)}
