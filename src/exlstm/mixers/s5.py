"""S5: one state space for all channels, with complex poles from HiPPO (Smith et al. 2023, arXiv:2208.04933).

    lambda = -exp(a_re) + i a_im ,  dt = exp(log_dt)
    h_t = e^(lambda dt) h_{t-1} + (e^(lambda dt) - 1) / lambda B x_t
    y = 2 Re(C h) + skip x          the other pole of every pair gives the complex conjugate

and an output by `activation`, with g = gelu(y):

    full_glu   W_1 g sigmoid(W_2 g)      half_glu1  g sigmoid(W_2 g)
    half_glu2  y sigmoid(W_2 g)          gelu       g

B and C are complex, and each is one real matrix here: the rows of B are its real parts and its imaginary parts, the
columns of C its real parts and the negatives of its imaginary parts. The published code is bidirectional for long
sequences; this is its causal direction.

B batch  T time  D model width  P poles, one of each pair  M parts of them  H blocks of K states and N poles
"""

from dataclasses import dataclass
from math import lcm, log
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.scan import RotatingState, held_input, rotating_scan

OutputGate = Literal["full_glu", "half_glu1", "half_glu2", "gelu"]


@dataclass(frozen=True, kw_only=True)
class S5Config:
    """S5 with up_factor * width pairs of poles, rounded up to a multiple of up_multiple and of `blocks`.

    blocks: of the block-diagonal matrix that the poles are those of. slowest, fastest: steps dt of poles at first.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)

    blocks: Size = 4
    up_factor: Factor = 0.5
    up_multiple: Size = 1
    activation: OutputGate = "full_glu"
    slowest: Positive = 1e-3
    fastest: Positive = 1e-1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.slowest > self.fastest:
            raise ValueError(f"slowest is {self.slowest}; it must be at most fastest, which is {self.fastest}.")

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return S5(width, self)


class S5(FixedStateMixer):
    """S5 as a mixer: see `mixers.contract`, and `S5Config` for its options."""

    def __init__(self, width: int, config: S5Config) -> None:
        super().__init__()
        check_width(width)
        poles = round_up(config.up_factor * width, lcm(config.up_multiple, config.blocks))
        self.config, self.width, self.poles, self.backend = config, width, poles, "auto"
        self.a_re_P, self.a_im_P, self.log_dt_P = (nn.Parameter(torch.empty(poles)) for _ in range(3))
        self.skip_D = nn.Parameter(torch.empty(width))
        self.b, self.c = Linear(width, 2 * poles, bias=False), Linear(2 * poles, width, bias=False)
        self.out1 = Linear(width, width) if config.activation == "full_glu" else None
        self.out2 = Linear(width, width) if config.activation != "gelu" else None
        outputs = [f"{name}.{part}" for name in ("out1", "out2") for part in ("weight", "bias")]
        outputs = outputs[:4] if self.out1 is not None else outputs[2:] if self.out2 is not None else []
        init.fill(
            self,
            {
                "a_re_P": init.constant(log(0.5)),
                "a_im_P": self.fill_frequencies,
                "log_dt_P": init.logs(init.log_uniform(config.slowest, config.fastest)),
                "skip_D": init.normal(1.0),
                "b.weight": self.fill_b,
                "c.weight": self.fill_c,
                **dict.fromkeys(outputs, init.uniform(width**-0.5)),
            },
        )

    def fill_frequencies(self, a_im_P: Tensor) -> None:
        """The imaginary parts of HiPPO's poles, the same in every block."""
        frequencies, _ = init.hippo(2 * self.poles // self.config.blocks)
        a_im_P.copy_(frequencies.repeat(self.config.blocks))

    def fill_b(self, b_MD: Tensor) -> None:
        """V^-1 B_0, with B_0 real and of variance 1 / states, in the basis V of the poles' eigenvectors."""
        H, D = self.config.blocks, self.width
        _, v_KN = init.hippo(2 * self.poles // H)
        b_HKD = torch.randn(H, v_KN.shape[0], D, dtype=torch.float64) * (2 * self.poles) ** -0.5
        b_HND = v_KN.mH @ b_HKD.to(v_KN.dtype)
        b_MD.copy_(torch.cat([b_HND.real.flatten(0, 1), b_HND.imag.flatten(0, 1)]))

    def fill_c(self, c_DM: Tensor) -> None:
        """C_0 V, with C_0 complex and its parts of variance 1 / states."""
        H, D = self.config.blocks, self.width
        _, v_KN = init.hippo(2 * self.poles // H)
        parts = torch.randn(2, H, D, v_KN.shape[0], dtype=torch.float64) * (2 * self.poles) ** -0.5
        c_HDN = torch.complex(parts[0], parts[1]) @ v_KN
        c_DM.copy_(torch.cat([*c_HDN.real, *-c_HDN.imag], dim=1))

    def forward(
        self,
        x_BTD: Tensor,
        state: RotatingState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RotatingState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        re_BTP, im_BTP = upcast(self.b(x_BTD)).chunk(2, dim=-1)
        poles = held_input(*(upcast(x) for x in (self.a_re_P, self.a_im_P, self.log_dt_P)))
        h_re_BTP, h_im_BTP, state = rotating_scan(
            poles.r_P.expand_as(re_BTP),
            poles.theta_P,
            poles.re_P * re_BTP - poles.im_P * im_BTP,
            poles.re_P * im_BTP + poles.im_P * re_BTP,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        h_BTM = (2 * torch.cat([h_re_BTP, h_im_BTP], dim=-1)).to(x_BTD.dtype)
        y_BTD = self.c(h_BTM) + self.skip_D.to(x_BTD.dtype) * x_BTD
        return mask_tail(self.read_out(y_BTD), lengths_B), state

    def read_out(self, y_BTD: Tensor) -> Tensor:
        """The output of the mixer from that of the state space."""
        g_BTD = gelu(y_BTD, approximate="tanh")
        if self.out2 is None:
            return g_BTD
        if self.out1 is not None:
            value_BTD, gate_BTD = linears(g_BTD, (self.out1, self.out2))
            return value_BTD * torch.sigmoid(gate_BTD)
        gate_BTD = torch.sigmoid(self.out2(g_BTD))
        return (g_BTD if self.config.activation == "half_glu1" else y_BTD) * gate_BTD

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RotatingState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.a_re_P, device)
        return RotatingState(zeros(batch, self.poles), zeros(batch, self.poles))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 16 operations per pole, with the product by its factor."""
        return 16.0 * self.poles
