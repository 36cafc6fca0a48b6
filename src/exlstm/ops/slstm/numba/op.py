"""sLSTM over a whole sequence on a CPU: forward and backward scans compiled by Numba, products outside as GEMMs.

Only what is truly sequential is in the scans (`numba_scan`): h_{t-1} R and the gates forward, d(gates) R^T and the
gates backward. The forward keeps what the gates' derivatives need, so the backward computes no exponentials, and the
gradient of R is one batched GEMM after the scan. A piece of work is a head with some rows of the batch; pieces are
shared out among plain threads.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  J all gates of a head (4 V)  M rows and steps
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.ops.common import contiguous, exactly, wide
from exlstm.ops.derivatives import once
from exlstm.ops.gates import InputGate
from exlstm.ops.slstm.numba.scan import backward_scan, forward_scan
from exlstm.ops.slstm.numba.tile import PANEL
from exlstm.ops.slstm.numba.variants import kept_size, variant_of
from exlstm.ops.slstm.reference import SLSTMState
from exlstm.runtime.addresses import address, addresses
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.memory import LINE, LINE_NUMBERS, SIZE, long_at
from exlstm.runtime.threads import share_out

MOST_ROWS = 8  # of a tile: R of a head is read once for all of them, from the second cache or from memory
THREAD_WORTH = 60.0  # us of work that handing a piece to another thread is worth
LARGE = 1 << 20  # numbers: from there on memory in large pages is worth asking for
SHARED_BYTES = 64 << 10  # of R to read: so much takes a step longer than telling a thread that is awake


class Plan(NamedTuple):
    """How the work is cut: items, the rows of each, threads, and whether R is packed."""

    items: int
    rows: int
    threads: int
    packed: bool


def plan(B: int, T: int, H: int, V: int) -> Plan:
    """Whole batches where the heads alone keep all threads busy; else tiles of them, of no fewer than four rows."""
    microseconds = B * T * H * V * (0.006 + 8 * V / 60_000)  # gates, and a product at 60 GFLOP/s
    threads = max(1, min(torch.get_num_threads(), int(microseconds / THREAD_WORTH)))
    tiles = most = max(1, -(-B // 4))
    for n in range(max(1, -(-B // MOST_ROWS)), most + 1):
        if H * n % threads == 0:
            tiles = n
            break
    rows = -(-most // tiles) * 4
    return Plan(H * -(-B // rows), rows, threads, T * B >= 6)


def scan_piece(a: int, item: int) -> None:
    """For a `Tape`: one item of a forward scan; its arguments from `rows` on, the tuples' numbers among them."""
    before = long_at(a + 104), long_at(a + 112), long_at(a + 120), long_at(a + 128)
    after = long_at(a + 144), long_at(a + 152), long_at(a + 160), long_at(a + 168)
    forward_scan(item, item + 1, long_at(a), long_at(a + 8) != 0, long_at(a + 16) != 0, long_at(a + 24),
                 long_at(a + 32), long_at(a + 40), long_at(a + 48), long_at(a + 56), long_at(a + 64),
                 long_at(a + 72) != 0, long_at(a + 80), long_at(a + 88), long_at(a + 96), before,
                 long_at(a + 136), after, 0, 0)  # fmt: skip


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m) -> (h of every step, last h, c, n, m); all float32, R possibly of width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHGV: Tensor, r_HKGV: Tensor, h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor,
                reset_BT: Tensor | None, lengths_B: Tensor, variant: int) -> tuple[Tensor, ...]:  # fmt: skip
        B, T, H, _, V = x_BTHGV.shape
        past_HBTV = new(H, B, T, V)
        kept_E = new(numbers_kept(B, T, H, V, variant))
        state = SLSTMState(h_BHV, c_BHV, n_BHV, m_BHV)
        out = run(x_BTHGV, r_HKGV, state, reset_BT, lengths_B, variant, past_HBTV, kept_E)
        ctx.save_for_backward(r_HKGV, past_HBTV, kept_E, reset_BT, lengths_B)
        ctx.variant = variant
        ctx.mark_non_differentiable(out[4])
        return out

    @staticmethod
    @once("slstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        r_HKGV, past_HBTV, kept_E, reset_BT, lengths_B = ctx.saved_tensors
        B, T, H, V = dh_BTHV.shape
        dx_BTHGV = new(B, T, H, 4, V)
        dfirst = [new(B, H, V) for _ in range(3)]
        items, rows, threads, _ = plan(B, T, H, V)
        dh_BTHV, r_HKGV, *dstate = contiguous(dh_BTHV, r_HKGV, *dlast[:3])
        share_out(
            backward_scan, items, rows, r_HKGV.shape[1] > 0, B, T, H, V, address(dh_BTHV, B * T * H * V),
            address(r_HKGV, numbers_of_r(r_HKGV, H, V)), address(reset_BT, B * T, torch.bool),
            address(lengths_B, B, torch.int64), addresses(B * H * V, *dstate), address(dx_BTHGV, 4 * B * T * H * V),
            addresses(B * H * V, *dfirst), address(kept_E, numbers_kept(B, T, H, V, ctx.variant)), ctx.variant,
            threads=threads,
        )  # fmt: skip
        dr_HKGV = None
        if ctx.needs_input_grad[1]:
            past_HMV, dx_HMJ = past_HBTV.flatten(1, 2), dx_BTHGV.view(B * T, H, 4 * V).transpose(0, 1)
            with exactly(dx_BTHGV):
                dr_HKGV = (past_HMV.mT @ dx_HMJ).view_as(r_HKGV) if r_HKGV.shape[1] else torch.zeros_like(r_HKGV)
        return dx_BTHGV, dr_HKGV, *dfirst, None, None, None, None


def new(*shape: int) -> Tensor:
    """Memory to write to, aligned for BLAS.

    NumPy asks for much memory in large pages, which the system hands out several times faster, but aligns it less.
    """
    count = math.prod(shape)
    if count < LARGE:
        return torch.empty(shape)
    room = np.empty(count + LINE_NUMBERS, dtype=np.float32)
    start = -room.ctypes.data % LINE // SIZE
    x = torch.from_numpy(room[start : start + count]).view(shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        x.fill_(torch.nan)
    return x


def numbers_of_r(r_HKGV: Tensor, H: int, V: int) -> int:
    """How many numbers of R the kernels read."""
    return 4 * H * V * V if r_HKGV.shape[1] else 0


def numbers_kept(B: int, T: int, H: int, V: int, variant: int) -> int:
    """How many numbers the forward keeps for the backward, beside the past."""
    return B * T * H * -(-V // PANEL) * kept_size(variant)


def run(x_BTHGV: Tensor, r_HKGV: Tensor, state: SLSTMState, reset_BT: Tensor | None, lengths_B: Tensor,
        variant: int, past_HBTV: Tensor | None = None, kept_E: Tensor | None = None
        ) -> tuple[Tensor, ...]:  # fmt: skip
    """The forward scan; R may be bfloat16. past_HBTV and kept_E are filled for the backward, if there is to be one."""
    B, T, H, _, V = x_BTHGV.shape
    h_BTHV = new(B, T, H, V)
    last = [new(B, H, V) for _ in range(4)]
    items, rows, threads, packed = plan(B, T, H, V)
    x_BTHGV, r_HKGV, *first = contiguous(x_BTHGV, r_HKGV, *state)
    short, state_size = r_HKGV.dtype is torch.bfloat16, B * H * V
    r = address(r_HKGV, numbers_of_r(r_HKGV, H, V), torch.bfloat16 if short else torch.float32)
    reset, lengths = address(reset_BT, B * T, torch.bool), address(lengths_B, B, torch.int64)
    x, h = address(x_BTHGV, 4 * T * state_size), address(h_BTHV, T * state_size)
    work = rows, packed, r_HKGV.shape[1] > 0, B, T, H, V, x, r, short, reset, lengths, variant
    before, after = addresses(state_size, *first), addresses(state_size, *last)
    past, kept = address(past_HBTV, T * state_size), address(kept_E, numbers_kept(B, T, H, V, variant))
    share_out(forward_scan, items, *work, before, h, after, past, kept, threads=threads)
    if (tape := recording()) is not None:
        tape.keep((x_BTHGV, r_HKGV, reset_BT, lengths_B, first, h_BTHV, last))
        tape.add(scan_piece, *work, *before, h, *after, pieces=items, shared=r_HKGV.nbytes >= SHARED_BYTES)
    return h_BTHV, *last


def slstm_numba(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool, input_gate: InputGate = "exp",
    normalize: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, in float32, tanh cell input."""
    B, T, H, _, V = x_BTHGV.shape
    dtype, x_BTHGV = x_BTHGV.dtype, wide(x_BTHGV)
    r_HKGV = x_BTHGV.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    reset_BT = None if reset_BT is None else reset_BT.contiguous()
    lengths_B = torch.full((B,), T) if lengths_B is None else lengths_B.contiguous()
    rows = reset_BT, lengths_B, variant_of(input_gate, exp_forget, normalize)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (x_BTHGV, r_HKGV, *state)):
        h_BTHV, *last = Scan.apply(x_BTHGV, wide(r_HKGV), *state, *rows)  # type: ignore[no-untyped-call]
    else:
        # in bfloat16 R is read as it is kept, half as many bytes: in decoding they are what takes time
        h_BTHV, *last = run(x_BTHGV, r_HKGV if r_HKGV.dtype is torch.bfloat16 else wide(r_HKGV), state, *rows)
    return h_BTHV.to(dtype), SLSTMState(*last)
