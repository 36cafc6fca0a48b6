"""Rules of tasks of control against episodes worked out by hand, and rows that begin anew in the same step."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from exlstm.data.control import CONTROL_TASKS, Environments, HiddenCartPole, MemoryChain, RepeatPrevious, TMaze
from exlstm.data.control.cards import CardState
from exlstm.data.control.cart_pole import CartPoleState
from exlstm.data.control.chain import ChainState
from exlstm.data.control.maze import EAST, NORTH, SOUTH, WEST, MazeState
from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import numbers_for

each_task = pytest.mark.parametrize("name", CONTROL_TASKS)


def played(task, state, actions):
    """Observations, rewards and ends of one row."""
    seen, rewards, ends = [task.observe(state)[0].tolist()], [], []
    for action in actions:
        state, reward_B, ended_B = task.advance(state, np.array([action]))
        seen.append(task.observe(state)[0].tolist())
        rewards.append(float(reward_B[0]))
        ends.append(bool(ended_B[0]))
    return seen, rewards, ends


def test_repeat_previous_counts_the_newest_card_as_one():
    """Suits 2 0 3 1 1 ...; with lag 2 the first card is asked for when the second is seen."""
    task = RepeatPrevious(lag=2, decks=1)
    suit_BN = np.array([[2, 0, 3, 1, 1] + [0] * 47])
    state = CardState(suit_BN, np.zeros(1, dtype=np.int64))
    _, rewards, ends = played(task, state, [3, 2, 0, 0, 1] + [0] * 46)
    unit = 1 / 50
    assert rewards[:5] == pytest.approx([0, unit, unit, -unit, unit])
    assert len(rewards) == task.longest == 51
    assert ends == [False] * 50 + [True]


def test_repeat_previous_has_returns_from_minus_one_to_one():
    for lag, decks in ((4, 1), (32, 2), (64, 3)):
        task = RepeatPrevious(lag=lag, decks=decks)
        state = task.begin(numbers_for("cards", seed=0, split="test", first=0, size=1))
        assert np.bincount(state.suit_BN[0]).tolist() == [13 * decks] * 4
        total, asked = 0.0, 0
        for _ in range(task.longest):
            answer_B = task.answers(state)
            asked += int(answer_B[0] != IGNORE)
            state, reward_B, ended_B = task.advance(state, answer_B.clip(min=0))
            total += float(reward_B[0])
        assert ended_B[0]
        assert asked == 52 * decks - lag
        assert total == pytest.approx(1, abs=1e-5)


def test_memory_len_shows_the_bit_twice_and_asks_once():
    """As bsuite: an episode of length + 1 actions, whose first observation comes again."""
    task = MemoryChain(length=3)
    state = ChainState(np.array([1]), np.array([0]))
    seen, rewards, ends = played(task, state, [0, 0, 0, 1])
    thirds = [[1, 0, 1], [1, 0, 1], [2 / 3, 0, 0], [1 / 3, 0, 0]]
    assert seen[:4] == [pytest.approx(row) for row in thirds]
    assert (rewards, ends) == ([0, 0, 0, 1], [False, False, False, True])
    assert played(task, ChainState(np.array([0]), np.array([0])), [1, 1, 1, 1])[1] == [0, 0, 0, -1]
    assert [task.answers(ChainState(np.array([1]), np.array([place])))[0] for place in range(4)] == [IGNORE] * 3 + [1]


def test_t_maze():
    task = TMaze(length=2)
    north, south = (MazeState(np.array([goal]), np.array([0]), np.array([0])) for goal in (1, 0))
    seen, rewards, ends = played(task, north, [WEST, EAST, NORTH, WEST, EAST, EAST, EAST, NORTH])
    sign, corridor, junction = [0, 1, 1], [1, 0, 1], [0, 1, 0]
    assert seen[:-1] == [sign, sign, corridor, corridor, sign, corridor, junction, junction]
    assert rewards == pytest.approx([-0.1, 0, -0.1, 0, 0, 0, -0.1, 4])
    assert ends == [False] * 7 + [True]
    seen, rewards, ends = played(task, south, [EAST, EAST, NORTH])
    assert (seen[0], rewards, ends) == ([1, 1, 0], [0, 0, pytest.approx(-0.1)], [False, False, True])
    assert played(task, south, [EAST, EAST, SOUTH])[1][-1] == 4
    *_, ends = played(task, south, [WEST] * 16)
    assert ends == [False] * 15 + [True], "the limit"


def test_cart_pole_moves_as_the_equations_say():
    """From rest: the cart is pushed to the right, the pole falls to the left. Without friction, worked out by hand."""
    task = HiddenCartPole(limit=200)
    rest = [np.zeros(1)] * 4
    state, reward_B, _ = task.advance(CartPoleState(*rest, np.array([0])), np.array([1]))
    pole = -10 / 1.1 / (0.5 * (4 / 3 - 0.1 / 1.1))
    cart = (10 - 0.05 * pole) / 1.1
    assert state.speed_B[0] == pytest.approx(0.02 * cart)
    assert state.turning_B[0] == pytest.approx(0.02 * pole)
    assert (state.x_B[0], state.angle_B[0]) == (0, 0), "Euler's method: places move by the speeds before"
    assert reward_B[0] == pytest.approx(1 / 200)
    tilted = CartPoleState(*(np.array([x]) for x in (0.0, 0.0, 0.1, 0.0)), np.array([0]))
    after = task.advance(task.advance(tilted, np.array([0]))[0], np.array([1]))[0]
    assert task.observe(after).shape == (1, 2)


def test_cart_pole_ends_at_the_border_the_angle_and_the_limit():
    task = HiddenCartPole(limit=5)

    def ends(x, angle, time):
        state = CartPoleState(np.array([x]), np.zeros(1), np.array([angle]), np.zeros(1), np.array([time]))
        return bool(task.advance(state, np.array([1]))[2][0])

    assert ends(2.41, 0.0, 0)
    assert ends(0.0, 12.1 * math.pi / 180, 0)
    assert ends(0.0, 0.0, 4)
    assert not ends(2.39, 11.9 * math.pi / 180, 3)


class PairState(NamedTuple):
    """The mark of an episode, and its number of actions."""

    mark_B: np.ndarray
    place_B: np.ndarray


class TwoSteps:
    """Two actions an episode: the first observation is a mark, the second 0, and the reward of the second the mark."""

    name, inputs, actions, longest, solved, without_memory = "two_steps", 1, 2, 2, 1.0, None

    def begin(self, numbers):
        mark_B = 1 + numbers.below("mark", 1000, 1)[:, 0]
        return PairState(mark_B, np.zeros_like(mark_B))

    def observe(self, state):
        return np.where(state.place_B == 0, state.mark_B, 0)[:, None].astype(np.float32)

    def answers(self, state):
        return np.full(len(state.mark_B), IGNORE)

    def advance(self, state, action_B):
        last_B = state.place_B == 1
        reward_B = np.where(last_B, state.mark_B, 0).astype(np.float32)
        return PairState(state.mark_B, state.place_B + 1), reward_B, last_B


def test_rows_begin_anew_in_the_same_step():
    """Beside `begins` are the first observation of the next episode and the last reward of the one before."""
    rows = Environments(TwoSteps(), 3, seed=0, split="train")
    mark_B = rows.first()[:, 0]
    for _ in range(4):
        observation_BD, reward_B, begins_B = rows.step(np.zeros(3, dtype=np.int64))
        assert not begins_B.any()
        assert (observation_BD == 0).all()
        assert (reward_B == 0).all()
        observation_BD, reward_B, begins_B = rows.step(np.zeros(3, dtype=np.int64))
        assert begins_B.all()
        assert reward_B.tolist() == mark_B.tolist()
        assert (observation_BD[:, 0] != mark_B).any(), "another episode"
        mark_B = observation_BD[:, 0]
        assert (mark_B > 0).all()


@each_task
def test_episodes_do_not_depend_on_what_came_before(name):
    """Episode e of a row is the same, however the ones before it went; seeds and splits differ."""
    task = CONTROL_TASKS[name]

    def firsts(seed, split, actions):
        rows, found = Environments(task, 5, seed=seed, split=split), []
        draw = np.random.default_rng(actions)
        for _ in range(3 * task.longest):
            observation_BD, _, begins_B = rows.step(draw.integers(task.actions, size=5))
            found += [
                (rows.episode_B[b], b, *(part[b].tolist() for part in rows.state)) for b in np.flatnonzero(begins_B)
            ]
        return {(int(episode), b): state for episode, b, *state in found}

    one, two = firsts(0, "train", 0), firsts(0, "train", 1)
    shared = one.keys() & two.keys()
    assert len(shared) >= 5
    assert all(one[key] == two[key] for key in shared)
    assert one != firsts(1, "train", 0)
    assert one != firsts(0, "test", 0)


@each_task
def test_observations_are_of_the_shape_that_is_told(name):
    task = CONTROL_TASKS[name]
    rows = Environments(task, 4, seed=0, split="validation")
    assert rows.first().shape == (4, task.inputs)
    observation_BD, reward_B, begins_B = rows.step(np.zeros(4, dtype=np.int64))
    assert observation_BD.shape == (4, task.inputs)
    assert (observation_BD.dtype, reward_B.dtype, begins_B.dtype) == (np.float32, np.float32, np.bool_)
    assert task.name == name


@pytest.mark.parametrize("actions", [np.array([0, 2]), np.array([-1, 0]), np.array([0])])
def test_actions_that_there_are_not(actions):
    with pytest.raises(ValueError, match="pass 2 of 0 to 1"):
        Environments(CONTROL_TASKS["memory_len_3"], 2, seed=0, split="train").step(actions)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RepeatPrevious(lag=52, decks=1), "use 1 to 51"),
        (lambda: MemoryChain(length=0), "use at least 1"),
        (lambda: TMaze(length=0), "use at least 1"),
        (lambda: HiddenCartPole(limit=0), "use at least 1"),
        (lambda: Environments(CONTROL_TASKS["t_maze_5"], 0, seed=0, split="train"), "use at least 1"),
    ],
)
def test_sizes_that_there_are_not(make, says):
    with pytest.raises(ValueError, match=says):
        make()
