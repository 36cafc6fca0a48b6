"""A net of exlstm as TorchRL's module: replays are the rollout, resets inside rows, and PPO learns from a collector."""

from functools import partial

import pytest
import torch

pytest.importorskip("torchrl", reason="these run by `make test-integrations`, in an environment of their own")

from tensordict import TensorDict
from torchrl.modules import LSTMModule, set_recurrent_mode

import exlstm
from examples.integrations.torchrl_module import STEPS, Agent, ExLSTMModule

pytestmark = pytest.mark.slow
NETS = {
    "slstm": partial(exlstm.SLSTM, batch_first=True),
    "mlstm": partial(exlstm.MLSTM, batch_first=True),
    "blocks": partial(exlstm.XLSTM, pattern="ms"),
}


def rollout(module, begins_BT, states=None):
    """Random observations; states: what is stored at every step, zeros if None."""
    B, T = begins_BT.shape
    states = torch.zeros(B, T, module.numbers) if states is None else states
    data = {"observation": torch.randn(B, T, 3), "memory": states, "is_init": begins_BT[..., None]}
    return TensorDict(data, [B, T])


@pytest.mark.parametrize("name", NETS)
def test_episodes_inside_rows_are_rows_of_their_own(name):
    module, begins_BT = ExLSTMModule(NETS[name](3, 16)).eval(), torch.zeros(2, 12, dtype=torch.bool)
    begins_BT[0, 5] = begins_BT[1, 3] = begins_BT[1, 4] = True
    data = rollout(module, begins_BT)
    with torch.no_grad(), set_recurrent_mode(True):
        together_BTD = module(data.clone())["features"]
        for row, first, last in [(0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 4), (1, 4, 12)]:
            alone = data[row : row + 1, first:last].clone()
            alone["is_init"] = torch.zeros_like(alone["is_init"])
            torch.testing.assert_close(module(alone)["features"][0], together_BTD[row, first:last], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
def test_with_an_lstm_it_is_torchrls_module(stored):
    """Features of a replay, from empty states and from others, which TorchRL's estimators of advantages store."""
    net = exlstm.LSTM(3, 16, batch_first=True)
    lstm = torch.nn.LSTM(3, 16, batch_first=True)
    net.load_state_dict(lstm.state_dict())
    keys = ["observation", "h", "c"], ["features", ("next", "h"), ("next", "c")]
    theirs, ours = LSTMModule(lstm=lstm, in_keys=keys[0], out_keys=keys[1]), ExLSTMModule(net)
    begins_BT = torch.rand(4, 15) < 0.2
    data = rollout(ours, begins_BT, torch.randn(4, 15, 32) if stored else None)
    data["h"], data["c"] = data["memory"].unflatten(-1, (2, 1, 16)).unbind(2)
    with torch.no_grad(), set_recurrent_mode(True):
        found, wanted = ours(data.clone()), theirs(data.clone())
    torch.testing.assert_close(found["features"], wanted["features"], rtol=0, atol=1e-6)
    last = found["next", "memory"][:, -1].unflatten(-1, (2, 1, 16))
    torch.testing.assert_close(last[:, 0], wanted["next", "h"][:, -1], rtol=0, atol=1e-6)
    torch.testing.assert_close(last[:, 1], wanted["next", "c"][:, -1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_steps_are_the_sequence(name):
    """Where an episode begins, a step clears the memory that came before."""
    module, begins_BT = ExLSTMModule(NETS[name](3, 16)).eval(), torch.rand(3, 10) < 0.3
    data, state_BW = rollout(module, begins_BT), torch.zeros(3, module.numbers)
    with torch.no_grad():
        with set_recurrent_mode(True):
            whole_BTD = module(data.clone())["features"]
        for t in range(10):
            step = data[:, t].clone()
            step["memory"] = state_BW
            done = module(step)
            state_BW = done["next", "memory"]
            torch.testing.assert_close(done["features"], whole_BTD[:, t], rtol=0, atol=1e-5)


def test_a_collector_and_a_step_of_ppo():
    """What the collector's single steps gave, a replay of its rollout gives; an update moves all weights."""
    torch.manual_seed(0)
    agent = Agent(exlstm.SLSTM(2, 32, batch_first=True), 32, 10 * 1024)
    collected = next(iter(agent.collector))
    agent.collector.shutdown()
    assert collected.shape[1] == STEPS
    assert collected["is_init"][:, 1:].sum() > len(collected)  # more than one episode a row
    with torch.no_grad(), set_recurrent_mode(True):
        replayed = agent.memory(collected.clone())
    torch.testing.assert_close(replayed["features"], collected["features"], rtol=0, atol=1e-5)
    before = {name: value.clone() for name, value in agent.loss.named_parameters()}
    losses = agent.update(collected)
    assert all(abs(value) < 1e4 for value in losses.values())
    assert {name for name, value in agent.loss.named_parameters() if torch.equal(value, before[name])} == set()
