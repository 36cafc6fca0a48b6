"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters and numbers: "4HK" is [4, H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64;
`prepare` makes of them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from recurrence_forms import (
    Average,
    FullCache,
    GRUHeads,
    LSTMHeads,
    associative,
    contracting,
    convolution,
    for_delta_rule,
    for_dplr_rule,
    gru_by_heads,
    log_decays,
    lstm_by_heads,
    lti_inputs,
    of_averages,
    of_weights,
    one_system,
    positive,
    shared_poles,
    turning,
    undecayed,
    with_bonus,
    with_log_decays,
    wkv4_in_true_values,
)
from torch import Tensor
from torch.nn.functional import softplus

from exlstm.ops.assoc_lstm import AssocLSTMState
from exlstm.ops.bounded_memory import AveragedMemoryState, BoundedMemoryState, averaged_memory, bounded_memory
from exlstm.ops.delta_rule import DeltaState, delta_rule, dplr_rule
from exlstm.ops.ema import EMAState, ema
from exlstm.ops.features import elu1
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.linear_attention import (
    LinearAttentionState,
    NormalizedState,
    linear_attention,
    normalized_linear_attention,
)
from exlstm.ops.lti import LTIParameters, LTIState, lti
from exlstm.ops.matrix_rnn import MatrixRNNState, matrix_rnn
from exlstm.ops.mult_lstm import MultLSTMState, mult_lstm
from exlstm.ops.scan import RotatingState, ScanState, scan
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


HEADS = {"H": (2, 2), "K": (5, 64), "V": (6, 40)}
RULE = {"q": "HK", "k": "HK", "v": "HV", "beta": "H"}
SYSTEM = {"log_re": "EZ", "im": "EZ", "log_dt": "E", "c_re": "EZ", "c_im": "EZ", "skip": "E"}
SLOTS = {"H": (1, 2), "K": (3, 32), "V": (4, 40), "Q": (3, 48)}

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
    "delta_rule": Recurrence(undecayed, DeltaState, RULE, {}, ["HKV"], HEADS, for_delta_rule),
    "delta_rule with a decay": Recurrence(
        delta_rule, DeltaState, RULE | {"g": "H"}, {}, ["HKV"], HEADS, for_delta_rule
    ),
    "delta_rule with decays of channels": Recurrence(
        delta_rule, DeltaState, RULE | {"g": "HK"}, {}, ["HKV"], HEADS, for_delta_rule
    ),
    "dplr_rule": Recurrence(
        dplr_rule,
        DeltaState,
        {"q": "HK", "k": "HK", "v": "HV", "a": "HK", "b": "HK", "g": "HK"},
        {},
        ["HKV"],
        HEADS,
        for_dplr_rule,
    ),
    "decay per key": Recurrence(
        gated_linear_attention,
        GatedLinearAttentionState,
        {"q": "HK", "k": "HK", "v": "HV", "g": "HK"},
        {},
        ["HKV"],
        {"H": (2, 2), "K": (5, 64), "V": (6, 64)},
        with_log_decays,
    ),
    "decay per key, bonus": Recurrence(
        with_bonus,
        GatedLinearAttentionState,
        {"q": "HK", "k": "HK", "v": "HV", "g": "HK"},
        {"bonus": "HK"},
        ["HKV"],
        {"H": (2, 2), "K": (6, 32), "V": (5, 32)},
        with_log_decays,
    ),
    "decay per value": Recurrence(
        partial(gated_linear_attention, axis="value"),
        GatedLinearAttentionState,
        {"q": "HK", "k": "HK", "v": "HV", "g": "HV"},
        {},
        ["HKV"],
        {"H": (1, 2), "K": (5, 48), "V": (8, 80)},
        with_log_decays,
    ),
    "rotating_scan": Recurrence(
        turning,
        RotatingState,
        {"r": "E", "re": "E", "im": "E"},
        {"theta": "E"},
        ["E", "E"],
        {"E": (5, 300)},
        lambda x, scale: [torch.sigmoid(2 + scale * x[0]), *x[1:3], 2 * x[3]],
    ),
    "wkv4": Recurrence(
        wkv4_in_true_values,
        Average,
        {"k": "E", "v": "E"},
        {"w": "E", "u": "E"},
        ["E", "E"],
        {"E": (5, 300)},
        lambda x, scale: [scale * x[0], x[1], -softplus(scale * x[2]), x[3]],
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
    "lstm": Recurrence(
        lstm_by_heads,
        LSTMHeads,
        {"x": "D"},
        {"w": "4HVD", "u": "4HVV", "b": "4HV"},
        ["HV", "HV"],
        {"H": (2, 2), "V": (5, 50), "D": (4, 60)},
        contracting(1),
        ("numba",),
    ),
    "gru": Recurrence(
        gru_by_heads,
        GRUHeads,
        {"x": "D"},
        {"w": "3HVD", "u": "3HVV", "b": "3HV", "c": "HV"},
        ["HV"],
        {"H": (2, 2), "V": (5, 50), "D": (4, 60)},
        contracting(1),
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
    "lti": Recurrence(
        lambda u, *x, **options: lti(u, LTIParameters(*x[:-1]), x[-1], **options),
        LTIState,
        {"u": "E"},
        SYSTEM,
        ["EZ", "EZ"],
        {"E": (3, 40), "Z": (4, 32)},
        lti_inputs,
    ),
    "lti shared poles": Recurrence(
        shared_poles,
        LTIState,
        {"u": "E"},
        {"log_re": "Z", "im": "Z", "c_re": "EZ", "c_im": "EZ", "skip": "E"},
        ["EZ", "EZ"],
        {"E": (3, 40), "Z": (4, 32)},
        lambda x, scale: [x[0], min(scale, 3.0) * x[1] - 2, *x[2:]],
    ),
    "lti one system": Recurrence(
        one_system,
        LTIState,
        {"u": "E"},
        {"log_re": "Z", "im": "Z", "log_dt": "", "c_re": "Z", "c_im": "Z", "skip": ""},
        ["EZ", "EZ"],
        {"E": (3, 40), "Z": (4, 32)},
        lti_inputs,
    ),
    "ema": Recurrence(
        ema,
        EMAState,
        {"u": "E"},
        {"factor": "EZ", "weight": "EZ", "skip": "E"},
        ["EZ"],
        {"E": (3, 40), "Z": (4, 16)},
        lambda x, scale: [x[0], torch.sigmoid(1 + scale * x[1]), *x[2:]],
        ("chunkwise",),
    ),
    "long_conv": Recurrence(
        convolution,
        FullCache,
        {"u": "E"},
        {"taps": "RE"},
        ["SE"],
        {"E": (3, 24), "R": (4, 100), "S": (3, 60)},
        fast=("chunkwise", "fft"),
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
    "bounded_memory": Recurrence(
        lambda q, k, v, g, w, u, state, **options: bounded_memory(
            q, k, v, g, state, write_BTHQ=w, value_write_BTHQ=u, **options
        ),
        BoundedMemoryState,
        {"q": "HK", "k": "HK", "v": "HV", "g": "HQ", "w": "HQ", "u": "HQ"},
        {},
        ["HKQ", "HQV"],
        SLOTS,
        with_log_decays,
    ),
    "averaged_memory": Recurrence(
        lambda *x, **options: averaged_memory(*x[:4], of_averages(x[4]), **options),
        AveragedMemoryState,
        {"q": "HK", "k": "HK", "v": "HV", "s": "HQ"},
        {},
        ["HKQ", "HQV", "HQ"],
        SLOTS,
        lambda x, scale: [*x[:3], scale * x[3]],
        fast=("numba",),
    ),
}
