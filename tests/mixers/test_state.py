"""States as trees: every function keeps the structure and the order, whatever the nesting."""

from typing import NamedTuple

import torch

from exlstm.mixers.state import join, leaves, map_state, named_leaves, rows, with_leaves
from exlstm.ops.conv import ConvState
from exlstm.ops.lstm import LSTMState


class Layer(NamedTuple):
    """As a mixer with a convolution has it."""

    conv: ConvState
    cell: LSTMState


def model_state(batch=3, start=0):
    """Two blocks; every number occurs once, or the order of leaves would not show."""
    sizes = [batch * 2 * 5, batch * 5, batch * 5, batch * 4, batch * 4]
    numbers = torch.arange(start, start + sum(sizes)).split(sizes)
    past, h, c, other_h, other_c = (x.view(batch, -1) for x in numbers)
    return Layer(ConvState(past.view(batch, 2, 5)), LSTMState(h, c)), LSTMState(other_h, other_c)


def same(got, want):
    return len(leaves(got)) == len(leaves(want)) and all(map(torch.equal, leaves(got), leaves(want)))


def test_map_keeps_the_structure():
    state = model_state()
    doubled = map_state(lambda x: 2 * x, state)
    assert type(doubled) is tuple
    assert [type(part) for part in (doubled[0], *doubled[0], doubled[1])] == [Layer, ConvState, LSTMState, LSTMState]
    assert torch.equal(doubled[0].cell.c_BV, 2 * state[0].cell.c_BV)
    assert len(leaves(doubled)) == len(leaves(state)) == 5


def test_map_of_several_states_takes_what_is_in_the_same_place():
    one, two = model_state(), model_state(start=1000)
    assert same(map_state(lambda x, y: y - x, one, two), map_state(lambda x: torch.full_like(x, 1000), one))


def test_nodes_of_another_kind_are_taken_whole_and_other_tensors_stay():
    state = model_state()
    assert [type(node) for node in leaves(state, LSTMState)] == [LSTMState, LSTMState]
    assert leaves(state, LSTMState)[1] is state[1]
    swapped = map_state(lambda cell: LSTMState(cell.c_BV, cell.h_BV), state, kind=LSTMState)
    assert swapped[0].conv.past_BSD is state[0].conv.past_BSD
    assert swapped[0].cell.h_BV is state[0].cell.c_BV
    assert swapped[1].h_BV is state[1].c_BV


def test_every_tensor_has_a_path_and_is_found_by_it():
    state = model_state()
    found = dict(named_leaves(state, "state"))
    assert list(found) == [
        "state.0.conv.past_BSD", "state.0.cell.h_BV", "state.0.cell.c_BV", "state.1.h_BV", "state.1.c_BV",
    ]  # fmt: skip
    again = with_leaves(map_state(torch.zeros_like, state), found.values())
    assert type(again[0]) is Layer
    assert same(again, state)


def test_joining_is_the_inverse_of_taking_rows():
    state = model_state()
    parts = [rows(state, torch.tensor(index)) for index in ([0], [1, 2])]
    assert same(join(parts), state)
    assert same(rows(join(parts[::-1]), torch.tensor([2, 0, 1])), state)
