"""Slots: rows that are written, read and moved between steps, which no other row notices."""

from weakref import ref

import pytest
import torch
from fake_cuda_graph import FakeCudaGraph, install_fake_cuda

from exlstm.infer import token_loop
from exlstm.infer.cpu_graph import CPUGraphStep
from exlstm.infer.cuda_graph import CUDAGraphStep
from exlstm.infer.slots import FixedSlots, GrowingSlots, sizes_up_to, slots_of
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.state import leaves, map_state, rows, state_nbytes
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.ops.linear import MOST_ROWS
from exlstm.runtime.cpu.graph import CapturedGraph

VOCABULARY = 40


def build(pattern, dtype):
    torch.manual_seed(0)
    model = LM(lm_from_pattern(pattern, vocab_size=VOCABULARY, width=16, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


@pytest.fixture
def captured(monkeypatch):
    """The number of rows of every step that is captured."""
    made = []
    init = CPUGraphStep.__init__
    monkeypatch.setattr(CPUGraphStep, "__init__", lambda self, *args: init(self, *args) or made.append(len(args[1])))
    return made


class Alone:
    """What the slots should do: every row on its own, by plain calls."""

    def __init__(self, model, count):
        self.model, self.rows = model, [None] * count

    @torch.no_grad()
    def step(self, tokens):
        logits = []
        for row, token in enumerate(tokens):
            logits_B1C, self.rows[row] = self.model(torch.tensor([[token]]), self.rows[row])
            logits.append(logits_B1C[:, 0])
        return torch.cat(logits)


@torch.no_grad()
def exercise(model, slots, atol):
    """Rows come, move, go and come again; every step and every row read equals what it is alone."""
    alone, draw = Alone(model, 6), torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCABULARY, (1, n), generator=draw) for n in (3, 9, 1, 5, 12, 2, 7)]
    states = [model(prompt)[1] for prompt in prompts]

    def write(row, n):
        slots.write(row, states[n])
        alone.rows[row] = states[n]

    def check(count, steps):
        for _ in range(steps):
            tokens = torch.randint(VOCABULARY, (count,), generator=draw).tolist()
            torch.testing.assert_close(slots.step(tokens), alone.step(tokens), rtol=atol, atol=atol)
        for row in range(count):
            for x, y in zip(leaves(slots.read(row)), leaves(alone.rows[row]), strict=True):
                torch.testing.assert_close(x, y, rtol=atol, atol=atol)

    write(0, 0)
    check(1, 3)
    write(1, 1)
    write(2, 2)
    check(3, 2)
    kept = slots.read(1)
    before = map_state(torch.clone, kept)
    write(3, 3)
    check(4, 1)
    write(4, 4)
    write(5, 5)
    check(6, 3)
    slots.move(5, 0)
    alone.rows[0] = alone.rows[5]
    slots.free(5)
    check(5, 2)
    write(1, 6)
    check(2, 3)
    assert all(map(torch.equal, leaves(kept), leaves(before))), "what was read is a value"


@pytest.mark.breadth(2)
@pytest.mark.parametrize("pattern", ["ms", "M", "l", "a", "mas", "hyena,m"])
def test_rows_do_not_notice_each_other(pattern):
    model = build(pattern, torch.float64)
    slots = slots_of(model, 6)
    assert isinstance(slots, GrowingSlots if "a" in pattern else FixedSlots)
    exercise(model, slots, 1e-12)


@pytest.mark.parametrize("pattern", ["ms", "M"])
def test_replayed_steps_share_one_memory(pattern, captured, monkeypatch):
    loose, init = [], CapturedGraph.__init__

    def watched(self, graph, states):
        init(self, graph, states)
        loose.append([ref(state.after) for state in states])
        places = {state.after.untyped_storage().data_ptr() for state in states}
        assert not any(x.untyped_storage().data_ptr() in places for x in flat(self.held))

    monkeypatch.setattr(CapturedGraph, "__init__", watched)
    model = build(pattern, torch.float32)
    slots = FixedSlots(model, 6)
    assert slots.nbytes == 2 * 6 * model.state_bytes()
    exercise(model, slots, 2e-4)
    assert slots.why_not is None
    assert captured == [1, 4, 6, 2], "each size once, and never again for rows that are written"
    assert len(loose) == 4
    assert not any(held() is not None for group in loose for held in group), "a size keeps no states of its own"


