"""PPO with a memory in one file: an sLSTM learns to keep a bit (memory_len 10 of bsuite), in seconds on one core.

python examples/08_ppo_with_memory.py [frames]
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import exlstm

FRAMES = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
ROWS, STEPS, EPOCHS, MINIBATCHES, RATE = 64, 64, 4, 4, 3e-3
DISCOUNT, TRACE, CLIP, ENTROPY = 0.99, 0.95, 0.2, 0.01


class MemoryChain:
    """Rows of episodes: a bit is shown at the first two of eleven steps, and the last action should be that bit.

    A row whose episode has ended begins the next one in the same step: `begins` is true at its first observation.
    """

    def __init__(self, length: int = 10) -> None:
        self.length, self.random = length, np.random.default_rng(0)
        self.bit, self.place = self.random.integers(2, size=ROWS), np.zeros(ROWS, dtype=int)

    def observe(self) -> Tensor:
        time = np.maximum(self.place - 1, 0)
        columns = 1 - time / self.length, np.where(time == 0, 2 * self.bit - 1, 0)
        return torch.from_numpy(np.stack(columns, axis=1)).float()

    def step(self, action: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        begins = self.place == self.length
        reward = np.where(begins, np.where(action == self.bit, 1.0, -1.0), 0.0)
        self.place = np.where(begins, 0, self.place + 1)
        self.bit = np.where(begins, self.random.integers(2, size=ROWS), self.bit)
        return self.observe(), torch.from_numpy(reward).float(), torch.from_numpy(begins)


class Agent(nn.Module):
    """Observations -> sLSTM -> logits of two actions, and a value. Any net of `exlstm` with this interface fits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(2, width), exlstm.SLSTM(width, width, batch_first=True)
        self.actor, self.critic = nn.Linear(width, 2), nn.Linear(width, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)

    def forward(self, x_BTD: Tensor, state: tuple | None, begins_BT: Tensor) -> tuple[Tensor, Tensor, tuple]:
        # one call over all steps: the memory of a row is cleared before each step at which an episode begins
        y_BTD, state = self.memory(self.embed(x_BTD).tanh(), state, reset=begins_BT)
        return self.actor(y_BTD).log_softmax(-1), self.critic(y_BTD)[..., 0], state


torch.manual_seed(0)
agent, chain = Agent(), MemoryChain()
optimizer = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
x_BD, begins_B, state = chain.observe(), torch.ones(ROWS, dtype=torch.bool), None
updates = max(1, FRAMES // (ROWS * STEPS))
for update in range(updates):
    # act: the memory before the first step is kept for the replay
    before, taken = state, []
    with torch.no_grad():
        for _ in range(STEPS):
            log_prob_B1C, value_B1, state = agent(x_BD[:, None], state, begins_B[:, None])
            action_B1 = log_prob_B1C[:, 0].exp().multinomial(1)
            chosen_B1 = log_prob_B1C[:, 0].gather(1, action_B1)
            seen = x_BD, begins_B, action_B1[:, 0], chosen_B1[:, 0], value_B1[:, 0]
            x_BD, reward_B, begins_B = chain.step(action_B1[:, 0].numpy())
            taken.append((*seen, reward_B, begins_B))
        value_B = agent(x_BD[:, None], state, begins_B[:, None])[1][:, 0]
    columns = (torch.stack(column, dim=1) for column in zip(*taken, strict=True))
    x_BTD, begins_BT, action_BT, chosen_BT, value_BT, reward_BT, ends_BT = columns

    # generalized advantages; nothing comes from beyond the end of an episode
    advantage_BT, advantage_B = torch.zeros_like(reward_BT), torch.zeros(ROWS)
    for t in reversed(range(STEPS)):
        goes_on_B = (~ends_BT[:, t]).float()
        delta_B = reward_BT[:, t] + DISCOUNT * goes_on_B * value_B - value_BT[:, t]
        advantage_B = delta_B + DISCOUNT * TRACE * goes_on_B * advantage_B
        advantage_BT[:, t], value_B = advantage_B, value_BT[:, t]
    return_BT = advantage_BT + value_BT

    # learn: minibatches of whole rows, from the kept state
    for group in optimizer.param_groups:
        group["lr"] = RATE * (1 - update / updates)
    for index in (index for _ in range(EPOCHS) for index in torch.randperm(ROWS).tensor_split(MINIBATCHES)):
        start = None if before is None else tuple(part[:, index] for part in before)
        log_prob_BTC, values_BT, _ = agent(x_BTD[index], start, begins_BT[index])
        ratio_BT = (log_prob_BTC.gather(2, action_BT[index][..., None])[..., 0] - chosen_BT[index]).exp()
        scaled_BT = (advantage_BT[index] - advantage_BT[index].mean()) / (advantage_BT[index].std() + 1e-8)
        better = torch.minimum(ratio_BT * scaled_BT, ratio_BT.clamp(1 - CLIP, 1 + CLIP) * scaled_BT).mean()
        entropy = -(log_prob_BTC.exp() * log_prob_BTC).sum(-1).mean()
        loss = 0.25 * (values_BT - return_BT[index]).square().mean() - better - ENTROPY * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
    if update % 4 == 0 or update == updates - 1:
        score = reward_BT[reward_BT != 0].mean().item()
        print(f"{(update + 1) * ROWS * STEPS:7,d} frames  return {score:+.2f}  {'#' * round(20 * (1 + score))}")
