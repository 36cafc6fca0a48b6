"""Decoding one token at a time, batch 1, random weights: the time per token after contexts of different lengths.

xLSTM-7B's layout in two sizes, vocabulary 50304, next to transformers' xLSTM with native kernels (the same weights) and
transformers' Llama of equal size with its KV cache. Each timing is of several tokens in a row, greedy. The states are
those after really reading the context; the 400M model's 64k state is that after 4k, for it has the same size and a
token costs the same whatever is in it. Llama's cache holds random keys and values.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench
from benchmarks.cpu.train_llama import llama_like
from benchmarks.gate import FACTOR, SAME_JOB, definition, relative
from benchmarks.harness import Run, Timing, rounded
from exlstm.infer.quantize import quantize
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.linear import QuantizedLinear
from exlstm.ops.linear.formats import dequantised
from peers import from_large

VOCABULARY = 50_304
QUANTISED: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model of xLSTM-7B's layout; llama_heads are of width 64."""

    width: int
    hidden: int  # of the MLPs
    blocks: int
    llama_heads: int
    heads: int = 4
    vocabulary: int = VOCABULARY
    contexts: tuple[int, ...] = (16, 1024, 4096, 65_536)
    read: int = 65_536  # the longest context that is really read
    llama_contexts: tuple[int, ...] = (16, 1024, 4096, 16_384)
    tokens: int = 16  # in one timing


SIZES = {
    "160m": Size(width=768, hidden=2048, blocks=12, llama_heads=12),
    "400m": Size(width=1024, hidden=2752, blocks=24, llama_heads=16, read=4096, tokens=8),
}
TINY = {
    "tiny": Size(
        width=128,
        hidden=384,
        blocks=2,
        llama_heads=2,
        vocabulary=512,
        contexts=(16, 64),
        read=64,
        llama_contexts=(16, 64),
    )
}


def run(bench: Bench) -> None:
    """Times both sizes in float32 and bfloat16, then with quantized weights."""
    for name, size in (TINY if bench.quick else SIZES).items():
        wanted = [dtype for dtype in DTYPES if bench.wants(f"{name}_{dtype}")]
        if not wanted and not any(bench.wants(f"{name}_{weights}") for weights in QUANTISED):
            continue
        model = xlstm(size)
        states = read_contexts(model, size)
        for dtype in wanted:
            against_peers(bench, name, size, model, states, dtype)
            gc.collect()
        quantised(bench, name, size, model, states)


def against_peers(bench: Bench, name: str, size: Size, model: LM, states: dict[int, Any], dtype: str) -> None:
    """One dtype: every context of ours, transformers' xLSTM, and every context of Llama."""
    ours = model if dtype == "float32" else copy_of(model, size, dtype)
    official = theirs(model, size).to(DTYPES[dtype])
    llama = llama_of(size).to(DTYPES[dtype])
    runs: dict[str, Run] = {
        f"exlstm @{T}": partial(decode, TokenLoop(ours, state), size.tokens) for T, state in states.items()
    }
    runs["exlstm, model called"] = partial(decode_by_calls, ours, states[size.contexts[0]], size.tokens)
    runs["transformers xLSTM"] = decode_official(official, size)
    runs |= {f"Llama @{T}": decode_llama(llama, size, T) for T in size.llama_contexts}
    about = f"{size.tokens} tokens in a row, batch 1, xLSTM {name} and peers, {dtype}"
    bench.measure(f"{name}_{dtype}", about, runs, partial(check, model, ours, official, size),
                  derive=partial(derive, ours, size.tokens), warmup=1)  # fmt: skip


def xlstm(size: Size) -> LM:
    """Fresh weights, gates and norms shaken so that all of them matter."""
    torch.manual_seed(0)
    mlp = MLPConfig(hidden=size.hidden, activation="silu")
    block = BlockConfig(mixer=MLSTMLargeConfig(heads=size.heads), mlp=mlp)
    model = LM(LMConfig(vocab_size=size.vocabulary, width=size.width, blocks=(block,) * size.blocks, norm="rms",
                        norm_eps=1e-6, logit_cap=30.0))  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".i." in name or ".f." in name or ".o." in name:
                parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


def llama_of(size: Size) -> nn.Module:
    """Llama of the same width, depth, MLP and vocabulary."""
    return llama_like(
        size.width, hidden=size.hidden, blocks=size.blocks, heads=size.llama_heads, vocabulary=size.vocabulary,
        longest=max(size.llama_contexts),
    ).eval()  # fmt: skip


