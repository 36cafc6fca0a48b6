"""A training step of every mixer beside what users have for it on a CPU: see `peers.table`.

4 blocks as they are published, width 256, vocabulary 256, batch 4 of 512 tokens, float32; the same weights in both.
Freed memory stays in the process, as in `exlstm train`, for both.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cpu.peers.table import NO_PEER, PEERS, our_model, peer_of
from benchmarks.cpu.training import PLAIN, ROWS, batch, plain_step, rows_step, tokens_per_second
from benchmarks.gate import check_same, check_training
from benchmarks.harness import Timing
from exlstm.mixers import MIXERS
from exlstm.models.lm import LM
from exlstm.runtime.allocator import keep_freed_memory

VOCABULARY, BLOCKS, PEER = 256, 4, "peer"


@keep_freed_memory()
def run(bench: Bench) -> None:
    """Times every mixer that has a peer; a new one needs an entry in one of the two tables."""
    if missing := MIXERS.keys() - PEERS.keys() - NO_PEER.keys():
        raise ValueError(f"the mixers {sorted(missing)} have no peer; add each to PEERS, or with a reason to NO_PEER.")
    for name in MIXERS:
        if name in PEERS and bench.wants(name):
            measure(bench, name)


def measure(bench: Bench, name: str) -> None:
    width, B, T = (64, 2, 64) if bench.quick else (256, 4, 512)
    tokens_BT, ours = batch(VOCABULARY, B, T), our_model(name, width=width, vocabulary=VOCABULARY, blocks=BLOCKS)
    runs = {
        PLAIN: plain_step(copy.deepcopy(ours), tokens_BT),
        ROWS: rows_step(copy.deepcopy(ours), tokens_BT),
        PEER: plain_step(peer_of(name, ours), tokens_BT),
    }
    peer, is_slow = PEERS[name], PEERS[name].rounds < bench.rounds
    about = f"step of 4 blocks, width {width}, batch {B} x {T}, AdamW, float32; peer: {peer.about}"
    bench.measure(
        name,
        about,
        runs,
        partial(check, name, ours, tokens_BT),
        derive=partial(derive, B * T),
        warmup=1 if is_slow else 2,
        rounds=peer.rounds,
    )


def check(name: str, ours: LM, tokens_BT: Tensor) -> dict[str, Any]:
    """The accuracy rule on the first tokens of two rows, and the peer's numbers on a whole one."""
    peer = peer_of(name, ours)
    return check_training(ours, tokens_BT[:2, :160]) | check_same(ours, peer, tokens_BT[:1], peer.translated)


def derive(tokens: int, timings: Mapping[str, Timing], _speed: dict[str, float]) -> dict[str, Any]:
    return {"tokens_per_second": tokens_per_second(tokens, dict(timings))}
