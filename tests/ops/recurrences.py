"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters: "HK" is [H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64; `prepare` makes of
them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.features import elu1
from exlstm.ops.linear_attention import (
    LinearAttentionState,
    NormalizedState,
    linear_attention,
    normalized_linear_attention,
)
from exlstm.ops.scan import ScanState, scan


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


def log_decays(x: Tensor, scale: float) -> Tensor:
    """Logarithms of decays that are mostly near 1; a large scale makes them extreme."""
    return torch.nn.functional.logsigmoid(2 + scale * x)


def positive(state: NormalizedState) -> NormalizedState:
    """A sum of features that are not negative; of zeros zeros."""
    return NormalizedState(state.s_BHKV, state.n_BHK.square())


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
    "linear_attention": Recurrence(
        lambda q, k, v, g, write, state, **options: linear_attention(q, k, v, g, state, write_BTH=write, **options),
        LinearAttentionState,
        {"q": "HK", "k": "HK", "v": "HV", "g": "H", "write": "H"},
        {},
        ["HKV"],
        {"H": (2, 3), "K": (3, 40), "V": (4, 24)},
        lambda x, scale: [*x[:3], log_decays(x[3], scale), x[4]],
    ),
    "linear_attention fixed": Recurrence(
        linear_attention,
        LinearAttentionState,
        {"q": "HK", "k": "HK", "v": "HV"},
        {"g": "H"},
        ["HKV"],
        {"H": (2, 3), "K": (3, 40), "V": (4, 24)},
        lambda x, scale: [*x[:3], log_decays(x[3], scale)],
    ),
    "normalized_linear_attention": Recurrence(
        lambda *x, **options: normalized_linear_attention(*x[:3], positive(x[3]), **options),
        NormalizedState,
        {"q": "HK", "k": "HK", "v": "HV"},
        {},
        ["HKV", "HK"],
        {"H": (2, 3), "K": (3, 40), "V": (4, 24)},
        lambda x, scale: [elu1(x[0]), elu1(x[1]), x[2]],
    ),
}
