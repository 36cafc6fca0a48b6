"""Our mLSTM beside rivals with a matrix memory, all ours and of the same width: training, prefill and decoding.

2 blocks as they are published, width 1024, 4 heads, vocabulary 256, float32. Told is also how much of the machine each
reaches: useful FLOPs over those of sgemm, and bytes of weights and states over the bandwidth of reading.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cpu import decode
from benchmarks.cpu.peers.table import our_model
from benchmarks.cpu.training import batch, plain_step, tokens_per_second
from benchmarks.gate import check_training
from benchmarks.harness import OURS, Run, Timing, rounded
from exlstm.infer.token_loop import TokenLoop
from exlstm.models.lm import LM
from exlstm.models.summary import flops_per_token

MIXERS = ("mlstm", "mlstm_large", "gla", "retention", "mamba2", "deltanet", "gated_deltanet")
VOCABULARY, BLOCKS = 256, 2


def run(bench: Bench) -> None:
    """Times all mixers side by side, once for each of the three ways."""
    width, train, length, tokens = (64, (2, 64), 128, 4) if bench.quick else (1024, (2, 512), 2048, 16)
    if not any(bench.wants(name) for name in ("train", "prefill", "decode")):
        return
    make = partial(our_model, width=width, vocabulary=VOCABULARY, blocks=BLOCKS)
    models = {f"{OURS} {name}": make(name).eval() for name in MIXERS}
    check = cache(partial(check_all, models))  # once for all three
    about = f"2 blocks of each mixer, width {width}, float32"
    trained = {label: make(label.partition(" ")[2]) for label in models}
    runs: dict[str, Run] = {label: plain_step(model, batch(VOCABULARY, *train)) for label, model in trained.items()}
    bench.measure(
        "train",
        f"step of batch {train[0]} x {train[1]}, AdamW, {about}",
        runs,
        check,
        derive=partial(derive, models, "train", train[1], train[0] * train[1]),
    )
    runs = {label: partial(prefill, model, batch(VOCABULARY, 1, length)) for label, model in models.items()}
    bench.measure(
        "prefill",
        f"{length} tokens of one prompt, {about}",
        runs,
        check,
        derive=partial(derive, models, "prefill", length, length),
    )
    runs = {label: partial(decode.decode, TokenLoop(model), tokens) for label, model in models.items()}
    bench.measure(
        "decode",
        f"{tokens} tokens in a row, batch 1, {about}",
        runs,
        check,
        derive=partial(derive_decode, models, tokens),
    )


@torch.inference_mode()
def prefill(model: LM, tokens_BT: Tensor) -> None:
    """Reads a prompt: logits of the last token alone."""
    hidden_BTD, _state = model.hidden(tokens_BT)
    model.read_out(hidden_BTD[:, -1:])


def check_all(models: Mapping[str, LM]) -> dict[str, Any]:
    """The accuracy rule for every model; that decoding gives the logits of the whole sequence."""
    found, tokens_BT = {}, batch(VOCABULARY, 2, 80)
    for label, model in models.items():
        found[label] = check_training(model, tokens_BT)["error"]
        with torch.no_grad():
            whole_BTC, stepped_BTC = model(tokens_BT[:1])[0], decode.one_by_one(model, tokens_BT[:1])
        torch.testing.assert_close(stepped_BTC, whole_BTC, rtol=1e-3, atol=1e-3)
    return {"error": found}


def derive(
    models: Mapping[str, LM],
    mode: str,
    length: int,
    tokens: int,
    timings: Mapping[str, Timing],
    speed: dict[str, float],
) -> dict[str, Any]:
    """Tokens per second, and useful FLOPs over what sgemm reached beside it."""
    rates = {label: tokens / timing.median for label, timing in timings.items()}
    gflops = {label: rate * flops_per_token(models[label], mode, length) / 1e9 for label, rate in rates.items()}
    return {
        "tokens_per_second": tokens_per_second(tokens, dict(timings)),
        "share_of_sgemm": {label: rounded(rate / speed["sgemm_gflops"]) for label, rate in gflops.items()},
    }


def derive_decode(
    models: Mapping[str, LM], tokens: int, timings: Mapping[str, Timing], speed: dict[str, float]
) -> dict[str, Any]:
    """Tokens per second, bytes of a state, and bytes moved over the bandwidth of reading."""
    bandwidth = max(value for name, value in speed.items() if name.startswith("stream"))
    moved = {label: tokens * decode.bytes_per_token(model) / 1e9 for label, model in models.items()}
    return {
        "tokens_per_second": tokens_per_second(tokens, dict(timings)),
        "share_of_stream": {label: rounded(moved[label] / t.median / bandwidth) for label, t in timings.items()},
        "state_bytes": {label: model.state_bytes() // BLOCKS for label, model in models.items()},
    }