def copy_of(model: LM, size: Size, dtype: str) -> LM:
    copy = xlstm(size)
    copy.load_state_dict(model.state_dict())
    return copy.to(DTYPES[dtype])


def theirs(model: LM, size: Size) -> nn.Module:
    """transformers' xLSTM with our weights."""
    from transformers import xLSTMConfig, xLSTMForCausalLM

    config = xLSTMConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, embedding_dim=size.width, num_hidden_layers=size.blocks,
        num_blocks=size.blocks, num_heads=size.heads, autocast_kernel_dtype="float32",
    )  # fmt: skip
    peer = xLSTMForCausalLM(config).eval()
    ours = model.state_dict()
    with torch.no_grad():
        # the map's outputs are views of the peer's tensors, but for the MLP's halves, which it joins
        for name, tensor in from_large(peer.state_dict()).items():
            if name.endswith("mlp.up.weight"):
                index = int(name.split(".")[1])
                gate, up = ours[name].chunk(2)
                peer.backbone.blocks[index].ffn.proj_up_gate.weight.copy_(gate)
                peer.backbone.blocks[index].ffn.proj_up.weight.copy_(up)
            else:
                tensor.copy_(ours[name])
    return peer


@torch.inference_mode()
def read_contexts(model: LM, size: Size) -> dict[int, Any]:
    """The state after each context, from one pass through the longest, without logits."""
    generator, state, states = torch.Generator().manual_seed(2), None, {}
    tokens_T = torch.randint(size.vocabulary, (size.read,), generator=generator)
    position = 0
    for context in size.contexts:
        while position < min(context, size.read):
            end = min(position + 1024, context)
            state = advance(model, tokens_T[None, position:end], state)
            position = end
        states[context] = state
    return states


def advance(model: LM, tokens_BT: Tensor, state: Any) -> Any:
    x_BTD, after = model.embed(tokens_BT), []
    for index, block in enumerate(model.blocks):
        x_BTD, block_state = block(x_BTD, None if state is None else state[index])
        after.append(block_state)
    return tuple(after)


def decode(loop: TokenLoop, tokens: int) -> None:
    """Decodes with a `TokenLoop`, as `generate` does."""
    token_B = torch.zeros(1, dtype=torch.long)
    for _ in range(tokens):
        token_B = loop(token_B).argmax(-1)


@torch.inference_mode()
def decode_by_calls(model: LM, state: Any, tokens: int) -> None:
    """Decodes with a call of the model for every token."""
    token_BT = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(tokens):
        logits_BTC, state = model(token_BT, state)
        token_BT = logits_BTC[:, -1:].argmax(-1)


