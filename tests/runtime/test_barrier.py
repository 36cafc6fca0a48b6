"""Barriers of threads that meet after every step."""

import numpy as np
import pytest
import torch

from exlstm.runtime.cpu import barrier as page
from exlstm.runtime.cpu.barrier import Barrier, launch_shared, new_barrier, wait_for_all
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, at, hold, put


@kernel()
def rotate(first: int, last: int, N: int, steps: int, barrier: Barrier, out: F32, threads: F32) -> None:
    """Adds to every number its neighbor's of the step before, N numbers in two rows that take turns."""
    put(threads, 0, last)
    for step in range(steps):
        before, after = out + SIZE * (step % 2 * N), out + SIZE * ((step + 1) % 2 * N)
        for n in range(N * first // last, N * (first + 1) // last):
            put(after, n, at(before, n) + at(before, (n + 1) % N))
        wait_for_all(barrier, last * (step + 1))


@kernel()
def greedy(first: int, last: int, count: int, steps: int, barrier: Barrier) -> None:
    """Thread 1 wants more memory than there is, and the others wait for it."""
    work = np.empty(count if first == 1 else 1, np.float32)
    put(address_of(work), 0, 1.0)
    for step in range(steps):
        wait_for_all(barrier, last * (step + 1))
    hold(work)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_thread_sees_what_others_wrote(count):
    """Many steps with a neighbor's number in each: one step without the others, and sums are wrong."""
    N, steps = 7, 100
    out, threads, barrier = torch.ones(2, N), torch.zeros(1), new_barrier()
    want = out[0] = torch.arange(1.0, 8.0)
    launch_shared(rotate, count, barrier, N, steps, barrier, out, threads)
    for _ in range(steps):
        want = want + want.roll(-1)
    assert torch.equal(out[0], want)
    assert threads.item() == count


def test_without_openmp_one_thread_does_all(monkeypatch):
    monkeypatch.setattr(page, "usable_openmp", lambda: None)
    out, threads, barrier = torch.ones(2, 3), torch.zeros(1), new_barrier()
    launch_shared(rotate, 4, barrier, 3, 2, barrier, out, threads)
    assert threads.item() == 1
    assert torch.equal(out[0], torch.full((3,), 4.0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thread_without_memory_stops_all(capfd):
    """The others do not wait for it forever, and the call fails."""
    barrier = new_barrier()
    with pytest.raises(MemoryError, match="the kernel greedy got no memory"):
        launch_shared(greedy, 2, barrier, 1 << 50, 50, barrier)
    capfd.readouterr()  # what Numba prints is its own
