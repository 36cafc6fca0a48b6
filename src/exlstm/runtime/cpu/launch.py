"""`launch`: the one way to run a CPU kernel.

It turns tensors into addresses and checks them, chooses the number of threads from the cost, runs the kernel on the
caller's thread or in a parallel region, and adds a node to the graph if a decoding step is being captured.
"""

from typing import Any

import torch

from exlstm.runtime import capture
from exlstm.runtime.cpu.kernel import Kernel
from exlstm.runtime.cpu.region import parallel_for

BYTES_PER_US, FLOPS_PER_US = 8_000, 20_000  # of one core
THREAD_US = 100  # the least work that pays for waking a thread
REPLAY_US = 8  # the least work of a replayed node that pays for sharing it among spinning threads


def microseconds(bytes: int = 0, flops: int = 0) -> float:  # noqa: A002
    """The cost of a launch on one thread, roughly: of bytes read and written, and of operations with numbers."""
    return bytes / BYTES_PER_US + flops / FLOPS_PER_US


def threads_for(cost: float) -> int:
    """How many threads a launch of this cost is worth, at most as many as torch has been given.

    In a captured step more of them are, since the threads of a replay are awake.
    """
    least = THREAD_US if capture.active() is None else REPLAY_US
    return 1 if cost < least else min(torch.get_num_threads(), 1 + int(cost / least))


def launch(kernel: Kernel, items: int, *arguments: Any, cost: float) -> None:
    """Runs items 0 to `items` - 1 of a kernel. Its results may not depend on how items are shared among threads.

    arguments: those of the kernel from its third on; a tensor or None for an address, a `ConstantTable` for constants,
    a list of tensors for addresses. cost: in microseconds, see `microseconds`.
    Raises ValueError for a tensor that does not fit, MemoryError if there was too little memory.
    """
    if items == 0:
        return
    block, graph = kernel.checked(arguments), capture.active()
    if cost < THREAD_US or graph is not None or (threads := min(items, threads_for(cost))) == 1:
        finished = kernel.call(block, 0, items)
    else:
        finished = parallel_for(kernel.address, block, items, threads)
    if not finished:
        raise MemoryError(f"the kernel {kernel.name} got no memory to work in; give it a smaller batch.")
    if graph is not None:
        graph.nodes.append(capture.Node(kernel, items, tuple(kernel.flat(arguments)), items > 1 and cost >= REPLAY_US))