def decode_official(model: nn.Module, size: Size) -> Run:
    with torch.inference_mode():
        cache = model(torch.zeros(1, 16, dtype=torch.long), use_cache=True).cache_params

    @torch.inference_mode()
    def run() -> None:
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(size.tokens):
            token = model(token, cache_params=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return run


def decode_llama(model: nn.Module, size: Size, context: int) -> Run:
    """Decodes with Llama's growing cache, which is cut back to the context after each run."""
    from transformers import DynamicCache

    cache, shape = DynamicCache(), (1, size.llama_heads, context, size.width // size.llama_heads)
    for layer in range(size.blocks):
        cache.update(*(torch.randn(shape).to(model.dtype) for _ in range(2)), layer)

    @torch.inference_mode()
    def run() -> None:
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(size.tokens):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        cache.crop(-size.tokens)

    return run


def quantised(bench: Bench, name: str, size: Size, model: LM, states: dict[int, Any]) -> None:
    """Times weights of 8 and of 4 bits, each next to bfloat16."""
    state = states[size.contexts[0]]
    for weights in QUANTISED:
        if not bench.wants(f"{name}_{weights}"):
            continue
        small, wide = quantize(model, weights), copy_of(model, size, "bfloat16")
        runs = {f"exlstm {weights}": partial(decode, TokenLoop(small, state), size.tokens),
                "bfloat16": partial(decode, TokenLoop(wide, state), size.tokens)}  # fmt: skip
        about = f"{size.tokens} tokens in a row, batch 1, xLSTM {name}, weights in {weights} and in bfloat16"
        bench.measure(f"{name}_{weights}", about, runs, partial(check_quantised, model, small, size),
                      derive=partial(per_token, size.tokens), warmup=1)  # fmt: skip


def per_token(tokens: int, timings: Mapping[str, Timing], _speed: dict[str, float]) -> dict[str, Any]:
    return {"milliseconds_per_token": {name: rounded(1e3 * t.median / tokens) for name, t in timings.items()}}


@torch.inference_mode()
def check(exact_model: LM, ours: LM, official: nn.Module, size: Size) -> dict[str, Any]:
    """Eight tokens, one at a time: the rule, with transformers' xLSTM as the plain form in the same precision."""
    tokens_BT = torch.randint(size.vocabulary, (1, 8), generator=torch.Generator().manual_seed(3))
    exact_BTC = definition(exact_model).double()(tokens_BT)[0]
    found = {"exlstm": one_by_one(ours, tokens_BT), "transformers xLSTM": official(tokens_BT, use_cache=True).logits}
    errors = {name: rounded(relative(logits, exact_BTC)) for name, logits in found.items()}
    allowed = FACTOR * errors["transformers xLSTM"] + 2 * torch.finfo(torch.float32).eps
    assert errors["exlstm"] <= allowed, f"error of the logits {errors['exlstm']:.2e}, allowed {allowed:.2e}"
    if ours.head.weight.dtype == torch.float32:
        assert errors["transformers xLSTM"] < SAME_JOB, f"the peer computes something else: {errors}"
    return {"error_of_logits": errors}


@torch.inference_mode()
def check_quantised(model: LM, small: LM, size: Size) -> dict[str, Any]:
    """The rule, against the definition with the rounded weights.

    How far rounding moves the logits is only told.
    """
    tokens_BT = torch.randint(size.vocabulary, (1, 8), generator=torch.Generator().manual_seed(3))
    logits_BTC = one_by_one(small, tokens_BT)
    plain = with_rounded_weights(model, small)
    plain_BTC = plain(tokens_BT)[0]
    exact_BTC = plain.double()(tokens_BT)[0]
    error, error_of_plain_form = relative(logits_BTC, exact_BTC), relative(plain_BTC, exact_BTC)
    allowed = FACTOR * error_of_plain_form + 2 * torch.finfo(torch.float32).eps
    assert error <= allowed, f"error of the logits {error:.2e}, allowed {allowed:.2e}"
    return {
        "error_of_logits": rounded(error),
        "error_of_plain_form": rounded(error_of_plain_form),
        "moved_by_rounding": rounded(relative(logits_BTC, model(tokens_BT)[0])),
    }


def with_rounded_weights(model: LM, small: LM) -> LM:
    """The definition, in float32, with the weights that a quantised copy stands for."""
    plain = definition(model)
    for name, layer in small.named_modules():
        if isinstance(layer, QuantizedLinear):
            plain.get_submodule(name).weight.copy_(dequantised(layer.packed(), torch.float32))
    return plain


def one_by_one(model: LM, tokens_BT: Tensor) -> Tensor:
    """Logits of a loop over tokens, whose steps have to be replayed unless there is attention in it."""
    loop = TokenLoop(model)
    logits_BTC = torch.stack([loop(tokens_B) for tokens_B in tokens_BT.T], dim=1)
    grows = model.state_bytes(1) != model.state_bytes(2)
    assert grows or loop.why_not is None, f"steps are not replayed: {loop.why_not}"
    return logits_BTC


def bytes_per_token(model: LM) -> int:
    """Bytes that decoding one token moves: every weight but the embedding's other rows, the state in and out."""
    tied = model.config.tie_embeddings
    weights = sum(p.nbytes for name, p in model.named_parameters() if tied or name != "embed.weight")
    return weights + 2 * model.state_bytes()


def derive(ours: LM, tokens: int, timings: Mapping[str, Timing], speed: dict[str, float]) -> dict[str, Any]:
    """Milliseconds per token; the share of the measured bandwidth; how the time grows with the context."""
    found = per_token(tokens, timings, speed)
    mine = [value for name, value in found["milliseconds_per_token"].items() if name.startswith("exlstm @")]
    moved = bytes_per_token(ours)
    bandwidth = max(value for name, value in speed.items() if name.startswith("stream"))
    return found | {
        "megabytes_per_token": rounded(moved / 1e6),
        "share_of_stream": rounded(moved / mine[0] / 1e6 / bandwidth),
        "longest_over_shortest_context": rounded(mine[-1] / mine[0]),
    }
