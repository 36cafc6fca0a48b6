"""Agents with a memory: episodes do not see each other, PPO's sums are those of plain loops, and what learns learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_studies import Quiet

from exlstm.data.control import CONTROL_TASKS, Environments
from exlstm.data.packing import IGNORE
from exlstm.mixers.state import leaves
from exlstm.study.control import (
    MEMORIES,
    PPO,
    Actor,
    ActorCritic,
    ControlRun,
    ControlTiming,
    MemorySize,
    PPOConfig,
    Recitation,
    Rollout,
    advantages,
    evaluate,
    memory_size,
)
from exlstm.study.control.runs import QUICK_PPO, AnsweredStream

SHORT = CONTROL_TASKS["memory_len_3"]
TINY = MemorySize(width=8, hidden=8)
each_memory = pytest.mark.parametrize("kind", MEMORIES)


def agent_of(kind, task=SHORT, seed=0):
    torch.manual_seed(seed)
    return ActorCritic(task, kind, TINY, embedding=8)


def actor_of(agent, task=SHORT, rows=4, seed=0):
    return Actor(agent, Environments(task, rows, seed=seed, split="train"), torch.Generator().manual_seed(seed))


@each_memory
@torch.no_grad()
def test_values_are_those_of_episodes_alone(kind):
    """Rows with episodes inside, from a state in their middle, are the same as every episode in a call of its own."""
    agent = agent_of(kind)
    before = torch.randn(2, 3, 3)
    begins_BT = torch.zeros(2, 9, dtype=torch.bool)
    begins_BT[0, [2, 6]] = begins_BT[1, 0] = begins_BT[1, 5] = True
    _, _, state = agent(before, None, torch.zeros(2, 3, dtype=torch.bool))
    seen_BTD = torch.randn(2, 9, 3)
    judged = agent(seen_BTD, state, begins_BT)
    for row, parts in ((0, [(0, 2), (2, 6), (6, 9)]), (1, [(0, 5), (5, 9)])):
        index = torch.tensor([row])
        for first, last in parts:
            start = None if begins_BT[row, first] else agent.memory.rows_of(state, index)
            begins = torch.zeros(1, last - first, dtype=torch.bool)
            alone = agent(seen_BTD[row : row + 1, first:last], start, begins)
            torch.testing.assert_close(judged.value_BT[row, first:last], alone.value_BT[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(judged.logits_BTC[row, first:last], alone.logits_BTC[0], rtol=0, atol=1e-5)


@each_memory
@torch.no_grad()
def test_a_rollout_replayed_at_once_gives_the_numbers_of_its_steps(kind):
    """Step by step in acting, one call in learning: a `begins` that is off by one would differ here."""
    agent = agent_of(kind)
    actor = actor_of(agent)
    for _ in range(2):
        rollout = actor.rollout(7)
        logits_BTC, value_BT, state = agent(rollout.observation_BTD, rollout.state, rollout.begins_BT)
        chosen_BT1 = logits_BTC.log_softmax(-1).gather(2, rollout.action_BT[..., None])
        torch.testing.assert_close(value_BT, rollout.value_BT, rtol=0, atol=1e-5)
        torch.testing.assert_close(chosen_BT1[..., 0], rollout.log_prob_BT, rtol=0, atol=1e-5)
        for one, other in zip(leaves(state), leaves(actor.state), strict=True) if kind != "attention" else ():
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_rollout_says_where_episodes_begin_and_end():
    """Episodes of memory_len_3 have 4 actions: rows begin at steps 0, 4 and 8, and the bit is seen there."""
    actor = actor_of(agent_of("none"))
    first, second = actor.rollout(6), actor.rollout(6)
    begins = torch.cat([first.begins_BT, second.begins_BT], dim=1)
    ends = torch.cat([first.ends_BT, second.ends_BT], dim=1)
    rewards = torch.cat([first.reward_BT, second.reward_BT], dim=1)
    shown = torch.cat([first.observation_BTD, second.observation_BTD], dim=1)[..., 2] != 0
    assert begins.all(0).nonzero()[:, 0].tolist() == begins.any(0).nonzero()[:, 0].tolist() == [0, 4, 8]
    assert ends.all(0).nonzero()[:, 0].tolist() == ends.any(0).nonzero()[:, 0].tolist() == [3, 7, 11]
    assert (rewards != 0).all(0).nonzero()[:, 0].tolist() == [3, 7, 11]
    assert shown.all(0).nonzero()[:, 0].tolist() == [0, 1, 4, 5, 8, 9]
    assert sorted(actor.returns) == sorted(rewards[rewards != 0].tolist())


def test_advantages_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    B, T, discount, trace = 3, 6, 0.9, 0.8
    reward, value, last, ends = torch.randn(B, T), torch.randn(B, T), torch.randn(B), torch.rand(B, T) < 0.3
    nothing = torch.zeros(B, T)
    rollout = Rollout(torch.zeros(B, T, 1), ends, nothing.long(), nothing, value, reward, ends, last, None)
    found = advantages(rollout, discount, trace)
    for b in range(B):
        for t in range(T):
            expected, weight = 0.0, 1.0
            for s in range(t, T):
                following = 0.0 if ends[b, s] else float(last[b] if s + 1 == T else value[b, s + 1])
                expected += weight * (float(reward[b, s]) + discount * following - float(value[b, s]))
                weight *= discount * trace
                if ends[b, s]:
                    break
            assert float(found[b, t]) == pytest.approx(expected, abs=1e-5)


def test_the_objective_is_clipped():
    """Beyond the clip a better action has no gradient, and a worse one has."""
    agent, config = agent_of("none"), PPOConfig(rows=2, minibatches=1, clip=0.2)
    learner = PPO(agent, config, 1e-3, torch.Generator().manual_seed(0))
    rollout = actor_of(agent, rows=2).rollout(5)
    advantage_BT = torch.randn(2, 5)
    moved = rollout._replace(log_prob_BT=rollout.log_prob_BT - torch.tensor(0.5).log() * advantage_BT.sign())
    scaled = (advantage_BT - advantage_BT.mean()) / (advantage_BT.std() + 1e-8)
    for where in (rollout, moved):
        ratio = (rollout.log_prob_BT - where.log_prob_BT).exp()
        terms = [min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in zip(ratio.ravel().tolist(), scaled.ravel().tolist())]  # noqa: B905
        assert float(learner.losses(where, advantage_BT).policy.detach()) == pytest.approx(-np.mean(terms), abs=1e-5)
    assert float(learner.losses(rollout, advantage_BT).entropy.detach()) == pytest.approx(np.log(2), abs=1e-3)


def test_minibatches_are_whole_rows_with_their_states():
    agent = agent_of("torch.lstm")
    learner = PPO(agent, QUICK_PPO, 1e-3, torch.Generator().manual_seed(0))
    actor = actor_of(agent)
    actor.rollout(5)
    rollout, index = actor.rollout(5), torch.tensor([3, 1])
    part = learner.rows_of(rollout, index)
    assert torch.equal(part.observation_BTD, rollout.observation_BTD[index])
    assert torch.equal(part.last_B, rollout.last_B[index])
    assert all(torch.equal(x, y[:, index]) for x, y in zip(part.state, rollout.state, strict=True))


def test_the_heads_alone_begin_orthogonal():
    agent = agent_of("torch.lstm", CONTROL_TASKS["repeat_previous_4"])
    product = agent.actor.weight @ agent.actor.weight.T
    torch.testing.assert_close(product, 1e-4 * torch.eye(4), rtol=0, atol=1e-6)
    assert float(agent.critic.weight.detach().norm()) == pytest.approx(1)
    weights = agent.memory.net.weight_hh_l0
    assert not torch.allclose(weights.T @ weights, torch.eye(8), atol=0.1)


def run_of(kind, **changes):
    base = ControlRun(
        model=kind, task="memory_len_3", size=TINY, lr=3e-3, frames=64, ppo=QUICK_PPO, episodes=4, points=2, embedding=8
    )
    return replace(base, **changes)


@each_memory
def test_a_run_is_a_function_of_its_seed(kind):
    first, again, other = (run_of(kind, seed=seed).execute(Quiet()) for seed in (0, 0, 1))
    json.dumps(first, allow_nan=False)
    assert first["curve"] == again["curve"]
    assert first["metrics"] == again["metrics"]
    assert first["curve"] != other["curve"]
    assert first["frames"] == 64
    assert [point["frames"] for point in first["curve"]] == [32, 64]


def test_evaluation_plays_every_row_to_the_end_of_one_episode():
    """Always saying 1 is right where the bit is 1; the episodes of a split are always the same."""
    agent = agent_of("none")
    with torch.no_grad():
        agent.actor.bias.copy_(torch.tensor([0.0, 9.0]))
    bits = Environments(SHORT, 64, seed=0, split="test").state.bit_B
    assert evaluate(agent, SHORT, "test", 64) == [1.0 if bit else -1.0 for bit in bits]


def test_answers_are_acted_in_the_stream():
    task = CONTROL_TASKS["t_maze_5"]
    stream = AnsweredStream(task, 3, seed=0)
    seen_BTD, begins_BT, answer_BT = stream.take(14)
    assert begins_BT.any(0).nonzero()[:, 0].tolist() == [0, 6, 12], "five steps and a turn"
    assert (answer_BT[:, :5] == 1).all()
    north_B = seen_BTD[:, 0, 2] == 1
    assert (answer_BT[:, 5] == torch.where(north_B, 0, 2)).all()
    answers = AnsweredStream(CONTROL_TASKS["repeat_previous_4"], 2, seed=0).take(10)[2]
    assert (answers[:, :3] == IGNORE).all()
    with pytest.raises(ValueError, match="no right actions"):
        AnsweredStream(CONTROL_TASKS["hidden_cart_pole"], 2, seed=0).take(10)


def test_right_answers_are_learned_without_reward():
    size = MemorySize(width=16)
    run = Recitation(model="torch.gru", task="memory_len_3", size=size, lr=1e-2, steps=100, length=16, embedding=16)
    row = run.execute(Quiet())
    assert row["metrics"]["tests"][0]["score"] == 1
    assert row["metrics"]["tests"][0]["solved"]
    assert row["curve"][-1]["loss"] < 0.1


def test_frames_per_second_are_measured():
    run = ControlTiming(model="lstm", task="memory_len_3", size=TINY, ppo=QUICK_PPO, repeats=2, embedding=8)
    row = json.loads(json.dumps(run.execute(Quiet()), allow_nan=False))
    assert row["metrics"]["tests"][0]["score"] < row["metrics"]["acting"]
    assert row["metrics"]["tests"][0]["score"] < row["metrics"]["learning"]
    assert run.alone


@each_memory
def test_memories_of_a_comparison_have_equal_parameters(kind):
    agent = ActorCritic(SHORT, kind, memory_size(kind, 64, 33_000), embedding=64)
    assert sum(weight.numel() for weight in agent.memory.parameters()) == pytest.approx(33_000, rel=0.05)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: run_of("elman"), "use one of none, slstm"),
        (lambda: run_of("none", task="memory_len_4"), "use one of memory_len_3"),
        (lambda: run_of("none", frames=0), "use at least 1"),
        (lambda: PPOConfig(rows=2, minibatches=4), "at most one per row"),
        (lambda: memory_size("attention", 64, 100), "choose another number"),
    ],
)
def test_what_there_is_not(make, says):
    with pytest.raises(ValueError, match=says):
        make()


LEARNS = PPOConfig(rows=32, steps=32)


@pytest.mark.slow
def test_slstm_learns_to_keep_a_bit_and_a_net_without_memory_does_not():
    run = run_of("slstm", size=MemorySize(width=32), lr=1e-2, frames=30_000, ppo=LEARNS, embedding=32, episodes=128)
    assert run.execute(Quiet())["metrics"]["tests"][0]["score"] > 0.9
    blind = replace(run, model="none", frames=5000).execute(Quiet())["metrics"]["tests"][0]
    assert blind["at_chance"]
    assert not blind["solved"]


@pytest.mark.slow
def test_slstm_solves_memory_len_10():
    size = memory_size("slstm", 64, 33_000)
    run = run_of("slstm", task="memory_len_10", size=size, lr=3e-3, frames=200_000, ppo=PPOConfig(), embedding=64)
    row = replace(run, episodes=256, points=10).execute(Quiet())
    assert row["metrics"]["tests"][0]["score"] > 0.95
    assert row["curve"][0]["return"] < 0.3 < row["curve"][-1]["return"]
