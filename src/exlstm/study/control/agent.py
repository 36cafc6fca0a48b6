"""The network of an agent: an embedding of observations, a memory, and two heads, for actions and for the value.

B rows  T time  D width of an observation  C actions
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.data.control import ControlTask
from exlstm.study.control.memories import MemorySize, build_memory

_SMALL = 0.01  # gain of the policy's head: all actions are about as likely at the start


class Judged(NamedTuple):
    """What the network says of a sequence. state: the memory after its last step."""

    logits_BTC: Tensor
    value_BT: Tensor
    state: Any


class ActorCritic(nn.Module):
    """An actor and a critic on one memory. The heads begin orthogonal, everything else as its own module does."""

    def __init__(self, task: ControlTask, kind: str, size: MemorySize, *, embedding: int) -> None:
        super().__init__()
        self.embed = nn.Linear(task.inputs, embedding)
        self.memory = build_memory(kind, embedding, size)
        self.actor = nn.Linear(self.memory.width, task.actions)
        self.critic = nn.Linear(self.memory.width, 1)
        for head, gain in ((self.actor, _SMALL), (self.critic, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)

    def forward(self, observation_BTD: Tensor, state: Any, begins_BT: Tensor) -> Judged:
        """Logits and values of a sequence. begins_BT: the memory of a row is cleared before that observation."""
        x_BTE = torch.tanh(self.embed(observation_BTD))
        y_BTV, state = self.memory(x_BTE, state, begins_BT)
        return Judged(self.actor(y_BTV), self.critic(y_BTV)[..., 0], state)
