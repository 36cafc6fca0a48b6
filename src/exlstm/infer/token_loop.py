"""Decoding: a model, a state, and one token after another.

The first step is captured: on a CPU as a list of kernels, on a GPU as a CUDA graph. All others replay it without the
interpreter, so a token costs what its kernels cost. Numbers agree with those of calls to rounding. A step that cannot
be captured is a call of the model each time.

B batch  C classes (vocabulary)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.infer.captured_step import CapturedStep, StateBuffers, draws, replay_steps
from exlstm.infer.cpu_graph import CPUGraphStep
from exlstm.infer.cuda_graph import CUDAGraphStep
from exlstm.mixers.state import LMState, leaves, map_state
from exlstm.models.lm import LM
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.ops.attention import AttentionState, WindowState
from exlstm.runtime.capture import NotCapturable
from exlstm.runtime.internals import has_hooks

LEAST_ROOM = 64  # tokens for which a cache that grows is given room, at least
MOST_STEPS = 4096  # at 8,192 a replay took 1.2 times as long as a call, at 2,048 a quarter
STEP_CLASSES: dict[str, type[CapturedStep]] = {"cpu": CPUGraphStep, "cuda": CUDAGraphStep}  # by type of device


class TokenLoop:
    """logits_BC = loop(tokens_B), again and again, without gradients. `loop.state` is the state after the last token.

        loop = TokenLoop(model, state)             # state: what the model returned, or None for nothing
        while True:
            token_B = loop(token_B).argmax(-1)

    model: an LM, in evaluation mode; its weights may change in between. replay: False calls the model at every step.
    why_not: the reason for which steps are not replayed, or None. Raises ValueError for input that does not fit.
    """

    def __init__(self, model: nn.Module, state: LMState | None = None, *, replay: bool = True) -> None:
        self.model: Any = model
        self.uncaptured = state  # the state while no step is captured
        self.captured: CapturedStep | None = None
        self.room: int | None = None  # tokens until caches that grow are full; None where nothing grows
        self.why_not = obstacle(model) if replay else "it was not asked for"

    @property
    def state(self) -> LMState | None:
        """The state after the last token; later tokens do not change it."""
        if self.captured is None:
            return self.uncaptured
        state = self.captured.buffers.copy()
        return state if self.room is None else without_room(state, self.model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(self, rows: Sequence[int], state: LMState) -> None:
        """Replaces the states of some rows between two steps. Only with caches that grow a step is captured again.

        Raises ValueError for rows that are not there, a state that does not fit, and a loop that has no state yet.
        """
        held: Any = self.uncaptured if self.captured is None else self.captured.buffers.current
        size = 0 if held is None else len(leaves(held)[0])
        if wrong := [row for row in rows if not 0 <= row < size]:
            raise ValueError(f"row {wrong[0]} cannot be written: the loop has a state of {size} rows.")
        self.model.check(torch.zeros(len(rows), 1, dtype=torch.long), state, None, None)
        if self.room is not None:
            self.release()
            held = self.uncaptured
        if self.captured is not None:
            self.captured.buffers.write(rows, state)
            return
        parts = {row: take_rows(state, [place]) for place, row in enumerate(rows)}
        self.uncaptured = join_rows([parts[row] if row in parts else take_rows(held, [row]) for row in range(size)])

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]. tokens: [B] integers.

        Raises ValueError for tokens that are not in the vocabulary or not one for every row of the state.
        """
        tokens_B1 = tokens_B[:, None]
        if self.captured is not None and self.captured.fits(tokens_B) and self.room != 0:
            self.model.check(tokens_B1, None, None, None)
            return self.replay(self.captured, tokens_B)
        self.release()
        if self.why_not is None:
            self.model.check(tokens_B1, self.uncaptured, None, None)
            try:
                step = step_class(self.model)
                state = self.model.zero_state(len(tokens_B)) if self.uncaptured is None else self.uncaptured
                # a CUDA graph has no kernel for such a cache
                state, room = with_room(state) if step is CPUGraphStep else (state, None)
                captured = step(self.model, tokens_B1.long(), StateBuffers(state, step.num_sides))
            except NotCapturable as reason:
                self.why_not = str(reason)
            else:
                self.captured, self.room = captured, room
                return self.replay(captured, tokens_B)
        logits_B1C: Tensor
        logits_B1C, self.uncaptured = self.model(tokens_B1, self.uncaptured)
        return logits_B1C[:, 0]

    def replay(self, step: CapturedStep, tokens_B: Tensor) -> Tensor:
        """The logits after a replay, for which there is room."""
        if self.room is not None:
            self.room -= 1
        return replay_steps([step], tokens_B)

    def release(self) -> None:
        """Takes the state back from a captured step."""
        self.uncaptured, self.captured, self.room = self.state, None, None


def with_room(state: LMState) -> tuple[LMState, int | None]:
    """The state with caches that grow in buffers of one size, and the number of tokens until one is full.

    Buffers have few steps more than were read, since every step writes all of them; full ones are captured again. None:
    nothing grows. NotCapturable for long caches.
    """
    growing = leaves(state, kind=AttentionState)
    if not growing:
        return state, None
    longest = max(int(cache.next_B.max()) if len(cache.next_B) else 0 for cache in growing)
    if longest > MOST_STEPS:
        raise NotCapturable(f"a cache of more than {MOST_STEPS:,} steps is read as fast by a call")
    room = max(LEAST_ROOM, longest // 32)
    roomy: LMState = map_state(lambda cache: cache.with_room(longest + room), state, kind=AttentionState)
    return roomy, room


def without_room(state: LMState, model: LM) -> LMState:
    """The state as the model has it, from one that was given room."""
    expected = model.zero_state(0)
    return tuple(
        part.without_room() if isinstance(part, WindowState) and isinstance(like, AttentionState) else part
        for part, like in zip(state, expected, strict=True)
    )


def obstacle(model: nn.Module) -> str | None:
    """The reason for which no capture of this model is tried, or None."""
    if not isinstance(model, LM):
        return f"it is a {type(model).__name__}, not an LM"
    device = model.embed.weight.device
    if model.positions is not None:
        return "it has a table of positions, whose end a replay would not notice"
    if device.type not in STEP_CLASSES:
        return f"its weights are on {device}, where no step can be captured"
    if any(map(has_hooks, model.modules())):
        return "there are hooks, which see the calls of their modules"
    return STEP_CLASSES[device.type].obstacle(model)


def step_class(model: LM) -> type[CapturedStep]:
    """The class of captured steps for the device of this model. NotCapturable for a model that has to be called."""
    # weights may have moved since a loop was made
    if (problem := obstacle(model)) is not None:
        raise NotCapturable(problem)
    if draws(model):
        raise NotCapturable(
            "it is in training mode, where dropout or a graph draws anew at every step; call its eval() first"
        )
    return STEP_CLASSES[model.embed.weight.device.type]
