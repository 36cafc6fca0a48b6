"""The diagonal scan, h_t = a_t h_{t-1} + b_t for every channel: the recurrence of HGRN, RG-LRU, minGRU, LRU and S5.

`reference` is the definition, `chunkwise` about 2 sqrt(T) passes in plain torch, `numba` and `triton` one pass. a is
real, or complex with a constant angle: see `rotating`.

B batch  T time  E channels
"""

from collections.abc import Callable

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, without_autocast
from exlstm.ops.scan.chunkwise import scan_chunkwise
from exlstm.ops.scan.hold import HeldInput, held_input
from exlstm.ops.scan.reference import RotatingState, ScanState, rotating_recurrent, scan_recurrent
from exlstm.ops.scan.rotating import rotating_chunkwise
from exlstm.runtime.availability import chunk_obstacle, cpu_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate

__all__ = [
    "HeldInput",
    "RotatingState",
    "ScanState",
    "held_input",
    "rotating_recurrent",
    "rotating_scan",
    "scan",
    "scan_recurrent",
]


def scan(
    a_BTE: Tensor,
    b_BTE: Tensor,
    state: ScanState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ScanState]:
    """A sequence through the recurrence; any T >= 1, also one step.

    a: [B, T, E] factors from 0 to 1; expanded axes are read as they are. b: [B, T, E]. Both in any float dtype.
    state: h before the first step, None for zeros. reset_BT (bool): h counts as zero before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32), "chunkwise" (any device and dtype),
    all with a hand-written backward that saves a and h alone, or "recurrent" (the definition).

    Returns h [B, T, E] in b's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = b_BTE.shape
    check_like("a", a_BTE, (B, T, E), b_BTE)
    reset_BT, lengths_B = checked_rows(b_BTE, reset_BT, lengths_B)
    state = checked_state(state, ScanState, [(B, E)], b_BTE)
    tensors = a_BTE, b_BTE, state.h_BE
    candidates = [
        ("numba", cpu_kernel_obstacle(tensors, float32_only=True)),
        *gpu_candidate(tensors, backend, None),
        ("chunkwise", chunk_obstacle(T, backend)),
        ("recurrent", None),
    ]
    name = choose("scan", backend, candidates, tensors)
    if name in ("numba", "triton"):
        h_BTE, after_BE = kernels(name)(*tensors, reset_BT, lengths_B)
        return h_BTE.to(b_BTE.dtype), ScanState(after_BE)
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    run: Callable[..., tuple[Tensor, Tensor]] = scan_chunkwise if name == "chunkwise" else scan_recurrent
    with without_autocast(b_BTE):
        h_BTE, after_BE = run(*tensors, reset_BT=reset_BT, valid_BT=valid_BT)
    return h_BTE.to(b_BTE.dtype), ScanState(after_BE)


def kernels(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernels of this name, imported when they are first needed."""
    if backend == "triton":
        from exlstm.ops.scan.triton.op import scan_triton

        return scan_triton
    from exlstm.ops.scan.numba.real import scan_numba

    return scan_numba


def rotating_scan(
    r_BTE: Tensor,
    theta_E: Tensor,
    re_BTE: Tensor,
    im_BTE: Tensor,
    state: RotatingState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, RotatingState]:
    """A sequence through h_t = r_t e^(i theta) h_{t-1} + b_t, complex numbers as real and imaginary parts; any T >= 1.

    r: [B, T, E] factors from 0 to 1; expanded axes are read as they are. theta: [E] angles in radians.
    re, im: [B, T, E] parts of b. All in any float dtype; the other arguments are those of `scan`.

    Returns the parts of h [B, T, E] in the dtype of re and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = re_BTE.shape
    for what, x, shape in (("r", r_BTE, (B, T, E)), ("theta", theta_E, (E,)), ("im", im_BTE, (B, T, E))):
        check_like(what, x, shape, re_BTE)
    reset_BT, lengths_B = checked_rows(re_BTE, reset_BT, lengths_B)
    state = checked_state(state, RotatingState, [(B, E)] * 2, re_BTE)
    tensors = r_BTE, theta_E, re_BTE, im_BTE
    candidates = [
        ("numba", cpu_kernel_obstacle((*tensors, *state), float32_only=True)),
        ("chunkwise", chunk_obstacle(T, backend)),
        ("recurrent", None),
    ]
    name = choose("rotating_scan", backend, candidates, (*tensors, *state))
    if name == "numba":
        from exlstm.ops.scan.numba.rotating import rotating_numba

        return rotating_numba(*tensors, state, reset_BT, lengths_B)
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    run = rotating_chunkwise if name == "chunkwise" else rotating_recurrent
    with without_autocast(re_BTE):
        h_re_BTE, h_im_BTE, state = run(*tensors, state, reset_BT=reset_BT, valid_BT=valid_BT)
    return h_re_BTE.to(re_BTE.dtype), h_im_BTE.to(re_BTE.dtype), state
