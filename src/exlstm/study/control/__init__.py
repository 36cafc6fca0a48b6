"""Control with memory: an actor-critic trained by PPO, with one memory behind its observations.

`memories` has the compared memories, `agent` the network, `rollout` how it acts, `ppo` how it learns, `runs` the runs
of studies. Tasks are in `exlstm.data.control`.
"""

from exlstm.study.control.agent import ActorCritic
from exlstm.study.control.memories import MEMORIES, MemorySize, PolicyMemory, memory_size
from exlstm.study.control.ppo import PPO, PPOConfig, advantages
from exlstm.study.control.rollout import Actor, Rollout, evaluate
from exlstm.study.control.runs import ControlRun, ControlTiming, Recitation

__all__ = [
    "MEMORIES",
    "PPO",
    "Actor",
    "ActorCritic",
    "ControlRun",
    "ControlTiming",
    "MemorySize",
    "PPOConfig",
    "PolicyMemory",
    "Recitation",
    "Rollout",
    "advantages",
    "evaluate",
    "memory_size",
]
