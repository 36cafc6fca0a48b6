"""Stack manipulation (Deletang et al. 2023, in the encoding of Beck et al. 2024, appendix B.1.1)."""

import numpy as np

from exlstm.data.tasks.contract import PAD, Ints, Numbers, Rows, Task

_ACT, _POP, _SYMBOL, _PUSH = 1, 2, 3, 7
_SYMBOLS = 4


def _rows(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Rows of a stack from bottom to top, pushes (+) and pops (-), and the resulting stack from top to bottom.

    c a - +d +b - > | d c      tokens: > = 1, - = 2, symbols a to d = 3 to 6, +a to +d = 7 to 10

    A row of 2 m + 1 tokens puts m symbols onto the stack. 1 to m of them are there at the start, each number equally
    likely, and the others are pushed. 0 to m - 1 are popped, each number equally likely, in a random order that never
    empties the stack; so every pop is valid and every row has an answer.
    """
    total = lengths_B // 2
    size = 1 + numbers.below("start", total[:, None], 1)[:, 0]
    pops = numbers.below("pops", total[:, None], 1)[:, 0]
    start, pushes, asked = size, total - size, total + pops
    T, rows = int(lengths_B.max()), np.arange(len(lengths_B))
    symbols = numbers.below("symbols", _SYMBOLS, T)
    turns = numbers.bits("turns", T)
    place = np.arange(T)
    tokens_BT = np.where(place < start[:, None], _SYMBOL + symbols, PAD)
    stack = tokens_BT.copy()
    for t in range(int(start.min()), int(asked.max())):
        acting = (t >= start) & (t < asked)
        turn = (turns[:, t] % np.maximum(pops + pushes, 1).astype(np.uint64)).astype(np.int64)
        pop = acting & (pops > 0) & (size > 1) & ((turn < pops) | (pushes == 0))
        push = acting & ~pop
        tokens_BT[pop, t] = _POP
        tokens_BT[push, t] = _PUSH + symbols[push, t]
        stack[rows[push], size[push]] = _SYMBOL + symbols[push, t]
        size, pops, pushes = size + push - pop, pops - pop, pushes - push
    tokens_BT[rows, asked] = _ACT
    answer_BT = (place > asked[:, None]) & (place < lengths_B[:, None])
    depth = np.where(answer_BT, size[:, None] - (place - asked[:, None]), 0)
    return Rows(np.where(answer_BT, np.take_along_axis(stack, depth, axis=1), tokens_BT), answer_BT)


stack_manipulation = Task(
    name="stack_manipulation", vocab_size=11, chance=1 / _SYMBOLS, shortest=3, stride=2, rows=_rows
)
