"""Acting: rollouts of many rows for learning, and the mean return of the best actions.

B rows  T steps  D width of an observation  C actions
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.data.control import ControlTask, Environments
from exlstm.data.tasks.contract import SplitName
from exlstm.study.control.agent import ActorCritic


class Rollout(NamedTuple):
    """What happened in some steps of all rows.

    begins_BT: observation t is the first of an episode. ends_BT: action t was the last of one, which is begins_BT one
    step later. state: the memory before the first step. last_B: the value of the observation after the last step.
    """

    observation_BTD: Tensor
    begins_BT: Tensor
    action_BT: Tensor
    log_prob_BT: Tensor
    value_BT: Tensor
    reward_BT: Tensor
    ends_BT: Tensor
    last_B: Tensor
    state: Any


class Actor:
    """An agent in its rows of environments, between two rollouts. returns: of episodes since they were last read."""

    def __init__(self, agent: ActorCritic, environments: Environments, generator: torch.Generator) -> None:
        self.agent, self.environments, self.generator = agent, environments, generator
        self.observation_BD = torch.from_numpy(environments.first())
        self.begins_B = torch.ones(environments.rows, dtype=torch.bool)
        self.state: Any = None
        self.running_B = np.zeros(environments.rows)
        self.returns: list[float] = []

    @torch.no_grad()
    def rollout(self, steps: int) -> Rollout:
        """Acts so many steps, with actions drawn from the policy."""
        before, taken = self.state, []
        for _ in range(steps):
            observation_BD, begins_B = self.observation_BD, self.begins_B
            logits_BTC, value_BT, self.state = self.agent(observation_BD[:, None], self.state, begins_B[:, None])
            log_prob_BC = logits_BTC[:, 0].log_softmax(-1)
            action_B1 = torch.multinomial(log_prob_BC.exp(), 1, generator=self.generator)
            reward_B = self._act(action_B1[:, 0])
            chosen_B = log_prob_BC.gather(1, action_B1)[:, 0]
            taken.append((observation_BD, begins_B, action_B1[:, 0], chosen_B, value_BT[:, 0], reward_B, self.begins_B))
        last_B1 = self.agent(self.observation_BD[:, None], self.state, self.begins_B[:, None]).value_BT
        columns = (torch.stack(column, dim=1) for column in zip(*taken, strict=True))
        return Rollout._make([*columns, last_B1[:, 0], before])

    def _act(self, action_B: Tensor) -> Tensor:
        observation_BD, reward_B, begins_B = self.environments.step(action_B.numpy())
        self.running_B += reward_B
        if begins_B.any():
            self.returns += self.running_B[begins_B].tolist()
            self.running_B[begins_B] = 0
        self.observation_BD, self.begins_B = torch.from_numpy(observation_BD), torch.from_numpy(begins_B)
        return torch.from_numpy(reward_B)


@torch.no_grad()
def evaluate(agent: ActorCritic, task: ControlTask, split: SplitName, episodes: int) -> list[float]:
    """Returns of so many episodes of a split, one in each row, with the likeliest actions."""
    environments = Environments(task, episodes, seed=0, split=split)
    observation_BD, state = torch.from_numpy(environments.first()), None
    begins_B1 = torch.ones(episodes, 1, dtype=torch.bool)
    return_B, alive_B = np.zeros(episodes), np.ones(episodes, dtype=np.bool_)
    for _ in range(task.longest):
        logits_BTC, _, state = agent(observation_BD[:, None], state, begins_B1)
        following_BD, reward_B, ends_B = environments.step(logits_BTC[:, 0].argmax(-1).numpy())
        return_B += np.where(alive_B, reward_B, 0)
        alive_B &= ~ends_B
        if not alive_B.any():
            break
        observation_BD, begins_B1 = torch.from_numpy(following_BD), torch.from_numpy(ends_B)[:, None]
    return [float(value) for value in return_B]
