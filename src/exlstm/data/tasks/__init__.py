"""Tasks by name: formal languages, associative recall, nearest neighbours, state tracking.

A training batch:

    task_batch(TASKS["parity"], seed=0, split="train", first=0, size=256, min_length=3, max_length=40)
"""

from exlstm.data.tasks.arithmetic import modular_arithmetic, modular_arithmetic_brackets, solve_equation
from exlstm.data.tasks.contract import Task, task_batch
from exlstm.data.tasks.counting import majority, majority_count
from exlstm.data.tasks.distinct import distinct
from exlstm.data.tasks.nearest_neighbour import RealBatch, nearest_neighbour, nearest_neighbours
from exlstm.data.tasks.permutations import s3, s5, s5_generators
from exlstm.data.tasks.recall import recall
from exlstm.data.tasks.regular import cycle_navigation, even_pairs, parity
from exlstm.data.tasks.scores import (
    LengthScore,
    best_constant,
    by_length,
    scaled_accuracy,
    sequence_accuracy,
    token_accuracy,
)
from exlstm.data.tasks.stack import stack_manipulation
from exlstm.data.tasks.strings import bucket_sort, missing_duplicate, odds_first, repetition, reverse_string

__all__ = [
    "FORMAL_LANGUAGES",
    "TASKS",
    "LengthScore",
    "RealBatch",
    "Task",
    "best_constant",
    "by_length",
    "nearest_neighbours",
    "recall",
    "scaled_accuracy",
    "sequence_accuracy",
    "task_batch",
    "token_accuracy",
]

_FORMAL = (
    *(bucket_sort, missing_duplicate, odds_first, repetition),  # context-sensitive
    *(modular_arithmetic_brackets, solve_equation, reverse_string, stack_manipulation),  # deterministic context-free
    *(cycle_navigation, even_pairs, modular_arithmetic, parity),  # regular
    *(majority, majority_count, distinct),
)
# the numbers of pairs of the paper's experiments at its vocabulary, and those of the small size at a small one
_RECALL = (
    *(recall(pairs=pairs) for pairs in (4, 8, 16, 48, 96, 256)),
    *(recall(pairs=pairs, vocab_size=512) for pairs in (4, 8, 16, 48)),
    recall(pairs=4, vocab_size=64),  # for models of few channels, which cannot tell more tokens apart
)

FORMAL_LANGUAGES: tuple[str, ...] = tuple(task.name for task in _FORMAL)
TASKS: dict[str, Task] = {task.name: task for task in (*_FORMAL, *_RECALL, nearest_neighbour, s3, s5, s5_generators)}
