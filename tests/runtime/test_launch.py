"""`launch`, the one way to run a CPU kernel: what it passes, what it refuses, how it shares items among threads."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from counting import Counting, count_items
from hypothesis import given
from hypothesis import strategies as st

from exlstm.runtime import capture
from exlstm.runtime.cpu import launch as launch_page
from exlstm.runtime.cpu import region
from exlstm.runtime.cpu.kernel import F32, Addresses, Bools, Constants, ConstantTable, F32Rows, Floats, kernel
from exlstm.runtime.cpu.launch import THREAD_US, launch, microseconds, threads_for
from exlstm.runtime.cpu.memory import at, long_at, put

LONG = microseconds(bytes=1 << 40)  # worth every thread


class Shape(NamedTuple):
    B: int
    D: int


class Inner(NamedTuple):
    factor: float
    doubled: bool


class Inputs(NamedTuple):
    shape: Shape
    x_BD: F32
    options: Inner


@kernel()
def combine(first: int, last: int, x: Inputs, shift: float, bias_D: F32, mask_B: Bools, y_BD: F32) -> None:
    """y = factor x (2) + shift + bias; records in records, an address that may be 0, all kinds of numbers."""
    B, D = x.shape
    for b in range(first, last):
        for d in range(D):
            value = at(x.x_BD, b * D + d) * x.options.factor * (2.0 if x.options.doubled else 1.0) + shift
            if bias_D != 0:
                value += at(bias_D, d)
            put(y_BD, b * D + d, np.float32(value if mask_B == 0 else float(b)))


@kernel()
def gather(first: int, last: int, numbers: Constants, D: int, places: Addresses) -> None:
    """Item i: the number numbers[i] to all of the tensor i."""
    for item in range(first, last):
        for d in range(D):
            put(long_at(places + 8 * item), d, np.float32(long_at(numbers + 8 * item)))


@kernel(G=4)
def sized(first: int, last: int, B: int, D: int, x_BGD: F32, rows_BD: F32Rows, numbers_D: Floats, bf16: bool) -> None:
    """Reads nothing: for what is checked before."""


@pytest.fixture(params=["torch's threads", "a pool"])
def way(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(region, "gnu_openmp", lambda: None)
    elif region.gnu_openmp() is None:
        pytest.skip("torch came with another OpenMP")
    return request.param


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(), st.floats(-4, 4, width=32))
def test_arguments_arrive(B, D, with_bias, doubled, factor):
    x_BD, bias_D, y_BD = torch.randn(B, D), torch.randn(D) if with_bias else None, torch.empty(B, D)
    inputs = Inputs(Shape(B, D), x_BD, Inner(factor, doubled))
    launch(combine, B, inputs, 0.25, bias_D, None, y_BD, cost=0.0)
    want = x_BD.double() * factor * (2 if doubled else 1) + 0.25 + (0 if bias_D is None else bias_D)
    torch.testing.assert_close(y_BD.double(), want, rtol=1e-6, atol=1e-6)


def test_tables_and_addresses_of_several_tensors():
    outs = [torch.empty(3) for _ in range(4)]
    launch(gather, 4, ConstantTable([7, -1, 1 << 20, 0]), 3, outs, cost=0.0)
    assert [out.tolist() for out in outs] == [[7.0] * 3, [-1.0] * 3, [float(1 << 20)] * 3, [0.0] * 3]


@pytest.mark.parametrize("items", [1, 2, 3, 7, 1000])
@pytest.mark.usefixtures("three_threads")
def test_every_item_once(way, items):
    counting = Counting(items)
    launch(count_items, items, *counting.arguments, cost=LONG)
    assert counting.all_are(1)


@pytest.mark.usefixtures("three_threads")
def test_several_callers_at_once(way):
    def call(_number):
        counting = Counting(50, work=100)
        for _ in range(20):
            launch(count_items, 50, *counting.arguments, cost=LONG)
        return counting.all_are(20)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))


def in_child(queue):
    counting = Counting(40)
    launch(count_items, 40, *counting.arguments, cost=LONG)
    queue.put(counting.all_are(1))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.usefixtures("three_threads")
def test_a_forked_child_has_threads_of_its_own(way):
    counting = Counting(40)
    launch(count_items, 40, *counting.arguments, cost=LONG)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=20)
    finally:
        child.kill()
        child.join()


@pytest.mark.usefixtures("three_threads")
def test_the_number_of_threads_follows_from_the_cost_alone(monkeypatch):
    """One below the price of a thread, one more each time it is paid, at most as many as torch has and as items."""
    used = []
    monkeypatch.setattr(launch_page, "parallel_for", lambda _f, _a, _items, threads: used.append(threads) or True)
    at_once = launch_page.BYTES_PER_US * THREAD_US
    for cost in (0.0, microseconds(bytes=at_once - 1), microseconds(bytes=at_once), microseconds(flops=1 << 40)):
        launch(count_items, 9, *Counting(9).arguments, cost=cost)
    launch(count_items, 2, *Counting(2).arguments, cost=LONG)
    assert used == [2, 3, 2]
    assert threads_for(microseconds(bytes=at_once)) == 2


def test_nothing_is_run_for_no_items():
    launch(count_items, 0, 0, 0, torch.empty(0).long(), torch.empty(0).long(), cost=0.0)


GOOD = {"x": torch.ones(2, 4, 3), "rows": torch.ones(2, 3), "numbers": torch.ones(3)}
BAD = {
    "too few": ("x", torch.ones(2, 4, 2), "x_BGD"),
    "another dtype": ("x", torch.ones(2, 4, 3).double(), "x_BGD"),
    "another order": ("x", torch.ones(3, 4, 2).mT.transpose(0, 1).reshape(3, 4, 2).transpose(0, 2), "x_BGD"),
    "not in memory": ("x", torch.ones(2, 4, 3, device="meta"), "x_BGD"),
    "rows too many": ("rows", torch.ones(3, 3), "rows_BD"),
    "rows apart": ("rows", torch.ones(2, 6)[:, ::2], "rows_BD"),
    "not what the flag says": ("numbers", torch.ones(3).bfloat16(), "numbers_D"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tensor_that_would_be_misread_is_refused(case):
    name, x, said = BAD[case]
    given_now = {**GOOD, name: x}
    with pytest.raises(ValueError, match=rf"{said} of the kernel sized is torch\.\w+ of shape"):
        launch(sized, 1, 2, 3, *given_now.values(), False, cost=0.0)


def test_rows_may_be_apart_and_addresses_empty():
    launch(sized, 1, 2, 3, GOOD["x"], torch.ones(2, 6)[:, :3], None, False, cost=0.0)
    launch(sized, 1, 2, 3, None, None, torch.ones(3).bfloat16(), True, cost=0.0)


def test_the_number_of_arguments_is_checked():
    with pytest.raises(TypeError, match="the kernel sized takes 6 arguments, not 2"):
        launch(sized, 1, 2, 3, cost=0.0)


def test_declarations_are_checked():
    with pytest.raises(TypeError, match="begins with the parameters"):

        @kernel()
        def wrong_beginning(begin: int, last: int) -> None:
            """Not what `launch` passes."""

    with pytest.raises(TypeError, match="annotated"):

        @kernel()
        def wrong_annotation(first: int, last: int, x: str) -> None:
            """Text has no 8 bytes."""

    with pytest.raises(KeyError, match="Q"):

        @kernel()
        def unknown_size(first: int, last: int, B: int, x_BQ: F32) -> None:
            """Q is not known."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_too_little_memory_is_an_error(capfd):
    """Of a kernel that asks for more than there is; what Numba prints is its own."""

    @kernel()
    def greedy(first: int, last: int, N: int, y_N: F32) -> None:
        """Asks for N N N numbers."""
        room = np.empty(N * N * N, np.float32)
        room[0] = 1.0
        put(y_N, 0, room[0])

    with pytest.raises(MemoryError, match="the kernel greedy got no memory"):
        launch(greedy, 1, 1 << 19, torch.empty(1 << 19), cost=0.0)
    capfd.readouterr()


def test_launches_are_captured_with_their_tensors():
    graph, counting = capture.Graph(), Counting(5)
    with capture.capturing(graph):
        launch(count_items, 5, *counting.arguments, cost=LONG)
        launch(count_items, 5, *counting.arguments, cost=0.0)
    launch(count_items, 5, *counting.arguments, cost=0.0)
    assert [(node.kernel, node.items, node.parallel) for node in graph.nodes] == [
        (count_items, 5, True),
        (count_items, 5, False),
    ]
    assert graph.nodes[0].arguments[2] is counting.counts
    assert counting.all_are(3)
