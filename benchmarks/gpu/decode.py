"""Decoding with xLSTM-7B's shape and random weights in bfloat16, batch 1: a token after contexts of different lengths.

A timing is of some tokens in a row, greedy, as `generate` takes them: with a `TokenLoop`, and with a call of the model
for every token. The contexts are really read. The least that a token takes: every weight once but the embedding's other
rows, the state read and written; two FLOPs per weight.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gate import FACTOR, definition, relative
from benchmarks.gpu.calls import MIDDLE
from benchmarks.gpu.work import Cost, Setup, Variant, Work
from benchmarks.harness import Run, Timing, rounded
from exlstm.infer.token_loop import TokenLoop
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.presets import preset

NAME, CONTEXTS, READ, TOKENS = "xlstm-7b", (0, 1024, 65_536), 2048, 32
TINY_CONTEXTS, TINY_READ, TINY_TOKENS = (0, 8, 24), 8, 3
CALLED = "exlstm, model called"


def works(setup: Setup) -> Iterator[Work]:
    """Yields one measurement of all contexts."""
    bench = Decoding(setup)
    cost = bench.cost()
    contexts, tokens = (TINY_CONTEXTS, TINY_TOKENS) if setup.tiny else (CONTEXTS, TOKENS)
    variants = {
        f"exlstm @{context}": Variant(
            build=partial(bench.build, context), check=partial(bench.check, context), cost=cost
        )
        for context in contexts
    }
    variants[CALLED] = Variant(build=partial(bench.build_called, contexts[0]), cost=cost)
    about = f"{tokens} tokens in a row, batch 1, {NAME}'s shape, random weights, {str(setup.dtype)[6:]}"
    yield Work(name="7b", about=about, variants=variants, derive=partial(derive, tokens))


def few(width: int) -> LMConfig:
    """xLSTM-7B's layout in two blocks, for what is too slow or too large in float64."""
    large = preset(NAME, vocab_size=512)
    block = BlockConfig(mixer=large.blocks[0].mixer, mlp=MLPConfig(hidden=8 * width // 3, activation="silu"))
    return replace(large, width=width, blocks=(block, block))


def model_of(config: LMConfig, setup: Setup) -> LM:
    """Random weights, made on the card; gates and norms shaken so that all of them matter."""
    torch.manual_seed(0)
    with torch.device(setup.device):
        model = LM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".i." in name or ".f." in name or ".o." in name:
                parameter += 0.02 * torch.randn_like(parameter)
    return model.to(setup.dtype).eval()


class Decoding:
    """The model and its states, made at first use."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = few(64) if setup.tiny else preset(NAME)
        self.tokens, self.read = (TINY_TOKENS, TINY_READ) if setup.tiny else (TOKENS, READ)
        self.loops: dict[int, TokenLoop] = {}

    @cached_property
    def model(self) -> LM:
        return model_of(self.config, self.setup)

    def tokens_T(self, count: int) -> Tensor:
        generator = torch.Generator(self.setup.device).manual_seed(2)
        return torch.randint(self.config.vocab_size, (count,), generator=generator, device=self.setup.device)

    @torch.no_grad()
    def state(self, context: int) -> Any:
        """The state after so many tokens, read in chunks without logits."""
        state: Any = None
        for piece_T in self.tokens_T(context).split(self.read):
            if not len(piece_T):
                break
            x_BTD, after = self.model.embed(piece_T[None]), []
            for index, block in enumerate(self.model.blocks):
                x_BTD, block_state = block(x_BTD, None if state is None else state[index])
                after.append(block_state)
            state = tuple(after)
        return state

    def build(self, context: int) -> Run:
        """Decodes with a `TokenLoop`, which continues where the last run ended."""
        loop = self.loops[context] = TokenLoop(self.model, self.state(context))

        def run() -> Tensor:
            token_B = torch.zeros(1, dtype=torch.long, device=self.setup.device)
            for _ in range(self.tokens):
                logits_BC = loop(token_B)
                token_B = logits_BC.argmax(-1)
            return logits_BC

        return run

    def build_called(self, context: int) -> Run:
        """Decodes with a call of the model for every token."""
        first = self.state(context)

        @torch.no_grad()
        def run() -> Tensor:
            token_BT, state = torch.zeros(1, 1, dtype=torch.long, device=self.setup.device), first
            for _ in range(self.tokens):
                logits_BTC, state = self.model(token_BT, state)
                token_BT = logits_BTC[:, -1:].argmax(-1)
            return logits_BTC

        return run

    def check(self, context: int, logits_BC: Tensor) -> dict[str, Any]:
        """The rule on a few blocks; and, on the whole model, that the loop says what a call of the model says."""
        assert torch.isfinite(logits_BC).all(), "not all of its numbers are finite"
        loop = self.loops[context]
        state, token_B = loop.state, logits_BC.argmax(-1)
        with torch.no_grad():
            called_BC = self.model(token_B[:, None], state)[0][:, 0]
        difference = relative(loop(token_B), called_BC)
        assert difference <= MIDDLE, f"its logits differ from the model's by {difference:.1e}, allowed {MIDDLE:.0e}"
        return check_few(self.setup) | {
            "difference_from_call": rounded(difference), "replayed": "yes" if loop.why_not is None else loop.why_not
        }  # fmt: skip

    def cost(self) -> Cost:
        """The cost of all tokens of a timing, counted without building the model."""
        with torch.device("meta"):
            model = LM(self.config)
        weights = sum(p.numel() for name, p in model.named_parameters() if name != "embed.weight")
        moved = weights * self.setup.dtype.itemsize + 2 * model.state_bytes()
        return Cost(self.tokens * moved, self.tokens * 2 * weights)


@cache
@torch.no_grad()
def check_few(setup: Setup) -> dict[str, Any]:
    """Eight tokens, one at a time: at most twice as wrong as the definition in the same precision."""
    config = few(64 if setup.tiny else 512)
    model = model_of(config, setup)
    tokens_T = torch.randint(config.vocab_size, (8,), generator=torch.Generator().manual_seed(3)).to(setup.device)
    exact_TC, plain_TC = (form(tokens_T[None])[0][0] for form in (definition(model).double(), definition(model)))
    loop = TokenLoop(model)
    found_TC = torch.cat([loop(token_B) for token_B in tokens_T[:, None]])
    errors = {"exlstm": relative(found_TC, exact_TC), "plain form": relative(plain_TC, exact_TC)}
    allowed = FACTOR * errors["plain form"] + 2 * torch.finfo(torch.float32).eps
    assert errors["exlstm"] <= allowed, f"error of the logits {errors['exlstm']:.2e}, allowed {allowed:.2e}"
    return {"error_of_logits": {name: rounded(value) for name, value in errors.items()}}


def derive(tokens: int, timings: Mapping[str, Timing], _rates: dict[str, float]) -> dict[str, Any]:
    """Milliseconds per token, and how they grow with the context."""
    each = {name: 1e3 * timing.median / tokens for name, timing in timings.items()}
    found: dict[str, Any] = {"milliseconds_per_token": {name: rounded(value) for name, value in each.items()}}
    read = {int(name.partition("@")[2]): value for name, value in each.items() if "@" in name}
    if len(read) > 1 and 0 in read:
        found["longest_over_shortest_context"] = rounded(read[max(read)] / read[0])
    return found
