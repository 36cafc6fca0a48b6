"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters and numbers: "4HK" is [4, H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64;
`prepare` makes of them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.assoc_lstm import AssocLSTMState, assoc_lstm
from exlstm.ops.matrix_rnn import MatrixRNNState, matrix_rnn
from exlstm.ops.mult_lstm import MultLSTMState, mult_lstm
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
        shapes = [(*first, *shape(word, sizes)) for first, word in zip(leading, letters, strict=True)]
        draws = [torch.randn(size, generator=generator, dtype=torch.float64) for size in shapes]
        parts = [(B, *shape(word, sizes)) for word in self.parts]
        state = [torch.randn(size, generator=generator, dtype=torch.float64) for size in parts]
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


def shape(word: str, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of a word's letters; digits are sizes."""
    return [int(x) if x.isdigit() else sizes[x] for x in word]


def associative(x: Tensor, r: Tensor, state: AssocLSTMState, **options: Any) -> tuple[Tensor, AssocLSTMState]:
    """The op, with permutations."""
    C, N = state.c_BCPN.shape[1], x.shape[3]
    lots_CN = torch.rand(C, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return assoc_lstm(x, r, lots_CN.argsort(1), state, **options)


def contracting(ragged: int) -> Callable[[list[Tensor], float], list[Tensor]]:
    """Gates times the scale, and recurrent weights that are no larger than a trained net's: none is chaotic."""

    def prepare(x: list[Tensor], scale: float) -> list[Tensor]:
        inputs = [*x[: ragged - 1], scale * x[ragged - 1]]
        return [*inputs, *(weight / (2 * weight.shape[-1] ** 0.5) for weight in x[ragged:])]

    return prepare


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
    "mult_lstm": Recurrence(
        mult_lstm,
        MultLSTMState,
        {"p": "HV", "x": "4HV"},
        {"m": "HVV", "r": "4HVV"},
        ["HV", "HV"],
        {"H": (2, 2), "V": (5, 50)},
        contracting(2),
        ("numba",),
    ),
    "assoc_lstm": Recurrence(
        associative,
        AssocLSTMState,
        {"x": "9N"},
        {"r": "9N2N"},
        ["2N", "C2N"],
        {"C": (2, 4), "N": (5, 40)},
        contracting(1),
        ("numba",),
    ),
    "matrix_rnn": Recurrence(
        matrix_rnn,
        MatrixRNNState,
        {"q": "HK", "k": "HK", "v": "HV", "f": "H"},
        {"r": "HVV"},
        ["HKV"],
        {"H": (2, 2), "K": (3, 20), "V": (5, 24)},
        contracting(4),
        ("numba",),
    ),
    "matrix_rnn elman": Recurrence(
        lambda q, k, v, r, state, **options: matrix_rnn(q, k, v, None, r, state, **options),
        MatrixRNNState,
        {"q": "HK", "k": "HK", "v": "HV"},
        {"r": "HVV"},
        ["HKV"],
        {"H": (2, 2), "K": (3, 20), "V": (5, 24)},
        contracting(3),
        ("numba",),
    ),
    "matrix_rnn no mixing": Recurrence(
        lambda q, k, v, f, state, **options: matrix_rnn(q, k, v, f, None, state, **options),
        MatrixRNNState,
        {"q": "HK", "k": "HK", "v": "HV", "f": "H"},
        {},
        ["HKV"],
        {"H": (2, 2), "K": (3, 20), "V": (5, 24)},
        contracting(4),
        ("numba",),
    ),
}
