"""Generation: read the prompts in chunks, then one token at a time; the state is all that is carried.

Memory depends on the number of prompts and the chunk length, not on how long a prompt or a completion is (as far as the
model's own state does not grow). Prompts of different lengths share a batch: each gets the tokens it would get alone.

B batch (prompts)  T time  L chunk length  C classes (vocabulary)
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from exlstm.data.tokenizer import Decoder, Tokenizer
from exlstm.infer.sampling import SamplingConfig, sample
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.contract import rows
from exlstm.models.lm import LM

PREFILL_CHUNK = 256


def generate(
    model: LM,
    prompt_tokens: Sequence[int],
    *,
    max_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_tokens: Collection[int] = (),
) -> Iterator[int]:
    """Continue one prompt: yields up to `max_tokens` tokens as they are sampled.

    prompt_tokens: at least one token; a text normally starts with the tokenizer's boundary token.
    sampling: None samples from the model's distribution as it is.
    stop_tokens: generation ends when one of these is sampled; it is not yielded.
    Raises ValueError for an empty prompt or a negative number of tokens, before anything is computed.
    """
    tokens = generate_batch(
        model, [prompt_tokens], max_tokens=max_tokens, sampling=sampling, seeds=[seed], stop_tokens=stop_tokens
    )
    return (token for _, token in tokens)


def generate_batch(
    model: LM,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: SamplingConfig | None = None,
    seeds: Sequence[int] | None = None,
    stop_tokens: Collection[int] = (),
) -> Iterator[tuple[int, int]]:
    """Continue several prompts of any lengths together: yields (index of the prompt, token), step by step.

    seeds: one per prompt, 0, 1, 2, ... if None. A prompt with its seed gets the same tokens in any batch.
    The other arguments and the errors are those of `generate`; a prompt that met a stop token leaves the batch.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more, not {max_tokens}.")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} has no tokens; start it with the tokenizer's boundary token.")
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts but {len(seeds)} seeds; give one seed per prompt.")
    return _generate(model, prompts, max_tokens, sampling or SamplingConfig(), seeds, frozenset(stop_tokens))


def generate_text(
    model: LM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continue a text, which may be empty: yields pieces of the continuation until the model ends the document.

    A piece is yielded when its last token completes a character; the pieces joined are the whole continuation.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}; "
            "use the tokenizer that the model was trained with."
        )
    prompt_tokens = [tokenizer.boundary, *tokenizer.encode(prompt.encode())]
    tokens = generate(
        model, prompt_tokens, max_tokens=max_tokens, sampling=sampling, seed=seed, stop_tokens={tokenizer.boundary}
    )
    return _pieces(tokens, Decoder(tokenizer))


def prefill(model: LM, prompts: Sequence[Sequence[int]], *, chunk_len: int = PREFILL_CHUNK) -> tuple[Tensor, Any]:
    """Read whole prompts: the logits after the last token of each, logits_BC, and the state.

    At most `chunk_len` tokens of every prompt are in flight at a time, so that memory does not grow with the prompt.
    """
    device = model.embed.weight.device
    B, T = len(prompts), max(len(prompt) for prompt in prompts)
    tokens_BT = torch.zeros(B, T, dtype=torch.long)
    for row_T, prompt in zip(tokens_BT, prompts, strict=True):
        row_T[: len(prompt)] = torch.as_tensor(prompt)
    tokens_BT = tokens_BT.to(device)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)

    last_BC, state = None, None
    for start in range(0, T, chunk_len):
        tokens_BL = tokens_BT[:, start : start + chunk_len]
        L = tokens_BL.shape[1]
        here_B = (lengths_B - start).clamp(0, L)
        ragged = bool((here_B < L).any())
        logits_BLC, state = model(tokens_BL, state, lengths_B=here_B if ragged else None)
        here_BC = logits_BLC[torch.arange(B, device=device), (here_B - 1).clamp(min=0)]
        # a prompt that ended in an earlier chunk keeps the logits it got there
        last_BC = here_BC if last_BC is None else torch.where((here_B > 0)[:, None], here_BC, last_BC)
    assert last_BC is not None
    return last_BC, state


@contextmanager
def _evaluating(model: LM) -> Iterator[None]:
    """No gradients, no dropout; entered for each step, so that a paused generator leaves the model as it was."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def _generate(
    model: LM,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    stop_tokens: frozenset[int],
) -> Iterator[tuple[int, int]]:
    if max_tokens == 0 or not prompts:
        return
    live = list(range(len(prompts)))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with _evaluating(model):
        logits_BC, state = prefill(model, prompts)
        seen_BC = _seen(prompts, logits_BC) if sampling.repetition_penalty != 1.0 else None
    loop = TokenLoop(model, state)

    for step in range(max_tokens):
        tokens_B = sample(logits_BC, sampling, generators, seen_BC)
        tokens = tokens_B.tolist()
        going = [row for row, token in enumerate(tokens) if token not in stop_tokens]
        yield from [(live[row], tokens[row]) for row in going]
        if not going or step == max_tokens - 1:
            return
        if len(going) < len(live):
            keep_B = torch.tensor(going, device=tokens_B.device)
            live, generators = [live[row] for row in going], [generators[row] for row in going]
            tokens_B, loop = tokens_B[keep_B], TokenLoop(model, rows(loop.state, keep_B))
            seen_BC = None if seen_BC is None else seen_BC[keep_B]
        if seen_BC is not None:
            seen_BC = seen_BC.scatter(1, tokens_B[:, None], True)
        with _evaluating(model):
            logits_BC = loop(tokens_B)


def _seen(prompts: Sequence[Sequence[int]], logits_BC: Tensor) -> Tensor:
    seen_BC = torch.zeros_like(logits_BC, dtype=torch.bool)
    for seen_C, prompt in zip(seen_BC, prompts, strict=True):
        seen_C[torch.as_tensor(prompt, device=seen_C.device)] = True
    return seen_BC


def _pieces(tokens: Iterator[int], decoder: Decoder) -> Iterator[str]:
    for token in tokens:
        if piece := decoder.feed(token):
            yield piece
    if piece := decoder.finish():
        yield piece
