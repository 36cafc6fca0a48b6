"""Torch forms of recurrent nets: torch's own kernels, and loops over time where torch has none.

Each takes the arguments of our op and stands in its place, for training from zero states.
"""

from typing import Any

import torch
from torch import Tensor


def torch_lstm(x_BTD: Tensor, w_GD: Tensor, u_GV: Tensor, b_G: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`lstm` by the function that torch.nn.LSTM calls."""
    before = (state.h_BV[None], state.c_BV[None])
    return torch.lstm(x_BTD, before, [w_GD, u_GV, b_G, torch.zeros_like(b_G)], True, 1, 0.0, True, False, True)[
        0
    ], state


def torch_gru(
    x_BTD: Tensor, w_GD: Tensor, u_GV: Tensor, b_G: Tensor, c_D: Tensor, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`gru` by the function that torch.nn.GRU calls."""
    inner_G = torch.cat([c_D.new_zeros(2 * len(c_D)), c_D])
    return torch.gru(x_BTD, state.h_BV[None], [w_GD, u_GV, b_G, inner_G], True, 1, 0.0, True, False, True)[0], state


def torch_elman(x_BTD: Tensor, w_DD: Tensor, u_DV: Tensor, b_D: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`elman` by the function that torch.nn.RNN calls."""
    weights = [w_DD, u_DV, b_D, torch.zeros_like(b_D)]
    return torch.rnn_tanh(x_BTD, state.h_BV[None], weights, True, 1, 0.0, True, False, True)[0], state


def loop_mult_lstm(
    p_BTHV: Tensor, x_BTGHV: Tensor, m_HVK: Tensor, r_GHVK: Tensor, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`mult_lstm`, one step after another."""
    h_BHV, c_BHV, found = state.h_BHV, state.c_BHV, []
    r_HJK = r_GHVK.transpose(0, 1).flatten(1, 2)
    for p_BHV, x_BGHV in zip(p_BTHV.unbind(1), x_BTGHV.unbind(1), strict=True):
        mixed_BHV = p_BHV * torch.einsum("hvk,bhk->bhv", m_HVK, h_BHV)
        raw_BHGV = torch.einsum("hjk,bhk->bhj", r_HJK, mixed_BHV).unflatten(-1, (4, -1))
        i, f, z, o = (raw_BHGV.transpose(1, 2) + x_BGHV).unbind(1)
        c_BHV = torch.sigmoid(f) * c_BHV + torch.sigmoid(i) * torch.tanh(z)
        h_BHV = torch.sigmoid(o) * torch.tanh(c_BHV)
        found.append(h_BHV)
    return torch.stack(found, dim=1), state


def bound(z: Tensor) -> Tensor:
    """Complex numbers with a length of at most 1."""
    return z / z.abs().clamp(min=1)


def loop_assoc_lstm(x_BTGN: Tensor, r_GNPM: Tensor, order_CN: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`assoc_lstm`, one step after another, on complex numbers."""
    h_BPN, c_BCN, found = state.h_BPN, torch.complex(*state.c_BCPN.unbind(2)), []
    r_JM = r_GNPM.flatten(2).flatten(0, 1)
    for x_BGN in x_BTGN.unbind(1):
        raw_BGN = x_BGN + (h_BPN.flatten(1) @ r_JM.T).view_as(x_BGN)
        i_BN, f_BN, o_BN = torch.sigmoid(raw_BGN[:, :3]).unbind(1)
        u_BN, a_BN, b_BN = bound(torch.complex(raw_BGN[:, 3::2], raw_BGN[:, 4::2])).unbind(1)
        c_BCN = f_BN[:, None] * c_BCN + a_BN[:, order_CN] * (i_BN * u_BN)[:, None]
        h_BN = bound((b_BN[:, order_CN] * c_BCN).mean(1))
        h_BPN = torch.stack([o_BN * h_BN.real, o_BN * h_BN.imag], dim=1)
        found.append(h_BPN)
    return torch.stack(found, dim=1), state


def loop_matrix_rnn(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, f_BTH: Tensor, r_HUV: Tensor, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`matrix_rnn` with a gate and mixing, one step after another."""
    (B, _T, H, K), V, found = q_BTHK.shape, v_BTHV.shape[-1], []
    h_BHKV = q_BTHK.new_zeros(B, H, K, V)
    k_BTHK, gate_BTH = k_BTHK * k_BTHK.shape[-1] ** -0.5, torch.sigmoid(f_BTH)
    for q, k, v, gate in zip(q_BTHK.unbind(1), k_BTHK.unbind(1), v_BTHV.unbind(1), gate_BTH.unbind(1), strict=True):
        new_BHKV = torch.tanh(h_BHKV @ r_HUV + k[..., None] * v[:, :, None])
        h_BHKV = torch.lerp(new_BHKV, h_BHKV, gate[..., None, None])
        found.append((q[:, :, None] @ h_BHKV)[:, :, 0])
    return torch.stack(found, dim=1), state
