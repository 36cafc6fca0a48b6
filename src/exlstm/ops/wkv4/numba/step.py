"""One step of wkv for neighboring channels, forward and backward, written in LLVM's vectors.

The state is mean = num / den, den and p. Then nothing cancels in the backward, where the share of what was before and
the share of a step are factors:

    y = (1 - o) mean + o v                         o = e^(u + k) / (den + e^(u + k)), in units of e^p
    mean' = (1 - s) mean + s v                     s the same of what is written
    dmean = (1 - o) dy + (1 - s) dmean'
    dlog den = (1 - s) (dlog den' - s dmean' (v - mean)) - o (1 - o) dy (v - mean)

A step has two exponentials a channel: of the two weights in a sum, the larger is 1. Where p goes from p to p + w, the
sum is rounded; what was rounded off goes into the decay.
"""

from typing import Any, NamedTuple

from exlstm.runtime.cpu.memory import SIZE
from exlstm.runtime.cpu.simd import SimdValue, exp_below, where
from exlstm.runtime.cpu.vectors import Vectors, elementwise

ITEM_CHANNELS = 256  # of an item, at most: a span's states are 48 KB
ROW = SIZE * ITEM_CHANNELS  # bytes from one part of an item's state to the next
FRESH = 1e30  # how far a key is above a unit where nothing was seen


class Shares(NamedTuple):
    """Of a step: the shares of what was before and of its own value, in its output and afterwards; den and p after."""

    past: SimdValue
    own: SimdValue
    kept: SimdValue
    written: SimdValue
    den: SimdValue
    p: SimdValue


def larger_is_one(above: SimdValue) -> tuple[SimdValue, SimdValue]:
    """e^-above and 1, or 1 and e^above."""
    less = exp_below(-abs(above))
    return where(above >= 0.0, less, 1.0), where(above >= 0.0, 1.0, less)


def shares_of(key: SimdValue, w: SimdValue, u: SimdValue, den: SimdValue, p: SimdValue) -> Shares:
    """The shares of a step, from den and p before it."""
    above = where(den.zero(), FRESH, key - p)
    past, now = larger_is_one(above + u)
    rise = above - w
    decay, write = larger_is_one(rise)
    faded = p + w
    decay = where(rise >= 0.0, decay, 1.0 + (w - (faded - p)))
    past, decay = past * den, decay * den
    read, total = 1.0 / (past + now), decay + write
    after = 1.0 / total
    return Shares(past * read, now * read, decay * after, write * after, total, where(rise >= 0.0, key, faded))


class Parts:
    """The numbers of a vector's channels in rows of ITEM_CHANNELS at an address: of a state, or gradients."""

    def __init__(self, vectors: Vectors, address: Any) -> None:
        self.vectors, self.address = vectors, address

    def __getitem__(self, part: int) -> SimdValue:
        return self.vectors.load(self.vectors.offset(self.address, part * ROW))

    def __setitem__(self, part: int, x: SimdValue) -> None:
        self.vectors.store(x, self.vectors.offset(self.address, part * ROW))


@elementwise
def forward_step(v: Vectors, key: Any, value: Any, w: Any, u: Any, state: Any, y: Any) -> None:
    """y of a step, and the state after it in place of that before."""
    parts, x = Parts(v, state), v.load(value)
    mean = parts[0]
    step = shares_of(v.load(key), v.load(w), v.load(u), parts[1], parts[2])
    v.store(step.past * mean + step.own * x, y)
    parts[0], parts[1], parts[2] = step.kept * mean + step.written * x, step.den, step.p


@elementwise
def advance(v: Vectors, key: Any, value: Any, w: Any, state: Any, later: Any) -> None:
    """The state after a step, beside that before."""
    parts, after, decay = Parts(v, state), Parts(v, later), v.load(w)
    step = shares_of(v.load(key), decay, decay, parts[1], parts[2])
    after[0] = step.kept * parts[0] + step.written * v.load(value)
    after[1], after[2] = step.den, step.p


@elementwise
def backward_step(
    v: Vectors,
    key: Any,
    value: Any,
    w: Any,
    u: Any,
    state: Any,
    dy: Any,
    dstate: Any,
    dkey: Any,
    dvalue: Any,
    shares: Any,
) -> None:
    """The gradients of a step. dstate: of mean and log den after it, then before. shares: of w and u, are added."""
    parts, later, total, x = Parts(v, state), Parts(v, dstate), Parts(v, shares), v.load(value)
    dmean, dlog, g, difference = later[0], later[1], v.load(dy), x - parts[0]
    step = shares_of(v.load(key), v.load(w), v.load(u), parts[1], parts[2])
    read, written = g * step.own, dmean * step.written
    pull, turn = read * step.past * difference, written * step.kept * difference
    kept = dlog * step.kept - turn
    v.store(read + written, dvalue)
    v.store(pull + turn + dlog * step.written, dkey)
    total[0] = total[0] + kept
    total[1] = total[1] + pull
    later[0] = g * step.past + dmean * step.kept
    later[1] = kept - pull


@elementwise
def to_mean(v: Vectors, state: Any) -> None:
    """num becomes the mean, 0 where nothing was seen."""
    parts = Parts(v, state)
    parts[0] = where(parts[1].zero(), 0.0, parts[0] / parts[1])


@elementwise
def from_mean(v: Vectors, state: Any) -> None:
    """The mean becomes num."""
    parts = Parts(v, state)
    parts[0] = parts[0] * parts[1]


@elementwise
def to_mean_gradients(v: Vectors, dstate: Any, num: Any, den: Any) -> None:
    """The gradients of num and den become those of mean and log den."""
    parts, d = Parts(v, dstate), v.load(den)
    dnum, dden = parts[0], parts[1]
    parts[0], parts[1] = dnum * d, dnum * v.load(num) + dden * d


@elementwise
def from_mean_gradients(v: Vectors, dstate: Any, num: Any, den: Any) -> None:
    """The inverse of `to_mean_gradients`; 0 where nothing was seen."""
    parts, d = Parts(v, dstate), v.load(den)
    dmean, empty = parts[0], d.zero()
    parts[0] = where(empty, 0.0, dmean / d)
    parts[1] = where(empty, 0.0, (parts[1] - dmean * (v.load(num) / d)) / d)
