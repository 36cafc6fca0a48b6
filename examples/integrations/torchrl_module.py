"""TorchRL: a memory of exlstm as a module of tensordicts, in PPO on CartPole without velocities.

    python examples/integrations/torchrl_module.py [frames]

A step of the policy reads and writes one vector per row. A replay is one call over all steps, with the memory cleared
where `is_init` says that an episode begins.

B rows  T steps  P parts of rows  D features  W numbers of a row's state
"""

import sys
from collections.abc import Iterable

import gymnasium
import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import Compose, GymWrapper, InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.transforms import RewardScaling, RewardSum, TensorDictPrimer
from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator, recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import exlstm

ROWS, STEPS, EPOCHS, MINIBATCHES = 8, 128, 10, 2


class ExLSTMModule(TensorDictModuleBase):
    """`in_key`, `state_key` and is_init -> `out_key` and ("next", `state_key`): a net of exlstm with rows first.

    As TorchRL's LSTMModule it takes a step or, in recurrent mode, sequences along the last batch dimension. One
    goes on from the state stored at its first step; if is_init is set inside, from that stored there.
    """

    def __init__(
        self, net: nn.Module, in_key: str = "observation", out_key: str = "features", state_key: str = "memory"
    ) -> None:
        super().__init__()
        self.net, self.state_key = net, state_key
        self.numbers = exlstm.flat_state(net, net.zero_state(1)).shape[1]
        self.in_keys, self.out_keys = [in_key, state_key, "is_init"], [out_key, ("next", state_key)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that puts an empty state into what a reset of an environment returns."""
        return TensorDictPrimer({self.state_key: Unbounded(shape=(self.numbers,))}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """See the class. In recurrent mode the state is written at the last step, with zeros before."""
        shape, T = tensordict.shape, tensordict.shape[-1] if recurrent_mode() else 1
        x, state, begins = (tensordict.get(key) for key in self.in_keys)
        x_BTD, state_BTW = x.reshape(-1, T, x.shape[-1]), state.reshape(-1, T, self.numbers)
        begins_BT = begins.reshape(-1, T).clone()
        if recurrent_mode():
            begins_BT[:, 0] = False
        if recurrent_mode() and bool(state_BTW[begins_BT].any()):
            y_BTD, last_BW = self.run_parts(x_BTD, state_BTW, begins_BT)
        else:
            y_BTD, last_BW = self.run(x_BTD, state_BTW[:, 0], reset=begins_BT)
        tensordict.set(self.out_keys[0], y_BTD.reshape(*shape, -1))
        tensordict.set(self.out_keys[1], functional.pad(last_BW[:, None], (0, 0, T - 1, 0)).reshape(*shape, -1))
        return tensordict

    def run(self, x_BTD: Tensor, state_BW: Tensor, **borders: Tensor) -> tuple[Tensor, Tensor]:
        """The net with a state of one vector per row."""
        y_BTD, state = self.net(x_BTD, exlstm.unflat_state(self.net, state_BW), **borders)
        return y_BTD, exlstm.flat_state(self.net, state)

    def run_parts(self, x_BTD: Tensor, state_BTW: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences that go on from a state where they begin inside a row: each is a row of its own."""
        B, T = begins_BT.shape
        starts_BT = begins_BT.clone()
        starts_BT[:, 0] = True
        first_P = starts_BT.flatten().nonzero()[:, 0]
        lengths_P = first_P.diff(append=first_P.new_tensor([B * T]))
        x_PTD = pad_sequence(x_BTD.flatten(0, 1).split(lengths_P.tolist()), batch_first=True)
        y_PTD, state_PW = self.run(x_PTD, state_BTW.flatten(0, 1)[first_P], lengths=lengths_P)
        y_BTD = y_PTD[torch.arange(x_PTD.shape[1]) < lengths_P[:, None]].view(B, T, -1)
        return y_BTD, state_PW[starts_BT.sum(1).cumsum(0) - 1]


def cart_pole() -> GymWrapper:
    """CartPole, of which only the place of the cart and the angle of the pole are seen, as multiples of usual ones."""
    env, size = gymnasium.make("CartPole-v1"), np.array([0.5, 0.1], dtype=np.float32)
    low, high = (bound[[0, 2]] / size for bound in (env.observation_space.low, env.observation_space.high))
    hidden = gymnasium.wrappers.TransformObservation(env, lambda x: x[[0, 2]] / size, gymnasium.spaces.Box(low, high))
    return GymWrapper(hidden, categorical_action_encoding=False)


class Agent:
    """An actor and a critic on one memory, the collector of their rollouts, and PPO."""

    def __init__(self, net: nn.Module, width: int, frames: int) -> None:
        self.memory = ExLSTMModule(net)
        logits = TensorDictModule(nn.Linear(width, 2), in_keys=["features"], out_keys=["logits"])
        self.actor = ProbabilisticActor(
            TensorDictSequential(self.memory, logits),
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=OneHotCategorical,
            return_log_prob=True,
        )
        self.critic = TensorDictSequential(self.memory, ValueOperator(nn.Linear(width, 1), in_keys=["features"]))
        # with a discount of 0.98 returns are up to 50, and of this size about 1
        rewards = RewardSum(), RewardScaling(loc=0.0, scale=0.05)
        transforms = Compose(InitTracker(), self.memory.make_tensordict_primer(), *rewards)
        self.collector = Collector(
            TransformedEnv(SerialEnv(ROWS, cart_pole), transforms),
            self.actor,
            frames_per_batch=ROWS * STEPS,
            total_frames=frames,
            auto_register_policy_transforms=False,
        )
        # its two calls of the critic begin with different states, so they are no vmap
        self.advantages = GAE(gamma=0.98, lmbda=0.9, value_network=self.critic, deactivate_vmap=True)
        weights = {"entropy_coeff": 0.005, "critic_coeff": 0.5}
        self.loss = ClipPPOLoss(self.actor, self.critic, normalize_advantage=True, **weights)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=2e-3)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Learns a rollout [B, T], a few rows at a time; returns the last losses."""
        losses = {}
        for _ in range(EPOCHS):
            with torch.no_grad():
                self.advantages(rollout)
            for index in torch.randperm(len(rollout)).tensor_split(MINIBATCHES):
                found = self.loss(rollout[index])
                losses = {name: found[name] for name in ("loss_objective", "loss_critic", "loss_entropy")}
                self.optimizer.zero_grad()
                sum(losses.values()).backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), 0.5)
                self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def train(self) -> Iterable[tuple[int, float]]:
        """Acts and learns; gives the frames so far, and the mean return of the episodes that ended in a rollout."""
        for number, rollout in enumerate(self.collector, start=1):
            self.update(rollout)
            ended = rollout["next", "episode_reward"][rollout["next", "done"]]
            yield number * rollout.numel(), ended.mean().item()
        self.collector.shutdown()


def main() -> None:
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    torch.manual_seed(0)
    agent = Agent(exlstm.SLSTM(2, 64, batch_first=True), 64, frames)
    for seen, mean in agent.train():
        if seen % (8 * ROWS * STEPS) == 0 or seen >= frames:
            print(f"{seen:7,d} frames  mean return {mean:.0f} of 500")


if __name__ == "__main__":
    main()
