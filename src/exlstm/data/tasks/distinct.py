"""Set (Beck et al. 2024, appendix B.1.1): the distinct symbols of a string, in the order in which they first occur."""

import numpy as np

from exlstm.data.tasks.contract import PAD, Ints, Numbers, Rows, Task

_ACT = 1
_SYMBOLS = 126


def _rows(numbers: Numbers, lengths_B: Ints) -> Rows:
    """9 3 9 5 3 > | 9 3 5      tokens: > = 1, symbols 2 to 127

    Symbols are drawn independently until question and answer fill the row. A new symbol adds two tokens; where one
    place is left, an earlier symbol is repeated instead.
    """
    T = int(lengths_B.max())
    rows = np.arange(len(lengths_B))
    drawn = 2 + numbers.below("symbols", _SYMBOLS, T)
    again = numbers.bits("again", T)
    tokens_BT = np.full((len(rows), T), PAD)
    found = np.full_like(tokens_BT, PAD)
    seen = np.zeros((len(rows), _SYMBOLS + 2), dtype=bool)
    size, kinds = np.zeros_like(rows), np.zeros_like(rows)
    for t in range(T):
        left = lengths_B - 1 - size - kinds
        if not (left > 0).any():
            break
        symbol = drawn[:, t]
        repeated = tokens_BT[rows, (again[:, t] % np.uint64(max(t, 1))).astype(np.int64)]
        symbol = np.where((left == 1) & ~seen[rows, symbol], repeated, symbol)
        active = left > 0
        new = active & ~seen[rows, symbol]
        tokens_BT[active, t] = symbol[active]
        found[rows[new], kinds[new]] = symbol[new]
        seen[rows[new], symbol[new]] = True
        size, kinds = size + active, kinds + new
    place = np.arange(T)
    tokens_BT[rows, size] = _ACT
    answer_BT = (place > size[:, None]) & (place < lengths_B[:, None])
    answers = np.take_along_axis(found, np.where(answer_BT, place - size[:, None] - 1, 0), axis=1)
    return Rows(np.where(answer_BT, answers, tokens_BT), answer_BT)


distinct = Task(name="set", vocab_size=128, chance=1 / _SYMBOLS, shortest=3, rows=_rows)
