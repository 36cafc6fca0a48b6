"""A step on an NVIDIA GPU, captured once as a CUDA graph and then replayed: one launch in place of hundreds.

Mixers are pure and return a new state; a graph reads and writes fixed memory. So it ends by copying the new state to
where it reads the old one: one more pass over the state, read and written, which in bytes is at most as much again as
the cell's own. For a 7B in bfloat16 it is 0.27 GB beside 14 GB of weights at batch 1, and as much as these at batch 50.
The graph keeps what its step allocates, most of which is that new state.
"""

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from exlstm.infer.steps import Memory, Steps, holders
from exlstm.mixers.state import leaves, map_state
from exlstm.models.lm import LM
from exlstm.runtime.capture import NotCapturable

# before a capture: the first run compiles kernels and finds out what is kept from then on, the second is as all others
WARM_UPS = 2
one_at_a_time = Lock()


class GraphSteps(Steps):
    """One set of state buffers, which the graph reads and at its end overwrites."""

    sides = 1

    def __init__(self, model: LM, tokens_B1: Tensor, memory: Memory, start: int = 0) -> None:
        super().__init__(model, tokens_B1, memory, start)
        if torch.is_autocast_enabled("cuda"):
            raise NotCapturable("autocast keeps converted weights to itself, where a graph would not find them")
        self.rows = memory.cut(0, start, len(tokens_B1))
        given = map_state(torch.clone, self.rows)
        try:
            self.replay, self.logits_B1C = capture(self.whole_step, model.embed.weight.device)
        finally:
            for x, before in zip(leaves(self.rows), leaves(given), strict=True):
                x.copy_(before)  # warming up went on from it

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """Weights on several devices."""
        devices = sorted({str(x.device) for held in holders(model) for x in held.values() if x is not None})
        return None if len(devices) == 1 else f"its weights are on {devices}, and a graph runs on one device"

    def whole_step(self) -> Tensor:
        """What is captured. NotCapturable for a state that grows."""
        logits_B1C, after = self.model.advance(self.tokens_B1, self.rows)
        pairs = list(zip(leaves(self.rows), leaves(after), strict=True))
        for x, new in pairs:
            if new.shape != x.shape or new.dtype != x.dtype:
                raise NotCapturable(
                    f"a state of {x.dtype} and shape {tuple(x.shape)} becomes {new.dtype} and {tuple(new.shape)}"
                )
        for x, new in pairs:
            x.copy_(new)
        return logits_B1C

    def do(self) -> None:
        """One launch."""
        self.replay()


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """(what does `step` again, the memory of its result). `step` is run a few times first.

    NotCapturable if it does what a graph cannot hold, such as waiting for the GPU.
    """
    # with torch's own choice of a mode, threads that have nothing to do with this could not allocate meanwhile
    mode = "thread_local"
    with one_at_a_time, torch.cuda.device(device):
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=aside, capture_error_mode=mode):
                result = step()
        except RuntimeError as error:
            raise NotCapturable(f"a step cannot be captured: {str(error).partition(chr(10))[0]}") from error
    return graph.replay, result
