"""Speed while another process keeps one core busy: for each program, its time then over its time alone."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.cpu import decode, mlstm_op, slstm_op, train_step
from benchmarks.cpu.training import PLAIN, ROWS, batch, plain_step, rows_step
from benchmarks.harness import Run, Timing, rounded, side_by_side
from exlstm.infer.token_loop import TokenLoop


def run(bench: Bench) -> None:
    """A training step, both ops, and decoding."""
    parts = {"train_step": training, "slstm_op": slstm, "mlstm_op": mlstm, "decode": decoding}
    for name, build in parts.items():
        if bench.wants(name):
            about, runs, check = build(bench.quick)
            bench.measure(
                name, f"{about}; alone", runs, check, derive=partial(disturbed, bench.repeats, runs), warmup=2
            )


def disturbed(
    repeats: int, runs: Mapping[str, Run], alone: Mapping[str, Timing], _speed: dict[str, float]
) -> dict[str, Any]:
    """The timings beside a busy core."""
    with busy_core():
        beside = side_by_side(runs, repeats=repeats, warmup=1)
    return {
        "beside_a_busy_core_ms": {name: timing.to_json() for name, timing in beside.items()},
        "slowdown": {name: rounded(timing.median / alone[name].median) for name, timing in beside.items()},
    }


@contextmanager
def busy_core() -> Iterator[None]:
    """Starts a process that keeps one core busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def training(quick: bool) -> tuple[str, dict[str, Run], Any]:
    width, B, T = (64, 2, 64) if quick else (256, 4, 256)
    tokens_BT = batch(train_step.VOCABULARY, B, T)
    ours, peer = train_step.pair("mmmm", width, T)
    other, _ = train_step.pair("mmmm", width, T)
    check = partial(train_step.check, *train_step.pair("mmmm", width, T), tokens_BT)
    runs = {PLAIN: plain_step(ours, tokens_BT), ROWS: rows_step(other, tokens_BT), "xlstm": plain_step(peer, tokens_BT)}
    return f"training step of mmmm, width {width}, batch {B} x {T}, float32", runs, check


def slstm(quick: bool) -> tuple[str, dict[str, Run], Any]:
    B, T, D = (4, 16, 64) if quick else (8, 256, 256)
    _, both = slstm_op.programs(B, T, D)
    runs = {name: both[name] for name in ("exlstm", "nn.LSTM")}
    return f"sLSTM op, width {D}, batch {B}, {T} steps, forward and backward", runs, partial(slstm_op.check_op, B, D)


def mlstm(quick: bool) -> tuple[str, dict[str, Run], Any]:
    size = (1, 128, 2, 16, 16) if quick else (4, 512, 4, 128, 128)
    runs, check, variant = mlstm_op.programs(size, both=True)
    return f"mLSTM op, B, T, H, K, V = {size}, forward and backward; peer: {variant}", runs, check


def decoding(quick: bool) -> tuple[str, dict[str, Run], Any]:
    size = decode.TINY["tiny"] if quick else decode.SIZES["160m"]
    model, context = decode.xlstm(size), size.contexts[0]
    official = decode.theirs(model, size)
    llama = decode.llama_of(size)
    with torch.inference_mode():
        state = decode.advance(model, torch.zeros(1, context, dtype=torch.long), None)
    runs = {
        "exlstm": partial(decode.decode, TokenLoop(model, state), size.tokens),
        "transformers xLSTM": decode.decode_official(official, size),
        "Llama": decode.decode_llama(llama, size, context),
    }
    return (
        f"{size.tokens} tokens, float32, width {size.width}",
        runs,
        partial(decode.check, model, model, official, size),
    )
