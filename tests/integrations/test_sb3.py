"""RecurrentPPO of sb3-contrib with nets of exlstm: one call is the loop, an LSTM is its own, and it learns."""

from functools import partial

import pytest
import torch

pytest.importorskip("sb3_contrib", reason="these run by `make test-integrations`, in an environment of their own")

from sb3_contrib import RecurrentPPO

import exlstm
from examples.integrations.sb3_policy import ExLSTMPolicy, PairedState, environments, learner

pytestmark = pytest.mark.slow
MEMORIES = {
    "slstm": partial(exlstm.SLSTM, batch_first=True, num_layers=2),
    "mlstm": partial(exlstm.MLSTM, batch_first=True),
    "lstm": partial(exlstm.LSTM, batch_first=True),
    "blocks": partial(exlstm.XLSTM, pattern="ms"),
}


def policy_of(model, memory, width=16):
    """A policy for the spaces of a model."""
    spaces = model.observation_space, model.action_space, lambda left: 1e-3
    return ExLSTMPolicy(*spaces, memory=memory, lstm_hidden_size=width)


def random_starts(B, T):
    """Where episodes begin: inside of rows, and at the first step of one of them."""
    starts_BT = torch.rand(B, T) < 0.2
    starts_BT[0, 0], starts_BT[1, 0] = True, False
    return starts_BT.float()


@pytest.mark.parametrize("name", MEMORIES)
def test_one_call_is_a_call_for_every_step(name):
    """From a state that is not empty, with the states of rows that begin times 0."""
    B, T = 4, 9
    lstm = PairedState(MEMORIES[name](3, 16)).eval()
    x_BTD, starts_BT = torch.randn(B, T, 3), random_starts(B, T)
    zeros = torch.zeros(1, B, lstm.hidden_size)
    with torch.no_grad():
        _, before = lstm(torch.randn(B, 5, 3), (zeros, zeros), torch.zeros(B, 5, dtype=torch.bool))
        found, after = ExLSTMPolicy._process_sequence(x_BTD.flatten(0, 1), before, starts_BT.flatten(), lstm)
        pair, steps = before, []
        for t in range(T):
            pair = tuple((1 - starts_BT[:, t]).view(1, B, 1) * part for part in pair)
            y_B1V, pair = lstm(x_BTD[:, t : t + 1], pair, torch.zeros(B, 1, dtype=torch.bool))
            steps.append(y_B1V)
    assert after[0].shape == after[1].shape == (1, B, lstm.hidden_size)
    torch.testing.assert_close(found, torch.cat(steps, 1).flatten(0, 1), rtol=0, atol=1e-5)
    for got, want in zip(after, pair, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_with_an_lstm_it_is_the_policy_of_sb3():
    """Values, log probabilities and entropies of minibatches of a rollout with MlpLstmPolicy's own weights."""
    env = environments(4, 0)
    theirs = RecurrentPPO("MlpLstmPolicy", env, n_steps=64, policy_kwargs={"lstm_hidden_size": 16}, device="cpu")
    theirs.learn(256)
    ours = policy_of(theirs, MEMORIES["lstm"])
    ours.load_state_dict({name.replace(".weight_", ".net.weight_").replace(".bias_", ".net.bias_"): value
                          for name, value in theirs.policy.state_dict().items()})  # fmt: skip
    compared = 0
    for batch in theirs.rollout_buffer.get(96):
        options = batch.observations, batch.actions.long().flatten(), batch.lstm_states, batch.episode_starts
        for got, want in zip(ours.evaluate_actions(*options), theirs.policy.evaluate_actions(*options), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        compared += int(batch.episode_starts.sum())
    assert compared > 4  # episodes began inside of rows


@pytest.mark.parametrize(
    "critic", [{}, {"enable_critic_lstm": False}, {"enable_critic_lstm": False, "shared_lstm": True}]
)
def test_the_critics_of_sb3(critic):
    """With a memory of its own, without one, and with the actor's."""
    env = environments(2, 0)
    model = RecurrentPPO(ExLSTMPolicy, env, n_steps=16, policy_kwargs={"lstm_hidden_size": 16, **critic}, device="cpu")
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32)
    unchanged = {name for name, value in model.policy.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == set()


def test_a_saved_model_acts_alike(tmp_path):
    """With its memory carried from step to step."""
    env = environments(3, 0)
    model = learner(ExLSTMPolicy, env, 0)
    model.learn(8 * 32)
    model.save(tmp_path / "model.zip")
    loaded = RecurrentPPO.load(tmp_path / "model.zip", device="cpu")
    assert isinstance(loaded.policy, ExLSTMPolicy)
    observation, states, others = env.reset(), None, None
    for _ in range(20):
        action, states = model.predict(observation, states, deterministic=True)
        again, others = loaded.predict(observation, others, deterministic=True)
        assert (action == again).all()
        assert all((a == b).all() for a, b in zip(states, others, strict=True))
        observation, *_ = env.step(action)
    assert states[0].any()


def test_no_number_of_the_state_is_lost():
    """A state of an odd number of numbers is padded, and every number of the pair but that one is used."""
    net = exlstm.MLSTM(3, 16, batch_first=True, num_heads=1)
    lstm = PairedState(net)
    assert lstm.numbers == 16 + net.state_size
    state = net(torch.randn(2, 7, 3))[1]
    flat_BW = exlstm.flat_state(net, state)
    padded = torch.nn.functional.pad(flat_BW, (0, 2 * lstm.hidden_size - lstm.numbers))
    y, _ = lstm(torch.ones(2, 1, 3), padded[None].chunk(2, dim=2), torch.zeros(2, 1, dtype=torch.bool))
    torch.testing.assert_close(y, net(torch.ones(2, 1, 3), state)[0], rtol=0, atol=0)
