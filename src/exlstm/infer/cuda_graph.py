"""A decoding step on an NVIDIA GPU, captured as a CUDA graph: its replay is one launch in place of hundreds.

Mixers are pure and return a new state; a graph reads and writes fixed memory. So the graph ends with a copy of the new
state to the buffers of the old one: one more pass over the state, read and written, which in bytes is at most as much
again as the cell's own. For a 7B in bfloat16 it is 0.27 GB beside 14 GB of weights at batch 1, and as much as these at
batch 50. The graph keeps what its step allocates, most of which is that new state.
"""

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from exlstm.infer.captured_step import CapturedStep, StateBuffers, parameters_and_buffers
from exlstm.mixers.state import leaves, map_state
from exlstm.models.lm import LM
from exlstm.runtime.capture import NotCapturable

# Before a capture: the first run compiles kernels and fills caches, the second runs as all later ones do.
WARM_UPS = 2
capture_lock = Lock()


class CUDAGraphStep(CapturedStep):
    """Captured step on one side of buffers, which the graph reads and at its end overwrites."""

    num_sides = 1

    def __init__(self, model: LM, tokens_B1: Tensor, buffers: StateBuffers, start: int = 0) -> None:
        super().__init__(model, tokens_B1, buffers, start)
        if torch.is_autocast_enabled("cuda"):
            raise NotCapturable("autocast keeps converted weights to itself, where a graph would not find them")
        self.state = buffers.view(0, start, len(tokens_B1))
        before = map_state(torch.clone, self.state)
        try:
            self.launch, self.logits_B1C = capture(self.step_in_place, model.embed.weight.device)
        finally:
            # warm-up runs have changed the state
            for x, old in zip(leaves(self.state), leaves(before), strict=True):
                x.copy_(old)

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """Weights on several devices."""
        devices = sorted({str(x.device) for held in parameters_and_buffers(model) for x in held.values()
                          if x is not None})  # fmt: skip
        return None if len(devices) == 1 else f"its weights are on {devices}, and a graph runs on one device"

    def step_in_place(self) -> Tensor:
        """The step that is captured; its new state overwrites the old. NotCapturable for a state that grows."""
        logits_B1C, after = self.model.advance(self.tokens_B1, self.state)
        pairs = list(zip(leaves(self.state), leaves(after), strict=True))
        for x, new in pairs:
            if new.shape != x.shape or new.dtype != x.dtype:
                raise NotCapturable(
                    f"a state of {x.dtype} and shape {tuple(x.shape)} becomes {new.dtype} and {tuple(new.shape)}"
                )
        for x, new in pairs:
            x.copy_(new)
        return logits_B1C

    def replay(self) -> None:
        """See `CapturedStep`."""
        self.launch()


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """The replay of `step`, and the tensor that each replay writes its result to. Warm-up runs come first.

    NotCapturable for a step that does what a graph cannot hold, such as waiting for the GPU.
    """
    # torch's default mode would forbid allocations on all threads of the process during the capture
    mode = "thread_local"
    with capture_lock, torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
                result = step()
        except RuntimeError as error:
            raise NotCapturable(f"a step cannot be captured: {str(error).partition(chr(10))[0]}") from error
    return graph.replay, result
