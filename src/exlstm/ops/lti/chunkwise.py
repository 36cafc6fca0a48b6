"""The diagonal state space by chunks of L steps, with a hand-written backward: batched products on any device.

With the powers of a and the kernel k_l = Re(sum_z c_z a_z^l) a column u of L steps, which begins with the state h, has

    y_t = sum_{s <= t} k_{t-s} u_s + Re(sum_z c_z a_z^{t+1} h_z)          a Toeplitz product, and one with the state
    h'  = a^L h + sum_s a^{L-1-s} u_s                                     one more, and a product per state

so that per channel there are three matrix products with all columns at once, and a loop over chunks with one
multiplication in it. A row ends anywhere: its last state is the sum over its last steps, by the same powers. Powers and
kernels depend on the weights alone, and torch derives them; the backward of what depends on time is below. Saved are
the inputs and one state per chunk.

B batch  T time  E channels  Z states  P channels with poles of their own (E or 1)  Q channels with kernels of their own
N chunks  L steps of a chunk  M columns  A chunks of all rows  C those that others follow  K powers (L + 1)  I, J axes
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.lti.columns import Columns, Ends, add_to_last_steps, columns_of, ends_of, last_steps
from exlstm.ops.lti.reference import LTIState, LTISystem
from exlstm.ops.toeplitz import diagonal_sums, from_columns, in_columns, toeplitz


class Powers(torch.autograd.Function):
    """(a_PZ, L) -> a^0 .. a^L, [P, L + 1, Z], by repeated doubling."""

    @staticmethod
    def forward(ctx: Any, a_PZ: Tensor, L: int) -> Tensor:
        powers = torch.stack([torch.ones_like(a_PZ), a_PZ], dim=1)
        while powers.shape[1] <= L:
            powers = torch.cat([powers, powers[:, 1:] * powers[:, -1:]], dim=1)
        powers_PKZ = powers[:, : L + 1].contiguous()
        ctx.save_for_backward(powers_PKZ)
        return powers_PKZ

    @staticmethod
    @once_differentiable("lti", "chunkwise")
    def backward(ctx: Any, dpowers_PKZ: Tensor) -> tuple[Tensor | None, ...]:
        (powers_PKZ,) = ctx.saved_tensors
        L = powers_PKZ.shape[1] - 1
        count_L1 = torch.arange(1, L + 1, device=powers_PKZ.device)[:, None]
        return (powers_PKZ[:, :L].conj() * dpowers_PKZ[:, 1:] * count_L1).sum(1), None


def planes(x: Tensor) -> Tensor:
    """A complex tensor with its last axis in pairs re, im: [..., Z] -> [..., 2 Z]. A real one as it is."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def numbers_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `planes`, for numbers of this dtype."""
    return torch.view_as_complex(x.view(*x.shape[:-1], x.shape[-1] // 2, 2)) if dtype.is_complex else x


def product(x_EMI: Tensor, w: Tensor) -> Tensor:
    """x w for every channel, [E, M, J]. w: [E, I, J], or [1, I, J] for all channels."""
    E, M, I = x_EMI.shape  # noqa: E741
    return torch.bmm(x_EMI.reshape(len(w), -1, I), w).view(E, M, w.shape[2])


def outer(x_EMI: Tensor, y_EMJ: Tensor, count: int) -> Tensor:
    """The gradient of w in y = product(x, w), for `count` matrices w."""
    I, J = x_EMI.shape[2], y_EMJ.shape[2]  # noqa: E741
    return torch.bmm(x_EMI.reshape(count, -1, I).mT, y_EMJ.reshape(count, -1, J))


def causal_toeplitz(kernel_QL: Tensor) -> Tensor:
    """[Q, L, L]: row s, column t is kernel_{t-s}, and 0 for t < s."""
    return toeplitz(pad(kernel_QL, (kernel_QL.shape[1] - 1, 0)))


def masked(x: Tensor, carries: Tensor | None) -> Tensor:
    """x [E, B, Z], zero where a row does not carry its state on."""
    return x if carries is None else x.masked_fill(~carries[:, None], 0)


def shared_sum(x: Tensor, count: int) -> Tensor:
    """The gradient of what `count` channels have, from those of all channels."""
    return x if count == x.shape[0] else x.sum(0, keepdim=True)


def states_before(h_BEZ: Tensor, local_ECZ: Tensor, power_P1Z: Tensor, columns: Columns) -> Tensor:
    """h_EAZ: the states before all chunks. local: what each chunk but a row's last adds by itself."""
    B, states = h_BEZ.shape[0], [h_BEZ.transpose(0, 1)]
    for n in range(columns.N - 1):
        carries = None if columns.carries_NB is None else columns.carries_NB[n]
        states.append(masked(power_P1Z * states[-1], carries) + local_ECZ[:, n * B : (n + 1) * B])
    return torch.cat(states, dim=1)


class LTIChunks(torch.autograd.Function):
    """(u, h, kernel, powers, read) -> (y_BTE, h after [B, E, Z]).

    h, powers and read = c a^{1..L} are complex; for systems that are real they may be real.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u_BTE: Tensor,
        h_BEZ: Tensor,
        kernel_QL: Tensor,
        powers_PKZ: Tensor,
        read_QLZ: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        B, T, _ = u_BTE.shape
        columns = columns_of(B, T, reset_BT)
        ends, C = ends_of(B, columns, reset_BT, lengths_B, u_BTE.device), (columns.N - 1) * B
        u_EML, u_EBL = in_columns(u_BTE, columns.L, columns.place_BT, columns.M), last_steps(u_BTE, ends)
        dtype = powers_PKZ.dtype
        into = planes(powers_PKZ[:, :-1].flip(1))
        local_ECZ = numbers_of(product(u_EML[:, :C], into), dtype) if C else h_BEZ.transpose(0, 1)[:, :0]
        h_EAZ = states_before(h_BEZ, local_ECZ, powers_PKZ[:, -1:], columns)
        y_EML, from_state = (
            product(u_EML, causal_toeplitz(kernel_QL)),
            product(planes(h_EAZ), planes(read_QLZ.conj()).mT),
        )
        if columns.entry_NB is None:
            y_EML += from_state
        else:
            y_EML[:, columns.entry_NB.flatten()] += from_state
        carried_EBZ = powers_PKZ[:, ends.steps_B] * h_EAZ[:, entries(ends)]
        after_EBZ = masked(carried_EBZ, ends.carries_B) + numbers_of(product(u_EBL, into), dtype)
        ctx.save_for_backward(u_EML, u_EBL, h_EAZ, kernel_QL, powers_PKZ, read_QLZ, reset_BT, lengths_B)
        ctx.sizes = B, T
        return from_columns(y_EML, B, T, columns.place_BT), after_EBZ.transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable("lti", "chunkwise")
    def backward(ctx: Any, dy_BTE: Tensor, dafter_BEZ: Tensor) -> tuple[Tensor | None, ...]:
        u_EML, u_EBL, h_EAZ, kernel_QL, powers_PKZ, read_QLZ, reset_BT, lengths_B = ctx.saved_tensors
        (B, T), P, Q, dtype = ctx.sizes, len(powers_PKZ), len(kernel_QL), powers_PKZ.dtype
        columns = columns_of(B, T, reset_BT)
        ends, C = ends_of(B, columns, reset_BT, lengths_B, dy_BTE.device), (columns.N - 1) * B
        dy_EML = in_columns(dy_BTE, columns.L, columns.place_BT, columns.M)
        dafter_EBZ = dafter_BEZ.transpose(0, 1)
        dfirst_EAL = dy_EML if columns.entry_NB is None else dy_EML[:, columns.entry_NB.flatten()]
        dread_QLZ = numbers_of(outer(dfirst_EAL, planes(h_EAZ), Q), dtype).conj()
        dh_EAZ = numbers_of(product(dfirst_EAL, planes(read_QLZ.conj())), dtype)
        # the rows' ends
        dpowers_PKZ, dcarried_EBZ = torch.zeros_like(powers_PKZ), masked(dafter_EBZ, ends.carries_B)
        at_ends = dcarried_EBZ * h_EAZ[:, entries(ends)].conj()
        dpowers_PKZ.index_add_(1, ends.steps_B, shared_sum(at_ends, P))
        dh_EAZ[:, entries(ends)] += powers_PKZ[:, ends.steps_B].conj() * dcarried_EBZ
        retreat(dh_EAZ, dpowers_PKZ, h_EAZ, powers_PKZ, columns, B)
        # the columns
        into, dafter = planes(powers_PKZ[:, :-1].flip(1)), planes(dafter_EBZ)
        dinto = outer(u_EBL, dafter, P)
        du_EML = product(dy_EML, causal_toeplitz(kernel_QL).mT)
        if C:
            dlocal = planes(dh_EAZ[:, B:])
            dinto += outer(u_EML[:, :C], dlocal, P)
            du_EML[:, :C] += product(dlocal, into.mT)
        dpowers_PKZ[:, :-1] += numbers_of(dinto, dtype).flip(1)
        dkernel_QL = diagonal_sums(outer(u_EML, dy_EML, Q))[:, columns.L - 1 :]
        du_BTE = from_columns(du_EML, B, T, columns.place_BT)
        du_BTE = add_to_last_steps(du_BTE, product(dafter, into.mT), ends)
        return du_BTE, dh_EAZ[:, :B].transpose(0, 1), dkernel_QL, dpowers_PKZ, dread_QLZ, None, None


def entries(ends: Ends) -> Tensor:
    """Of every row, the column of its last chunk."""
    B = len(ends.chunk_B)
    return ends.chunk_B * B + torch.arange(B, device=ends.chunk_B.device)


def retreat(dh_EAZ: Tensor, dpowers_PKZ: Tensor, h_EAZ: Tensor, powers_PKZ: Tensor, columns: Columns, B: int) -> None:
    """Gradients of the states before the chunks, from the last chunk to the first; that of a^L is added. In place."""
    power_P1Z, P = powers_PKZ[:, -1:].conj(), len(powers_PKZ)
    for n in range(columns.N - 2, -1, -1):
        here, later = slice(n * B, (n + 1) * B), slice((n + 1) * B, (n + 2) * B)
        dcarried_EBZ = masked(dh_EAZ[:, later], None if columns.carries_NB is None else columns.carries_NB[n])
        dpowers_PKZ[:, -1] += shared_sum((dcarried_EBZ * h_EAZ[:, here].conj()).sum(1), P)
        dh_EAZ[:, here] += power_P1Z * dcarried_EBZ


def lti_chunkwise(
    u_BTE: Tensor,
    system: LTISystem,
    state: Sequence[Tensor],
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, LTIState]:
    """The numbers of `lti_recurrent`, within the rows' lengths; beyond them u must be zero, without resets."""
    T = u_BTE.shape[1]
    a_PZ, c_QZ = torch.complex(*system[:2]), torch.complex(*system[2:4])
    powers_PKZ: Tensor = Powers.apply(a_PZ, columns_of(1, T, None).L)  # type: ignore[no-untyped-call]
    read_QKZ = c_QZ[:, None] * powers_PKZ
    kernel_QL = read_QKZ[:, :-1].real.sum(-1)
    call: Any = LTIChunks.apply
    y_BTE, after_BEZ = call(u_BTE, torch.complex(*state), kernel_QL, powers_PKZ, read_QKZ[:, 1:], reset_BT, lengths_B)
    y_BTE = torch.addcmul(y_BTE, system.skip_R, u_BTE)
    return y_BTE, LTIState(after_BEZ.real.contiguous(), after_BEZ.imag.contiguous())
