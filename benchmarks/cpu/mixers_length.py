"""Time per token of a training step as sequences grow, for every mixer whose state has one size at any length.

2 blocks of width 256, vocabulary 256, float32, the plain loop; sequences of 512 and of 8192 tokens. A step has as many
tokens at both lengths, 8192, so that tensors have one size: large ones are slow, for each is new memory. Nets that go
step by step have one row at both lengths: the number of rows is the size of their products.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.cpu.peers.table import our_model
from benchmarks.cpu.training import batch, plain_step
from benchmarks.gate import check_training
from benchmarks.harness import Timing, rounded
from exlstm.mixers import MIXERS
from exlstm.models.pattern import configured

VOCABULARY, BLOCKS, ROUNDS = 256, 2, 5
STEP_BY_STEP = ("slstm", "lstm", "gru", "elman", "mult_lstm", "assoc_lstm", "matrix_rnn")


def run(bench: Bench) -> None:
    """Times every mixer at both lengths, side by side."""
    width, lengths = (64, (64, 256)) if bench.quick else (256, (512, 8192))
    for name in constant_state():
        if not bench.wants(name):
            continue
        make = partial(our_model, name, width=width, vocabulary=VOCABULARY, blocks=BLOCKS)
        rows = {T: 1 if name in STEP_BY_STEP else lengths[-1] // T for T in lengths}
        runs = {f"exlstm @{T}": plain_step(make(), batch(VOCABULARY, B, T)) for T, B in rows.items()}
        sizes = " and ".join(f"{B} x {T}" for T, B in rows.items())
        bench.measure(
            name,
            f"step of 2 blocks, width {width}, batches of {sizes}, float32",
            runs,
            partial(check_training, make(), batch(VOCABULARY, 2, 160)),
            derive=partial(derive, rows),
            warmup=1,
            rounds=ROUNDS,
        )


def constant_state() -> list[str]:
    """Names of the mixers whose state is as large after 64 steps as after 65,536, and which can take as many.

    Linformer has learned vectors for a `length` of positions.
    """
    configs = {name: configured(name, {"heads": 4}) for name in MIXERS}
    with torch.device("meta"):
        built: dict[str, Any] = {
            name: config.build(64, depth=2) for name, config in configs.items() if not hasattr(config, "length")
        }
    return [name for name, mixer in built.items() if mixer.state_bytes(64) == mixer.state_bytes(65_536)]


def derive(rows: Mapping[int, int], timings: Mapping[str, Timing], _speed: dict[str, float]) -> dict[str, Any]:
    """Tokens per second, and the time per token at the longest over that at the shortest. rows: by length."""
    rates = {f"exlstm @{T}": B * T / timings[f"exlstm @{T}"].median for T, B in rows.items()}
    shortest, longest = rates.values()
    return {
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "longest_over_shortest": rounded(shortest / longest),
    }
