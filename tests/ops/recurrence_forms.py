"""Forms of the rivals' recurrences for the table of `recurrences.py`: preparation of inputs, and wrappers of ops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.assoc_lstm import AssocLSTMState, assoc_lstm
from exlstm.ops.bounded_memory import AveragedMemoryState
from exlstm.ops.delta_rule import DeltaState, delta_rule
from exlstm.ops.gated_linear_attention import gated_linear_attention
from exlstm.ops.gru import GRUState, gru
from exlstm.ops.linear_attention import NormalizedState
from exlstm.ops.long_conv import LongConvState, long_conv
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.ops.lti import LTIParameters, lti
from exlstm.ops.scan import RotatingState, rotating_scan
from exlstm.ops.wkv4 import WKV4State, wkv4


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
