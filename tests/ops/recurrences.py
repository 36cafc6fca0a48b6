"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters: "HK" is [H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64; `prepare` makes of
them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from exlstm.ops.scan import ScanState, scan
from exlstm.ops.selective_scan import SelectiveScanState, selective_scan


class Recurrence(NamedTuple):
    """An op. fast: its backends beside the definition, "recurrent". sizes: of every letter, small and real."""

    op: Callable[..., tuple[Tensor, Any]]
    state: type
    ragged: Mapping[str, str]  # name -> letters behind batch and time
    weights: Mapping[str, str]
    parts: Sequence[str]  # letters of the state's parts behind the batch
    sizes: Mapping[str, tuple[int, int]]
    prepare: Callable[[list[Tensor], float], list[Tensor]] = lambda inputs, scale: inputs
    fast: Sequence[str] = ("numba", "chunkwise")

    @property
    def names(self) -> list[str]:
        """Names of all floating-point inputs, those of the state last."""
        return [*self.ragged, *self.weights, *self.state._fields]

    def make(
        self, B: int, T: int, sizes: Mapping[str, int], *, scale: float = 1.0, seed: int = 0, dtype=torch.float32
    ) -> list[Tensor]:
        """All inputs, those of the state last."""
        generator = torch.Generator().manual_seed(seed)
        leading = [*[(B, T)] * len(self.ragged), *[()] * len(self.weights)]
        letters = [*self.ragged.values(), *self.weights.values()]
        shapes = [(*first, *(sizes[x] for x in word)) for first, word in zip(leading, letters, strict=True)]
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        parts = [(B, *(sizes[x] for x in word)) for word in self.parts]
        state = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in parts]
        return [x.to(dtype) for x in (*self.prepare(draws, scale), *state)]

    def run(self, *x: Tensor, backend: str = "recurrent", **rows: Any) -> tuple[Tensor, Any]:
        """The op, as `accuracy` calls it: with all inputs in one row."""
        count = len(self.ragged) + len(self.weights)
        return self.op(*x[:count], self.state(*x[count:]), backend=backend, **rows)

    @property
    def small(self) -> dict[str, int]:
        """A small size of every letter, for tests of one case."""
        return {letter: small for letter, (small, _) in self.sizes.items()}

    @property
    def real(self) -> dict[str, int]:
        """A size that models have."""
        return {letter: real for letter, (_, real) in self.sizes.items()}


def of_weights(op, count, places):
    """An op whose weights are at these places of its arguments; here they follow the `count` others."""

    def run(*x, **options):
        ragged, weights, state = list(x[:count]), x[count:-1], x[-1]
        for place, weight in zip(places, weights, strict=True):
            ragged.insert(place, weight)
        return op(*ragged, state, **options)

    return run


RECURRENCES = {
    "scan": Recurrence(
        scan,
        ScanState,
        {"a": "E", "b": "E"},
        {},
        ["E"],
        {"E": (5, 300)},
        lambda x, scale: [torch.sigmoid(2 + scale * x[0]), x[1]],
    ),
    "selective_scan": Recurrence(
        of_weights(selective_scan, 4, (2, 5)),
        SelectiveScanState,
        {"x": "E", "dt": "E", "b": "Z", "c": "Z"},
        {"a": "EZ", "skip": "E"},
        ["EZ"],
        {"E": (5, 100), "Z": (3, 16)},
        lambda x, scale: [x[0], softplus(scale * x[1] - 1), x[2], x[3], -torch.exp(x[4]), x[5]],
    ),
    "selective_scan softplus": Recurrence(
        of_weights(partial(selective_scan, softplus=True), 4, (2, 5)),
        SelectiveScanState,
        {"x": "E", "dt": "E", "b": "Z", "c": "Z"},
        {"a": "EZ", "skip": "E"},
        ["EZ"],
        {"E": (5, 100), "Z": (3, 16)},
        lambda x, scale: [x[0], scale * x[1] - 1, x[2], x[3], -torch.exp(x[4]), x[5]],
    ),
}
