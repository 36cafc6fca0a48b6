"""Decoding of rivals one token at a time, batch 1, float32, beside transformers' models with the same weights.

Published models of about 160M parameters, random weights. Both get one token after another, greedy, as in `decode`.
The peers have read 16 tokens; ours also runs on the state after 4096, which stands for any longer context: the windowed
attention of RecurrentGemma is full by then, and all other states have one size.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench
from benchmarks.cpu import decode
from benchmarks.cpu.peers.table import shaken
from benchmarks.cpu.peers.transformers import transformers_model
from benchmarks.gate import FACTOR, SAME_JOB, definition, relative
from benchmarks.harness import Run, rounded
from exlstm.infer.token_loop import TokenLoop
from exlstm.models.checkpoints.transformers.recurrent_gemma import scale
from exlstm.models.lm import LM, LMConfig
from exlstm.models.presets import preset
from exlstm.models.rivals import GPT2_VOCABULARY, recurrent_gemma

PRESETS = {"mamba": "mamba-130m", "mamba2": "mamba2-130m", "rwkv4": "rwkv4-169m"}
RECURRENT_GEMMA = "recurrent_gemma"
# what a call of transformers' model takes and returns as its memory
MEMORY = {"mamba": "cache_params", "mamba2": "cache_params", "rwkv": "state", RECURRENT_GEMMA: "past_key_values"}
SHORT, LONG, READ = 16, 65_536, 4096
PEER = "transformers"


def run(bench: Bench) -> None:
    """Times every model."""
    tokens, read = (2, 64) if bench.quick else (16, READ)
    for name in (*PRESETS, RECURRENT_GEMMA):
        if not bench.wants(name):
            continue
        model = ours(name, tiny=bench.quick)
        peer = transformers_model(model).model.eval()
        loops = {f"exlstm @{T}": loop_after(model, min(T, read)) for T in (SHORT, LONG)}
        runs: dict[str, Run] = {label: partial(decode.decode, loop, tokens) for label, loop in loops.items()}
        runs[PEER] = partial(steps, OneByOne(peer, prompt(SHORT, model.config.vocab_size)), tokens)
        size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters"
        about = f"{tokens} tokens in a row, batch 1, {PRESETS.get(name, name)} ({size}), float32; peer: transformers'"
        bench.measure(
            name, about, runs, partial(check, model, peer), derive=partial(decode.derive, model, tokens), warmup=1
        )


def config_of(name: str) -> LMConfig:
    """The published architecture; RecurrentGemma's smallest has 2B parameters, so here are fewer, narrower blocks."""
    if name != RECURRENT_GEMMA:
        return preset(PRESETS[name])
    return replace(recurrent_gemma(17, 768, 12), vocab_size=GPT2_VOCABULARY, embed_scale=scale(768))


def ours(name: str, *, tiny: bool) -> LM:
    config = config_of(name)
    if tiny:
        config = replace(config, vocab_size=512, blocks=config.blocks[:6])
    torch.manual_seed(0)
    return shaken(LM(config)).eval()


def prompt(length: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(2))


def loop_after(model: LM, length: int) -> TokenLoop:
    """The loop of a model that has read so many tokens."""
    return TokenLoop(model, model.read(prompt(length, model.config.vocab_size)).state)


class OneByOne:
    """logits = step(tokens) of transformers' model, with the memory of all tokens so far."""

    def __init__(self, model: nn.Module, tokens_BT: Tensor) -> None:
        from transformers import DynamicCache

        kind = model.config.model_type
        self.model, self.name, self.memory = model, MEMORY[kind], None
        if kind == RECURRENT_GEMMA:  # it keeps the rest of its memory in its layers, which a call without it empties
            model(tokens_BT[:, :1], use_cache=False)
            self.memory = DynamicCache(config=model.config)
        self(tokens_BT)

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor) -> Tensor:
        found = self.model(tokens_BT, use_cache=True, **{self.name: self.memory})
        self.memory = getattr(found, self.name, None) or self.memory
        logits_BTC: Tensor = found.logits
        return logits_BTC


def steps(model: OneByOne, tokens: int) -> None:
    token_BT = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(tokens):
        token_BT = model(token_BT)[:, -1:].argmax(-1)


@torch.no_grad()
def check(model: LM, peer: nn.Module) -> dict[str, Any]:
    """Twelve tokens, of which the last eight one at a time: the rule, with transformers as the plain form."""
    tokens_BT = prompt(12, model.config.vocab_size)
    exact_BTC = definition(model).double()(tokens_BT)[0][:, 4:]
    step = OneByOne(peer, tokens_BT[:, :4])
    found = {
        "exlstm": decode.one_by_one(model, tokens_BT)[:, 4:],
        PEER: torch.cat([step(token_BT) for token_BT in tokens_BT[:, 4:].split(1, dim=1)], dim=1),
    }
    errors: Mapping[str, float] = {name: rounded(relative(logits, exact_BTC)) for name, logits in found.items()}
    allowed = FACTOR * errors[PEER] + 2 * torch.finfo(torch.float32).eps
    assert errors["exlstm"] <= allowed, f"error of the logits {errors['exlstm']:.2e}, allowed {allowed:.2e}"
    assert errors[PEER] < SAME_JOB, f"the peer computes something else: {errors}"
    return {"error_of_logits": errors}
