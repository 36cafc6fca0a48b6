"""Captured steps, replayed: states move between two sets of buffers, all else stays where it is."""

import pytest
import torch
from torch.nn import functional

from exlstm.runtime.capture import NotCapturable
from exlstm.runtime.cpu.aten import capture_step
from exlstm.runtime.cpu.graph import CapturedGraph, State
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.launch import launch
from exlstm.runtime.cpu.memory import at, put


@kernel()
def accumulate(first: int, last: int, N: int, before_N: F32, x_N: F32, after_N: F32, doubled_N: F32) -> None:
    """after = before + x, doubled = 2 after"""
    for n in range(first, last):
        put(after_N, n, at(before_N, n) + at(x_N, n))
        put(doubled_N, n, at(after_N, n) + at(after_N, n))


def step(x_N, before_N):
    """A step with a kernel of ours and what torch computes around it."""
    after_N, doubled_N = torch.empty_like(before_N), torch.empty_like(before_N)
    launch(accumulate, len(x_N), len(x_N), before_N, torch.tanh(x_N) * 2.0, after_N, doubled_N, cost=0.0)
    return doubled_N + x_N, after_N


def captured(step, x_N, sides):
    graph, (out, after) = capture_step(lambda: step(x_N, sides[0]))
    return CapturedGraph(graph, [State(sides[0], after, sides)]), out


@pytest.mark.parametrize("threads", [1, 2])
def test_replays_are_steps(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x_N, sides = torch.randn(9), (torch.randn(9), torch.zeros(9))
    state = sides[0].clone()
    graph, out = captured(step, x_N, sides)
    assert torch.equal(sides[0], state), "capturing changes no state"
    for turn in range(5):
        x_N.copy_(torch.randn(9))
        graph.replay(turn % 2)
        want, state = step(x_N, state)
        # torch's tanh and ours differ in the last bits
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(sides[1 - turn % 2], state)
    torch.set_num_threads(before)


def test_a_part_of_a_state_is_bound_too():
    """A kernel that is given the second half of a state finds it where that state is then."""

    def halves(x_N, before_N):
        after_N, doubled_N = torch.empty_like(before_N), torch.empty(len(x_N))
        for half in (slice(0, 4), slice(4, 8)):
            arguments = before_N[half], x_N, after_N[half], doubled_N
            launch(accumulate, 4, 4, *arguments, cost=0.0)
        return doubled_N, after_N

    x_N, sides = torch.ones(4), (torch.arange(8.0), torch.zeros(8))
    graph, out = captured(halves, x_N, sides)
    graph.replay(0)
    assert torch.equal(sides[1], torch.arange(8.0) + 1)
    graph.replay(1)
    assert torch.equal(sides[0], torch.arange(8.0) + 2)
    assert torch.equal(out, 2 * (torch.arange(4.0) + 6))


def test_a_state_inside_a_larger_tensor_is_refused():
    ones_N = torch.ones(8)

    def wide(x_N, before_N):
        both = torch.empty(8)
        launch(accumulate, 8, 8, ones_N, ones_N, both, torch.empty(8), cost=0.0)
        return before_N + x_N, both[:4]

    with pytest.raises(NotCapturable, match="part of a larger tensor"):
        captured(wide, torch.ones(4), (torch.zeros(4), torch.zeros(4)))


@pytest.mark.parametrize(
    ("end", "match"),
    [
        (lambda state: state, "does not write"),
        (lambda state: state.repeat(2), "repeat|becomes"),
        (lambda state: state.double(), "float64|becomes"),
    ],
)
def test_states_that_cannot_be_bound_are_refused(end, match):
    with pytest.raises(NotCapturable, match=match):
        captured(lambda x_N, before_N: (before_N + x_N, end(before_N)), torch.ones(4), (torch.zeros(4), torch.zeros(4)))


OPERATIONS = {
    "add": lambda x, y: x + y, "add number": lambda x, y: x + 2, "subtract": lambda x, y: x - y,
    "subtract number": lambda x, y: x - 0.5, "from number": lambda x, y: 1 - x, "negate": lambda x, y: -x,
    "multiply": lambda x, y: x * y, "scale": lambda x, y: 3 * x, "divide": lambda x, y: x / 3,
    "reciprocal": lambda x, y: x.reciprocal(),
    "square": lambda x, y: x.square(), "exp": lambda x, y: x.exp(), "tanh": lambda x, y: x.tanh(),
    "sigmoid": lambda x, y: x.sigmoid(), "silu": lambda x, y: functional.silu(x), "relu": lambda x, y: x.relu(),
    "gelu": lambda x, y: functional.gelu(x), "gelu tanh": lambda x, y: functional.gelu(x, approximate="tanh"),
    "softplus": lambda x, y: functional.softplus(x), "logsigmoid": lambda x, y: functional.logsigmoid(x),
    "clone": lambda x, y: x[:, ::2].clone(), "cat": lambda x, y: torch.cat([x, y], dim=1),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_torch_are_replayed(name, dtype):
    """With other numbers than at the capture, small ones, large ones and NaN."""
    torch.manual_seed(0)
    x, y = torch.zeros(3, 40, dtype=dtype), torch.zeros(3, 40, dtype=dtype)
    graph, out = capture_step(lambda: OPERATIONS[name](x, y))
    step = CapturedGraph(graph, [])
    for scale in (1e-3, 1.0, 30.0):
        x.copy_(scale * torch.randn(3, 40))
        x[1, 3], x[2, 0] = torch.nan, 0.0
        y.copy_(torch.randn(3, 40))
        step.replay(0)
        exact = OPERATIONS[name](x.double(), y.double())
        size = 2e-6 if dtype is torch.float32 else 8e-3
        torch.testing.assert_close(out.double(), exact, rtol=size, atol=size * 1e-3, equal_nan=True)


def test_an_operation_that_is_not_known_is_named():
    with pytest.raises(NotCapturable, match=r"aten\.sort"):
        capture_step(torch.arange(3.0).sort)


def test_tensors_of_a_graph_live_as_long_as_it():
    """What the step made is not returned, and must not be handed out again by the allocator."""
    x_N, sides = torch.ones(1000), (torch.zeros(1000), torch.zeros(1000))
    graph, out = captured(step, x_N, sides)
    others = [torch.full((1000,), 9.0) for _ in range(50)]
    graph.replay(0)
    assert torch.equal(out, 2 * sides[1] + x_N)
    assert all(bool((other == 9.0).all()) for other in others)
