"""A captured decoding step, replayed: a whole token in one call, on the caller's thread and torch's own.

A step reads one set of state buffers and writes the other; the next one reads what the last wrote. So there are two
tables of tasks, which differ in nothing but the addresses of states.
"""

import ctypes
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.runtime.capture import Graph, NotCapturable
from exlstm.runtime.cpu.atomics import call_c_int, load, store
from exlstm.runtime.cpu.pool import AWAKE_SECONDS, pool
from exlstm.runtime.cpu.region import REGION, address_of_bytes, usable_openmp
from exlstm.runtime.cpu.tasks import (
    FAILED,
    MAX_BLOCKS,
    STOP,
    Function,
    control_block,
    replay_table,
    replay_tasks,
    serve,
    spins_in,
)

THREAD_NUMBER, TABLE, COUNT, SPIN_LIMIT, BACKOFF = range(0, 40, 8)  # bytes from the start of a region's data
CONTROL = 40  # there: the address of the control block
FOREVER = 1 << 62


def _replay_in_region(data: int) -> int:
    """The body of a region: thread 0 replays the table, the others steal its blocks until the end."""
    control = load(data + CONTROL)
    if call_c_int(load(data + THREAD_NUMBER)) == 0:
        store(data + BACKOFF, replay_tasks(control, load(data + SPIN_LIMIT), load(data + BACKOFF), load(data + TABLE),
                                           load(data + COUNT)))  # fmt: skip
        store(control + STOP, 1)
    else:
        serve(control, FOREVER)
    return 1


replay_in_region = Function(_replay_in_region)


class Replayer:
    """Replays tables of tasks as one region of torch's threads; without these, on a `SpinPool`.

    One region per token, and not one per task: its end waits for every thread.
    """

    def __init__(self) -> None:
        self.memory, self.control = control_block()
        self.data = (ctypes.c_int64 * 6)()

    def replay(self, table: int, count: int, threads: int) -> None:
        """One table from beginning to end. Only one thread at a time may call this. MemoryError if a kernel fails."""
        openmp = usable_openmp()
        if threads == 1:
            finished = replay_table(0, 0, 0, table, count) > 0
        elif openmp is None:
            finished = pool(threads).replay(table, count)
        else:
            self.data[:] = [openmp.queries[0], table, count, spins_in(AWAKE_SECONDS / 10), self.data[4], self.control]
            ctypes.c_int64.from_address(self.control + STOP).value = 0
            openmp.run(ctypes.cast(replay_in_region.call, REGION), ctypes.addressof(self.data), threads)
            finished = self.data[4] >= 0
            if not finished:
                self.data[4] = ctypes.c_int64.from_address(self.control + FAILED).value = 0
        if not finished:
            raise MemoryError("a kernel got no memory to work in; give it a smaller batch.")


class State(NamedTuple):
    """A state of the captured step: the tensors read and written, and the two buffers that alternate."""

    before: Tensor
    after: Tensor
    sides: tuple[Tensor, Tensor]


class CapturedGraph:
    """The nodes of a graph with its states bound to two sets of buffers.

    Raises NotCapturable for a state that changes its shape, is not written, or is part of a larger tensor.
    """

    def __init__(self, graph: Graph, states: Sequence[State]) -> None:
        self.count, self.replayer = len(graph.nodes), Replayer()
        self.held: list[Any] = []  # tensors and tables whose addresses are in the blocks
        places = places_of(states)
        blocks: tuple[list[bytes], list[bytes]] = [], []
        for node in graph.nodes:
            own = [x for x in node.arguments if isinstance(x, Tensor) and places.find(x) is None]
            self.held += [own, *(x for x in node.arguments if not isinstance(x, (Tensor, int, float)))]
            for side in (0, 1):
                blocks[side].append(node.kernel.bound(node.arguments, lambda x, side=side: places.address(x, side)))
        self.blocks = blocks
        self.tables = [
            array("q", [
                number
                for node, block in zip(graph.nodes, side, strict=True)
                for number in (node.kernel.address, address_of_bytes(block), node.items, min(node.items, MAX_BLOCKS),
                               node.parallel)
            ])
            for side in blocks
        ]  # fmt: skip

    def replay(self, side: int) -> None:
        """One step, from this side's buffers to the other's."""
        self.replayer.replay(self.tables[side].buffer_info()[0], self.count, torch.get_num_threads())


class StateAddresses:
    """Addresses of tensors in a replay: those of states depend on the side, all others stay."""

    def __init__(self, ranges: list[tuple[int, int, tuple[Tensor, Tensor]]]) -> None:
        # of every state: its first byte, the byte after its last, the buffers that a step finds there by side
        self.ranges = sorted(ranges, key=lambda each: each[:2])
        self.ends = [end for _, end, _ in self.ranges]

    def find(self, x: Tensor) -> tuple[int, tuple[Tensor, Tensor]] | None:
        """The offset in bytes of a tensor in a state, and the buffers of that state; None for other tensors."""
        begin = x.data_ptr()
        end, n = begin + span(x), bisect_right(self.ends, begin)
        if n == len(self.ranges) or end <= self.ranges[n][0]:
            return None
        first, last, buffers = self.ranges[n]
        if begin < first or end > last:
            raise NotCapturable("a kernel that sees a state as part of a larger tensor")
        return begin - first, buffers

    def address(self, x: Tensor, side: int) -> int:
        """The address of x in a step that reads the buffers of this side."""
        found = self.find(x)
        return x.data_ptr() if found is None else found[1][side].data_ptr() + found[0]


def span(x: Tensor) -> int:
    """Bytes from the first number of a tensor to the end of the last."""
    if x.numel() == 0:
        return 0
    return x.itemsize * (1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)))


def places_of(states: Sequence[State]) -> StateAddresses:
    """The memory of all states; NotCapturable for one that cannot be bound."""
    ranges: list[tuple[int, int, tuple[Tensor, Tensor]]] = []
    for before, after, sides in states:
        if after.shape != before.shape or after.dtype != before.dtype or not after.is_contiguous():
            raise NotCapturable(f"a state of shape {tuple(before.shape)} that becomes {tuple(after.shape)}")
        if after.numel() == 0:
            continue
        for x, buffers in ((before, sides), (after, (sides[1], sides[0]))):
            ranges.append((x.data_ptr(), x.data_ptr() + x.nbytes, buffers))
    places = StateAddresses(ranges)
    for (_, end, _), (begin, _, buffers) in pairwise(places.ranges):
        if begin < end:
            raise NotCapturable(f"a state of shape {tuple(buffers[0].shape)} that a step does not write")
    return places
