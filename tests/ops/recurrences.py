"""Every recurrence of the rivals as a row of a table, for one battery of tests: `test_recurrences.py`.

Shapes are letters: "HK" is [H, K] behind batch and time. Inputs are drawn from N(0, 1) in float64; `prepare` makes of
them what the op takes, such as factors between 0 and 1; its `scale` says how extreme gates are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.long_conv import LongConvState, long_conv
from exlstm.ops.lti import LTIParameters, LTIState, lti
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
    "long_conv": Recurrence(
        convolution,
        FullCache,
        {"u": "E"},
        {"taps": "RE"},
        ["SE"],
        {"E": (3, 24), "R": (4, 100), "S": (3, 60)},
        fast=("chunkwise", "fft"),
    ),
}
