"""The number of heads of a layer, where none is given."""

from exlstm.rnn.arguments import check_positive

CHOICES = (4, 2)  # the paper has 4
LEAST_UNITS = 16  # of a head: vectors of the processor


def heads_of(hidden_size: int, num_heads: int | None) -> int:
    """num_heads, if it divides hidden_size; None: 4 or 2, if a head then has enough units, or 1.

    Raises TypeError or ValueError for another number.
    """
    if num_heads is None:
        fitting = (n for n in CHOICES if hidden_size % n == 0 and hidden_size // n >= LEAST_UNITS)
        return next(fitting, 1)
    check_positive("num_heads", num_heads)
    if hidden_size % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must divide hidden_size, {hidden_size}.")
    return num_heads
