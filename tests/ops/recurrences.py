"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters and numbers: "4HK" is [4, H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64;
`prepare` makes of them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from exlstm.ops.assoc_lstm import AssocLSTMState, assoc_lstm
from exlstm.ops.bounded_memory import AveragedMemoryState, BoundedMemoryState, averaged_memory, bounded_memory
from exlstm.ops.delta_rule import DeltaState, delta_rule, dplr_rule
from exlstm.ops.ema import EMAState, ema
from exlstm.ops.features import elu1
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.gru import GRUState, gru
from exlstm.ops.linear_attention import (
    LinearAttentionState,
    NormalizedState,
    linear_attention,
    normalized_linear_attention,
)
from exlstm.ops.long_conv import LongConvState, long_conv
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.ops.lti import LTIParameters, LTIState, lti
from exlstm.ops.matrix_rnn import MatrixRNNState, matrix_rnn
from exlstm.ops.mult_lstm import MultLSTMState, mult_lstm
from exlstm.ops.scan import RotatingState, ScanState, rotating_scan, scan
from exlstm.ops.selective_scan import SelectiveScanState, selective_scan
from exlstm.ops.wkv4 import WKV4State, wkv4


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


HEADS = {"H": (2, 2), "K": (5, 64), "V": (6, 40)}


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1: with others the delta rule explodes."""
    return torch.nn.functional.normalize(x, dim=-1)


def for_delta_rule(x: list[Tensor], scale: float) -> list[Tensor]:
    """Keys of length 1, beta from 0 to 2, decays that are mostly near 1."""
    q, k, v, beta, *g = x
    return [q, unit(k), v, 2 * torch.sigmoid(scale * beta), *(torch.nn.functional.logsigmoid(3 + scale * t) for t in g)]


def for_dplr_rule(x: list[Tensor], scale: float) -> list[Tensor]:
    """What is read of length 1, what is written for it against that, as in RWKV-7."""
    q, k, v, a, b, g = x
    a = unit(a)
    return [q, k, v, a, -a * torch.sigmoid(scale * b), torch.nn.functional.logsigmoid(3 + scale * g)]


def undecayed(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: DeltaState, **options: Any) -> Any:
    """The delta rule without a decay."""
    return delta_rule(q, k, v, beta, None, state, **options)


RULE = {"q": "HK", "k": "HK", "v": "HV", "beta": "H"}


def with_log_decays(x: list[Tensor], scale: float) -> list[Tensor]:
    """Of inputs q, k, v, g and others."""
    return [*x[:3], torch.nn.functional.logsigmoid(2 + scale * x[3]), *x[4:]]


def with_bonus(q, k, v, g, u, state, **options):
    """The op, whose bonus has a name."""
    return gated_linear_attention(q, k, v, g, state, bonus_HK=u, **options)


def turning(r, re, im, theta, state, **options: Any) -> tuple[Tensor, RotatingState]:
    """`rotating_scan` with both parts of h in one tensor."""
    re_BTE, im_BTE, state = rotating_scan(r, theta, re, im, state, **options)
    return torch.stack([re_BTE, im_BTE], dim=2), state


class Average(NamedTuple):
    """The state of wkv in numbers that do not depend on its unit: nothing has been seen where the total is 0."""

    mean_BE: Tensor
    total_BE: Tensor


def wkv4_in_true_values(*x: Any, **options: Any) -> tuple[Tensor, Average]:
    """`wkv4` from sums in units of 1. After it the total is a logarithm."""
    *inputs, (mean_BE, total_BE) = x
    den_BE = total_BE.abs()
    before = WKV4State(mean_BE * den_BE, den_BE, torch.zeros_like(den_BE))
    y_BTE, after = wkv4(*inputs, before, **options)
    return y_BTE, Average(after.num_BE / after.den_BE, after.p_BE + torch.log(after.den_BE))


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


class GRUHeads(NamedTuple):
    """The state of the GRU by heads."""

    h_BHV: Tensor


def gru_by_heads(x, w, u, b, c, state, **options: Any) -> tuple[Tensor, GRUHeads]:
    """`gru` with its weights by gates and heads."""
    weights = w.flatten(0, 2), u.flatten(0, 2), b.flatten(), c.flatten()
    h_BTV, after = gru(x, *weights, GRUState(state.h_BHV.flatten(1)), **options)
    return h_BTV, GRUHeads(after.h_BV.view_as(state.h_BHV))


class LSTMHeads(NamedTuple):
    """The state of the LSTM by heads."""

    h_BHV: Tensor
    c_BHV: Tensor


def lstm_by_heads(x, w, u, b, state, **options: Any) -> tuple[Tensor, LSTMHeads]:
    """`lstm` with its weights by gates and heads."""
    weights = w.flatten(0, 2), u.flatten(0, 2), b.flatten()
    h_BTV, after = lstm(x, *weights, LSTMState(*(part.flatten(1) for part in state)), **options)
    return h_BTV, LSTMHeads(*(part.view_as(state.h_BHV) for part in after))


def lti_inputs(x, scale):
    """u, poles, step sizes, c and skip; scale spreads poles, from those that forget at once to those that hardly do."""
    u, log_re, im, log_dt, *rest = x
    return [u, min(scale, 3.0) * log_re - 0.7, 3 * min(scale, 3.0) * im, 0.5 * log_dt - 2, *rest]


def shared_poles(u, log_re, im, c_re, c_im, skip, state, **options):
    """One set of poles for all channels, as in GSS; here in the bilinear form."""
    return lti(u, LTIParameters(log_re[None], im[None], None, c_re, c_im, skip), state, method="bilinear", **options)


def one_system(u, log_re, im, log_dt, c_re, c_im, skip, state, **options):
    """One system for all channels, as in BiGS."""
    one = LTIParameters(*(t[None] for t in (log_re, im, log_dt, c_re, c_im, skip)))
    return lti(u, one, state, **options)


class FullCache(NamedTuple):
    """The cache of a long convolution in which every entry has been seen."""

    u_BSE: Tensor


def convolution(u, taps, state, **options):
    """A long convolution with as much of the cache as the taps reach."""
    (B, S, _), size = state.u_BSE.shape, len(taps) - 1
    seen = torch.full((B,), min(S, size))
    y, after = long_conv(u, taps, LongConvState(state.u_BSE[:, max(0, S - size) :], seen), **options)
    # with a single tap nothing of the cache is read, and its gradient is zero
    return y + state.u_BSE[:, :0].sum().to(y.dtype), FullCache(after.u_BSE)


SYSTEM = {"log_re": "EZ", "im": "EZ", "log_dt": "E", "c_re": "EZ", "c_im": "EZ", "skip": "E"}


def of_weights(op, count, places):
    """An op whose weights are at these places of its arguments; here they follow the `count` others."""

    def run(*x, **options):
        ragged, weights, state = list(x[:count]), x[count:-1], x[-1]
        for place, weight in zip(places, weights, strict=True):
            ragged.insert(place, weight)
        return op(*ragged, state, **options)

    return run


def log_decays(x: Tensor, scale: float) -> Tensor:
    """Logarithms of decays that are mostly near 1; a large scale makes them extreme."""
    return torch.nn.functional.logsigmoid(2 + scale * x)


def positive(state: NormalizedState) -> NormalizedState:
    """A sum of features that are not negative; of zeros zeros."""
    return NormalizedState(state.s_BHKV, state.n_BHK.square())


def of_averages(state: AveragedMemoryState) -> AveragedMemoryState:
    """Sums whose averages are given, and positive sums of weights; of zeros zeros."""
    den_BHQ = state.den_BHQ.square()
    return AveragedMemoryState(state.k_BHKQ * den_BHQ[..., None, :], state.v_BHQV * den_BHQ[..., None], den_BHQ)


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