def flat(things):
    for thing in things:
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, (tuple, list)):
            yield from flat(thing)


def test_graphs_of_all_sizes_share_one_memory(monkeypatch):
    install_fake_cuda(monkeypatch)
    monkeypatch.setitem(token_loop.STEP_CLASSES, "cpu", CUDAGraphStep)
    model = build("ms", torch.float64)
    slots = FixedSlots(model, 6)
    exercise(model, slots, 1e-12)
    assert slots.nbytes == 6 * model.state_bytes()
    assert FakeCudaGraph.made == 4


@pytest.mark.parametrize(("rows", "groups"), [(13, 2), (32, 4), (33, 0)])
def test_more_rows_than_can_be_captured_go_in_a_few_groups(rows, groups, monkeypatch):
    """More than 12 rows are too many: groups of 8, and calls where these would be more than 4."""
    for kind in ("float32", "bfloat16"):
        monkeypatch.setitem(MOST_ROWS, kind, 12)
    model = build("M", torch.float32)
    slots, alone = FixedSlots(model, rows), Alone(model, rows)
    for step in range(2):
        tokens = [(3 * step + row) % VOCABULARY for row in range(rows)]
        torch.testing.assert_close(slots.step(tokens), alone.step(tokens), rtol=2e-4, atol=2e-4)
    assert [len(steps) for steps in slots.groups.values()] == [groups]


@torch.no_grad()
def test_weights_that_move_are_found_again(captured):
    model = build("M", torch.float32)
    slots, alone = FixedSlots(model, 2), Alone(model, 2)
    for _ in range(2):
        torch.testing.assert_close(slots.step([1, 2]), alone.step([1, 2]), rtol=2e-4, atol=2e-4)
        model.head.weight = torch.nn.Parameter(-model.head.weight)
    assert captured == [2, 2]


def test_sizes():
    assert [sizes_up_to(count) for count in (1, 2, 3, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(("pattern", "dtype"), [("M", torch.float32), ("ms", torch.float64), ("mas", torch.float64)])
def test_a_loop_takes_other_states_for_some_rows(pattern, dtype, captured):
    model = build(pattern, dtype)
    slack = 2e-4 if dtype is torch.float32 else 1e-12
    with torch.no_grad():
        _, first = model(torch.tensor([[1, 2], [3, 4], [5, 6]]))
        _, other = model(torch.tensor([[7, 8], [9, 1]]))
    loop, tokens_B = TokenLoop(model, first), torch.tensor([1, 2, 3])
    for _ in range(2):
        loop(tokens_B)
    state = loop.state
    loop.write([2, 0], model.read([[7, 8, 1, 1], [9, 1, 1, 1]]).state if "a" in pattern else other)
    mixed = [loop.state, state]
    got = loop(tokens_B)
    want, _ = model(tokens_B[:, None], mixed[0])
    torch.testing.assert_close(got, want[:, 0].detach(), rtol=slack, atol=slack)
    for x, y in zip(leaves(rows(mixed[0], torch.tensor([1]))), leaves(rows(state, torch.tensor([1]))), strict=True):
        assert torch.equal(x, y)
    if "a" not in pattern:
        assert all(map(torch.equal, leaves(rows(mixed[0], torch.tensor([2, 0]))), leaves(other)))
    assert state_nbytes(mixed[0]) == state_nbytes(state)
    assert captured == ([3] if dtype is torch.float32 else [])
    with pytest.raises(ValueError, match="row 3 cannot be written"):
        loop.write([3], rows(first, torch.tensor([0])))
    with pytest.raises(ValueError, match="blocks"):
        loop.write([0], ())
