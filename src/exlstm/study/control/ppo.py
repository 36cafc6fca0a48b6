"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) for an agent with a memory.

A minibatch is whole rows of a rollout: one call over all of its steps, from the state that was kept at its start, with
the memory cleared where an episode begins. Gradients do not go further back than the rollout.

B rows  T steps  C actions
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.study.control.agent import ActorCritic
from exlstm.study.control.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of PPO.

    rows, steps: of a rollout. epochs: how often its rows are learned. minibatches: parts of its rows, a step of Adam
    each. discount, trace: gamma and lambda of the advantages. clip: of the ratio of probabilities.
    value_cost, entropy: weights of the value's loss and of the entropy. max_norm: of the gradient.
    """

    rows: Size = 64
    steps: Size = 64
    epochs: Size = 4
    minibatches: Size = 4
    discount: Share = 0.99
    trace: Share = 0.95
    clip: Positive = 0.2
    value_cost: Positive = 0.5
    entropy: Share = 0.01
    max_norm: Positive = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.minibatches > self.rows:
            raise ValueError(f"minibatches is {self.minibatches} of {self.rows} rows; use at most one per row.")


def advantages(rollout: Rollout, discount: float, trace: float) -> Tensor:
    """Generalized advantage estimates [B, T] (Schulman et al. 2016, arXiv:1506.02438).

    delta_t = reward_t + discount value_{t+1} - value_t, and A_t = delta_t + discount trace A_{t+1}; nothing comes from
    beyond the end of an episode.
    """
    goes_on_BT = (~rollout.ends_BT).to(rollout.value_BT.dtype)
    next_BT = torch.cat([rollout.value_BT[:, 1:], rollout.last_B[:, None]], dim=1)
    delta_BT = rollout.reward_BT + discount * goes_on_BT * next_BT - rollout.value_BT
    found, sum_B = [], torch.zeros_like(rollout.last_B)
    for t in reversed(range(delta_BT.shape[1])):
        sum_B = delta_BT[:, t] + discount * trace * goes_on_BT[:, t] * sum_B
        found.append(sum_B)
    return torch.stack(found[::-1], dim=1)


class Losses(NamedTuple):
    """Of a minibatch: the clipped objective's, the value's, and the entropy of the policy."""

    policy: Tensor
    value: Tensor
    entropy: Tensor


class PPO:
    """The learner of an agent: an Adam, and an update per rollout."""

    def __init__(self, agent: ActorCritic, config: PPOConfig, lr: float, generator: torch.Generator) -> None:
        self.agent, self.config, self.lr, self.generator = agent, config, lr, generator
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=lr, eps=1e-5)

    def losses(self, rollout: Rollout, advantage_BT: Tensor) -> Losses:
        """Of the rows of a rollout, whose advantages have mean 0 and deviation 1 here."""
        logits_BTC, value_BT, _ = self.agent(rollout.observation_BTD, rollout.state, rollout.begins_BT)
        log_prob_BTC = logits_BTC.log_softmax(-1)
        chosen_BT = log_prob_BTC.gather(2, rollout.action_BT[..., None])[..., 0]
        ratio_BT = (chosen_BT - rollout.log_prob_BT).exp()
        scaled_BT = (advantage_BT - advantage_BT.mean()) / (advantage_BT.std() + 1e-8)
        clipped_BT = ratio_BT.clamp(1 - self.config.clip, 1 + self.config.clip)
        return_BT = advantage_BT + rollout.value_BT
        return Losses(
            -torch.minimum(ratio_BT * scaled_BT, clipped_BT * scaled_BT).mean(),
            0.5 * (value_BT - return_BT).square().mean(),
            -(log_prob_BTC.exp() * log_prob_BTC).sum(-1).mean(),
        )

    def update(self, rollout: Rollout, share: float) -> dict[str, float]:
        """Learns a rollout; returns its mean losses. share: of the training that is done; rates fall to 0."""
        config, seen = self.config, []
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 - share)
        advantage_BT = advantages(rollout, config.discount, config.trace)
        for _ in range(config.epochs):
            order = torch.randperm(config.rows, generator=self.generator)
            for index in order.tensor_split(config.minibatches):
                losses = self.losses(self.rows_of(rollout, index), advantage_BT[index])
                loss = losses.policy + config.value_cost * losses.value - config.entropy * losses.entropy
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                clip_grad_norm_(self.agent.parameters(), config.max_norm)
                self.optimizer.step()
                seen.append(torch.stack(losses).detach())
        return dict(zip(Losses._fields, torch.stack(seen).mean(0).tolist(), strict=True))

    def rows_of(self, rollout: Rollout, index: Tensor) -> Rollout:
        """Some rows of a rollout, with their states."""
        *tensors, state = rollout
        return Rollout._make([*(x[index] for x in tensors), self.agent.memory.rows_of(state, index)])


def weights_are_finite(module: nn.Module) -> bool:
    """False if a weight is not finite."""
    return bool(torch.stack([weight.detach().sum() for weight in module.parameters()]).sum().isfinite())
