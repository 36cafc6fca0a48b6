"""The selective scan of Mamba (S6): Z states per channel, written and read inside, so that no [T, E, Z] exists.

    h_t[e, z] = exp(dt_t[e] a[e, z]) h_{t-1}[e, z] + dt_t[e] x_t[e] b_t[z]
    y_t[e] = sum_z c_t[z] h_t[e, z] + skip[e] x_t[e]

`reference` is the definition, `chunkwise` a fold over spans of 64 steps in plain torch, `numba` one pass with the
states in the first cache, `triton` one with the states in registers.

B batch  T time  E channels  Z states of a channel
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, wide_dtype, without_autocast, zero_padding
from exlstm.ops.selective_scan.chunkwise import selective_scan_chunkwise
from exlstm.ops.selective_scan.reference import SelectiveScanInputs, SelectiveScanState, selective_scan_recurrent
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate

__all__ = ["SelectiveScanState", "selective_scan", "selective_scan_recurrent"]


def selective_scan(
    x_BTE: Tensor,
    dt_BTE: Tensor,
    a_EZ: Tensor,
    b_BTZ: Tensor,
    c_BTZ: Tensor,
    skip_E: Tensor,
    state: SelectiveScanState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    softplus: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, SelectiveScanState]:
    """A sequence through the selective scan (Gu & Dao 2023, arXiv:2312.00752, algorithm 2); any T >= 1, also one step.

    x: [B, T, E] inputs, in any float dtype. dt: [B, T, E] step sizes, 0 or more. a: [E, Z] rates, 0 or less.
    b, c: [B, T, Z] what writes the states and reads them, shared by all channels. skip: [E].
    All in any dtype up to float32, or up to float64 beside an x in float64.
    state: h before the first step, None for zeros. reset_BT (bool): h counts as zero before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    softplus: step sizes are log(1 + e^dt), and dt may be anything.
    backend: "auto", "numba" (up to float32 on a CPU), "triton" (a GPU, up to float32), "chunkwise" (any device and
    dtype), all with a hand-written backward that saves the inputs and a state per chunk, or "recurrent" (the
    definition).

    Returns y [B, T, E] in x's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, E), Z = x_BTE.shape, a_EZ.shape[-1]
    shapes = {"dt": (B, T, E), "a": (E, Z), "b": (B, T, Z), "c": (B, T, Z), "skip": (E,)}
    for (name, shape), x in zip(shapes.items(), (dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E), strict=True):
        check_like(name, x, shape, x_BTE)
    (reset_BT, lengths_B), dtype = checked_rows(x_BTE, reset_BT, lengths_B), wide_dtype(x_BTE.dtype)
    state = checked_state(state, SelectiveScanState, [(B, E, Z)], x_BTE)
    inputs = SelectiveScanInputs(x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E, state.h_BEZ)
    candidates = [
        ("numba", widened_kernel_obstacle((x_BTE,))),
        *gpu_candidate(inputs, backend, None),
        ("chunkwise", chunk_obstacle(T, backend)),
        ("recurrent", None),
    ]
    name = choose("selective_scan", backend, candidates, inputs)
    with without_autocast(x_BTE):
        if name in ("numba", "triton"):
            y_BTE, after_BEZ = kernels(name)(inputs, reset_BT, lengths_B, softplus)
            return y_BTE.to(x_BTE.dtype), SelectiveScanState(after_BEZ)
        reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
        run = selective_scan_chunkwise if name == "chunkwise" else selective_scan_recurrent
        inputs = SelectiveScanInputs(*(x.to(dtype) for x in inputs))
        if softplus:
            dt_BTE = inputs.dt_BTE if valid_BT is None else zero_padding(inputs.dt_BTE, valid_BT)
            inputs = inputs._replace(dt_BTE=functional.softplus(dt_BTE))
        y_BTE, after_BEZ = run(inputs, reset_BT=reset_BT, valid_BT=valid_BT)
    return y_BTE.to(x_BTE.dtype), SelectiveScanState(after_BEZ)


def kernels(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernels of this name, imported when they are first needed."""
    if backend == "triton":
        from exlstm.ops.selective_scan.triton.op import selective_scan_triton

        return selective_scan_triton
    from exlstm.ops.selective_scan.numba.op import selective_scan_numba

    return selective_scan_numba
