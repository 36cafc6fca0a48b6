"""Stable-Baselines3: RecurrentPPO of sb3-contrib with a memory of exlstm, on CartPole without velocities.

    python examples/integrations/sb3_policy.py [--steps 100000] [--policy exlstm | lstm] [--seed 0]

One call replays whole sequences, with the memory cleared where an episode begins. The policy of sb3-contrib takes a
call for every step as soon as one does.

B sequences  T steps  D features  V width of the memory's output  W numbers of its state
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn
from torch.nn import functional

import exlstm

Pair = tuple[Tensor, Tensor]


def slstm(features: int, width: int) -> nn.Module:
    """An sLSTM from features to the width of the heads."""
    return exlstm.SLSTM(features, width, batch_first=True)


class PairedState(nn.Module):
    """A net of exlstm with the state that RecurrentPPO stores: two tensors [1, B, hidden_size] of one width.

    hidden_size: of these tensors, half of the numbers of a row's state. What the net puts out may have another width.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.numbers = exlstm.flat_state(net, net.zero_state(1)).shape[1]
        self.input_size, self.num_layers, self.hidden_size = net.input_size, 1, (self.numbers + 1) // 2

    def forward(self, x_BTD: Tensor, pair: Pair, begins_BT: Tensor) -> tuple[Tensor, Pair]:
        """Outputs [B, T, V], and the pair after the last step. begins_BT: the memory is cleared before that step."""
        flat_BW = torch.cat(pair, dim=2)[0, :, : self.numbers]
        y_BTV, state = self.net(x_BTD, exlstm.unflat_state(self.net, flat_BW), reset=begins_BT)
        flat_BW = exlstm.flat_state(self.net, state)
        first_1BH, second_1BH = functional.pad(flat_BW, (0, self.numbers % 2))[None].chunk(2, dim=2)
        return y_BTV, (first_1BH, second_1BH)


class ExLSTMPolicy(RecurrentActorCriticPolicy):
    """The recurrent policy of sb3-contrib, whose options it has, with nets of exlstm.

    memory: makes the net of the actor, and of the critic, from the widths of its input and its output: any net with
    the call of `exlstm.SLSTM` or `exlstm.XLSTM`, with rows first.
    """

    def __init__(
        self,
        *spaces_and_schedule: Any,
        memory: Callable[[int, int], nn.Module] = slstm,
        **options: Any,
    ) -> None:
        super().__init__(*spaces_and_schedule, **options)
        self.lstm_actor = PairedState(memory(self.features_dim, self.lstm_output_dim))
        if self.lstm_critic is not None:
            self.lstm_critic = PairedState(memory(self.features_dim, self.lstm_output_dim))
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.hidden_size)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)

    @staticmethod
    def _process_sequence(features: Tensor, lstm_states: Pair, episode_starts: Tensor, lstm: nn.Module) -> Any:
        """Rows of features [B T, D] as sequences, in one call. episode_starts: 1 at the first step of an episode."""
        B = lstm_states[0].shape[1]
        x_BTD = features.view(B, -1, lstm.input_size)
        y_BTV, pair = lstm(x_BTD, lstm_states, episode_starts.view(B, -1) > 0)
        return y_BTV.flatten(0, 1), pair


class HiddenVelocities(gymnasium.ObservationWrapper):
    """CartPole, of which only the place of the cart and the angle of the pole are seen."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        seen = env.observation_space
        self.observation_space = gymnasium.spaces.Box(seen.low[[0, 2]], seen.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """[4] -> [2]."""
        return observation[[0, 2]]


def environments(count: int, seed: int) -> VecEnv:
    """So many rows of CartPole without velocities, with observations normalized."""
    rows = make_vec_env("CartPole-v1", n_envs=count, seed=seed, wrapper_class=HiddenVelocities)
    return VecNormalize(rows, norm_reward=False)


def learner(policy: Any, env: VecEnv, seed: int) -> RecurrentPPO:
    """RecurrentPPO with the settings that RL Baselines3 Zoo lists for this task."""
    sizes = {"lstm_hidden_size": 64, "net_arch": {"pi": [64], "vf": [64]}, "activation_fn": nn.ReLU}
    return RecurrentPPO(
        policy,
        env,
        learning_rate=lambda left: 1e-3 * left,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        clip_range=lambda left: 0.2 * left,
        policy_kwargs=sizes | {"ortho_init": False},
        seed=seed,
        device="cpu",
    )


POLICIES = {"exlstm": ExLSTMPolicy, "lstm": "MlpLstmPolicy"}


def run(policy: str, steps: int, seed: int, episodes: int = 50) -> dict[str, float]:
    """Trains, and tells the mean return of the best actions in new episodes, at most 500, and what training took.

    seconds: of the processor, which other programs do not lengthen.
    """
    env = environments(8, seed)
    model = learner(POLICIES[policy], env, seed)
    began = time.process_time()
    model.learn(steps)
    seconds = time.process_time() - began
    env.training = False
    env.seed(1000 + seed)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=episodes)
    return {"return": float(mean), "deviation": float(deviation), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--policy", choices=POLICIES, default="exlstm")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # steps of a small net are not shared
    found = run(options.policy, options.steps, options.seed)
    print(
        f"{options.policy}: return {found['return']:.0f} +- {found['deviation']:.0f} of 500 after {options.steps:,} "
        f"steps, trained in {found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
