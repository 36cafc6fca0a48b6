"""Tasks of control that need a memory, as rows of episodes: numpy, with seeds, written from their published rules.

rows = Environments(CONTROL_TASKS["memory_len_10"], 64, seed=0, split="train")
observation_BD = rows.first()
observation_BD, reward_B, begins_B = rows.step(action_B)
"""

from exlstm.data.control.cards import RepeatPrevious
from exlstm.data.control.cart_pole import HiddenCartPole
from exlstm.data.control.chain import MemoryChain
from exlstm.data.control.contract import ControlStep, ControlTask, Environments
from exlstm.data.control.maze import TMaze

__all__ = [
    "CONTROL_TASKS",
    "ControlStep",
    "ControlTask",
    "Environments",
    "HiddenCartPole",
    "MemoryChain",
    "RepeatPrevious",
    "TMaze",
]

_TASKS: tuple[ControlTask, ...] = (
    *(MemoryChain(length=length) for length in (3, 10, 30, 100)),
    *(RepeatPrevious(lag=lag, decks=decks) for lag, decks in ((4, 1), (32, 2), (64, 3))),
    *(TMaze(length=length) for length in (5, 10, 30)),
    HiddenCartPole(),
)
CONTROL_TASKS: dict[str, ControlTask] = {task.name: task for task in _TASKS}
