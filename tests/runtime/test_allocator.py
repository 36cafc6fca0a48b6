"""`keep_freed_memory`, in processes of their own: what malloc keeps depends on all that it was asked before."""

import subprocess
import sys

import pytest

from exlstm.runtime.allocator import _glibc

SCRIPT = """
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch

import exlstm
from exlstm import keep_freed_memory

torch.set_num_threads(1)
lm = exlstm.LM(exlstm.lm_from_pattern("mmmmmm", vocab_size=64, width=48))
tokens_BT = torch.randint(64, (16, 256))

def step():
    lm(tokens_BT)[0].sum().backward()

def taken():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize() >> 20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

with {context}, ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
    with keep_freed_memory() if {nested} else nullcontext():
        pass
    call = (lambda: thread.submit(step).result()) if {threads} else step
    for _ in range(4):
        call()
    before = taken()
    for _ in range(12):  # a fault that brings a huge page is counted as a small one, so that a few steps tell little
        call()
    print(taken() - before)
    inside = resident()
print(inside - resident())
"""

pytestmark = pytest.mark.skipif(_glibc() is None, reason="only glibc has the settings")


def measured(context: str, *, threads: bool = False, nested: bool = False) -> tuple[int, int]:
    """Memory in MB: what twelve training steps take anew, and what is returned at the end."""
    script = SCRIPT.format(context=context, threads=threads, nested=nested)
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    fresh, returned = map(int, printed.split())
    return fresh, returned


@pytest.mark.slow
def test_a_step_takes_no_new_memory() -> None:
    """A thread has heaps of its own, of which glibc returns whole ones: without the padding it takes 100 MB."""
    fresh, _ = measured("keep_freed_memory()", threads=True)
    assert fresh < 20


@pytest.mark.slow
def test_memory_is_returned_at_the_end() -> None:
    """In the main thread, whose heap is one."""
    fresh, returned = measured("keep_freed_memory()")
    assert fresh < 20
    assert returned > 80


@pytest.mark.slow
def test_an_inner_context_ends_nothing() -> None:
    """`exlstm.train` is such a one in a program that keeps memory itself."""
    fresh, returned = measured("keep_freed_memory()", nested=True)
    assert fresh < 20
    assert returned > 80


@pytest.mark.slow
def test_without_it_every_step_does() -> None:
    """The tests above would see it if nothing were kept."""
    fresh, _ = measured("nullcontext()")
    assert fresh > 80
