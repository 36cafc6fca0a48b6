"""A step of damped moving averages on a CPU, without gradients. An item is a channel of a row.

B batch  T time (1)  E channels  Z averages of a channel
"""

from typing import Any, NamedTuple

from numpy import float32
from torch import Tensor

from exlstm.ops.ema.reference import EMAState, EMAWeights
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import REORDER
from exlstm.runtime.cpu.memory import SIZE, at, byte_at, copy, long_at, put


class Inputs(NamedTuple):
    """Inputs of the step."""

    B: int
    T: int
    E: int
    Z: int
    u_BTE: F32
    factor_EZ: F32
    weight_EZ: F32
    skip_E: F32
    h_BEZ: F32
    reset_BT: Bools
    lengths_B: I64


@helper()
def advance(after: int, before: int, factor: int, u: Any, Z: int) -> None:
    """after = factor before + u"""
    for z in range(Z):
        put(after, z, at(factor, z) * at(before, z) + u)


@helper(REORDER)
def weighted_sum(weight: int, h: int, Z: int) -> Any:
    """The sum of weight h."""
    result = float32(0.0)
    for z in range(Z):
        result += at(weight, z) * at(h, z)
    return result


@kernel()
def step_channels(first: int, last: int, x: Inputs, y_BTE: F32, after_BEZ: F32) -> None:
    """y and the averages of channels of rows."""
    for item in range(first, last):
        row, e = item // x.E, item % x.E
        before, after, own = x.h_BEZ + item * x.Z * SIZE, after_BEZ + item * x.Z * SIZE, e * x.Z * SIZE
        u = at(x.u_BTE, item)
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * row) == 0:
            copy(after, before, x.Z)
            put(y_BTE, item, float32(0.0))
        else:
            if x.reset_BT != 0 and byte_at(x.reset_BT + row) != 0:
                for z in range(x.Z):
                    put(after, z, u)
            else:
                advance(after, before, x.factor_EZ + own, u, x.Z)
            put(y_BTE, item, weighted_sum(x.weight_EZ + own, after, x.Z) + at(x.skip_E, e) * u)


def ema_numba(
    u_BTE: Tensor,
    weights: EMAWeights,
    state: EMAState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, EMAState]:
    """The numbers of `ema_recurrent` for one step, in float32 and without a graph."""
    (B, T, E), Z = u_BTE.shape, weights.factor_EZ.shape[1]
    given = (u_BTE, *weights, *state, reset_BT, lengths_B)
    inputs = Inputs(B, T, E, Z, *(x if x is None else x.contiguous() for x in given))
    y_BTE, after_BEZ = u_BTE.new_empty(B, T, E), u_BTE.new_empty(B, E, Z)
    cost = microseconds(bytes=2 * after_BEZ.nbytes + 2 * weights.factor_EZ.nbytes, flops=4 * B * E * Z)
    launch(step_channels, B * E, inputs, y_BTE, after_BEZ, cost=cost)
    return y_BTE, EMAState(after_BEZ)
