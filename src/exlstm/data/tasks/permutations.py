"""State tracking by composition of permutations: the word problems of the groups S3 and S5.

S3 can be solved by a few parity-like counters, S5 cannot: its word problem is complete for NC1 (Barrington 1989), which
is beyond models whose state changes linearly and diagonally. So it is from two generators, whose table of products has
240 entries instead of 14,400, and whose short strings have few products.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from math import factorial

import numpy as np

from exlstm.data.tasks.contract import Ints, Numbers, Task, prefix_task


@cache
def _table(degree: int) -> Ints:
    """[g, h]: the number of the permutation "first g, then h". Permutations are numbered in lexicographic order."""
    images = np.array(list(itertools.permutations(range(degree))))
    weights = degree ** np.arange(degree)
    number = np.zeros(degree**degree, dtype=np.int64)
    number[images @ weights] = np.arange(len(images))
    # [g, h, i]: the image under h of the image of i under g
    return number[images[:, images].transpose(1, 0, 2) @ weights]


def _composition(name: str, degree: int, factors: Sequence[int]) -> Task:
    """The product of all permutations so far, which are drawn from the factors, given by their numbers.

    (0 2 1) (1 0 2) (0 2 1) | (2 1 0)      written as the images of 0, 1, 2; tokens are 1, 2, ... in lexicographic order
    """
    order = factorial(degree)

    def symbols(numbers: Numbers, T: int) -> Ints:
        return 1 + np.asarray(factors)[numbers.below("symbols", len(factors), T)]

    def labels(tokens_BT: Ints) -> Ints:
        product = np.zeros(len(tokens_BT), dtype=np.int64)
        products = np.zeros_like(tokens_BT)
        for t, symbol in enumerate(tokens_BT.T):
            # padding counts as the identity; its targets are ignored
            product = _table(degree)[product, np.maximum(symbol - 1, 0)]
            products[:, t] = product
        return 1 + products

    return prefix_task(name=name, vocab_size=1 + order, chance=1 / order, shortest=2, symbols=symbols, labels=labels)


s3 = _composition("s3", 3, range(6))
s5 = _composition("s5", 5, range(120))
# (1 0 2 3 4), which exchanges two, and (1 2 3 4 0), the cycle of all five
s5_generators = _composition("s5_generators", 5, (24, 33))
