"""A kernel that counts how often each of its items is computed, for tests of what runs kernels."""

import torch

from exlstm.runtime.cpu.atomics import add
from exlstm.runtime.cpu.kernel import I64, kernel
from exlstm.runtime.cpu.region import address_of_bytes


@kernel()
def count_items(first: int, last: int, N: int, work: int, counts_N: I64, spent_N: I64) -> None:
    """Adds one to the counter of each item, after some work."""
    for item in range(first, last):
        for n in range(work):
            add(spent_N + 8 * item, n)
        add(counts_N + 8 * item, 1)


class Counting:
    """A task of so many items: its tensors, and the block of arguments that compiled code reads."""

    def __init__(self, items, work=0):
        self.items, self.counts, self.spent = items, torch.zeros(items).long(), torch.zeros(items).long()
        self.arguments = items, work, self.counts, self.spent
        self.block = count_items.checked(self.arguments)

    @property
    def address(self):
        return address_of_bytes(self.block)

    def all_are(self, number):
        return bool((self.counts == number).all())
