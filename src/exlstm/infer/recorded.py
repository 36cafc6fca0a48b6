"""A step on a CPU, recorded once and then played: no interpreter, nothing allocated."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exlstm.infer.steps import Memory, Steps
from exlstm.mixers.contract import leaves
from exlstm.models.lm import LM
from exlstm.runtime.availability import no_numba
from exlstm.runtime.capture import NotRecordable, Tape


class RecordedSteps(Steps):
    """Two sets of state buffers take turns: a step reads one and writes the other."""

    sides = 2

    def __init__(self, model: LM, tokens_B1: Tensor, memory: Memory, start: int = 0) -> None:
        from exlstm.ops.replay import Program, record

        super().__init__(model, tokens_B1, memory, start)
        here, there = (memory.cut(side, start, len(tokens_B1)) for side in (0, 1))
        # what is computed here is only looked at: a step done later reads the memory and writes the other set
        tape, (self.logits_B1C, after) = record(lambda: model.advance(self.tokens_B1, here))
        before, other = leaves(here), leaves(there)
        self.program: Program = Program(into(tape, before, leaves(after), other), list(zip(before, other, strict=True)))

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """Dtypes that no kernel plays, or no Numba."""
        dtype = model.embed.weight.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            return f"its weights are {dtype}, and kernels that play take float32 and bfloat16"
        return no_numba()

    def do(self) -> None:
        """One call."""
        self.program.turn = self.memory.turn
        self.program.play()


def into(tape: Tape, before: Sequence[Tensor], after: Sequence[Tensor], other: Sequence[Tensor]) -> Tape:
    """The same tape, its new state written to `other` rather than to memory of its own, which is then free.

    NotRecordable for a state that changes its shape or that is not written as a whole.
    """
    moves: dict[int, int] = {}
    for x, new, place in zip(before, after, other, strict=True):
        if new.shape != x.shape or new.dtype != x.dtype or not new.is_contiguous():
            raise NotRecordable(f"a state of shape {tuple(x.shape)} that becomes {tuple(new.shape)}")
        if new.numel():
            if new.data_ptr() == x.data_ptr() or new.data_ptr() in moves:
                raise NotRecordable(f"a state of shape {tuple(x.shape)} that a step does not write")
            moves[new.data_ptr()] = place.data_ptr()
    ends = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in after if x.numel())
    for number in {number for entry in tape.entries for number in entry.arguments} - moves.keys():
        below = bisect_right(ends, (number, 0)) - 1
        if below >= 0 and number < ends[below][1]:
            raise NotRecordable("a kernel that looks into the middle of a state")
    entries = [replace(entry, arguments=tuple(moves.get(x, x) for x in entry.arguments)) for entry in tape.entries]
    return Tape(entries, [without(thing, moves) for thing in tape.kept])


def without(thing: Any, places: dict[int, int]) -> Any:
    """`thing` without the tensors at these addresses."""
    if isinstance(thing, Tensor):
        return None if thing.data_ptr() in places else thing
    if isinstance(thing, (tuple, list)):
        return [without(part, places) for part in thing]
    return thing
