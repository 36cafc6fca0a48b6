"""The sLSTM layer of the xLSTM paper (Beck et al. 2024, arXiv:2405.04517, Figure 10); a gated MLP follows in a block.

    c = silu(conv(x))                       (or c = x without a convolution)
    i, f from c and z, o from x, block-diagonal over heads, plus h_{t-1} R, plus b
    y = head_norm(sLSTM(i, f, z, o))

B batch  T time  D model width  H heads  K, V head width  G gates: i, f, z, o
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Seed, Size, SizeOrZero, check_fields
from exlstm.nn.layers import CausalConv, HeadNorm
from exlstm.nn.recurrence import Diagonal, Learned, LowRank, Recurrence, Sparse, block_diagonal
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.gates import log_forget_gate, log_input_gate
from exlstm.ops.slstm import (
    CellActivation,
    ForgetGate,
    InputGate,
    Projection,
    SLSTMState,
    project_gates,
    projected_slstm,
    slstm,
)
from exlstm.ops.slstm.reference import SHUT

Structure = Literal["block", "none", "diagonal", "low_rank", "sparse", "learned"]


class SLSTMLayerState(NamedTuple):
    """State of the layer: the convolution's window (of no steps without one) and the cell's memory."""

    conv: ConvState
    cell: SLSTMState


@dataclass(frozen=True, kw_only=True)
class SLSTMConfig:
    """sLSTM at the model width.

    conv_width 0: no convolution. recurrence: connectivity of the units within a block of R.
      "block" all to all (one block: dense), "none" no R, "diagonal" each unit to itself;
      "low_rank" all to all by a product of two factors of rank `recurrence_rank`;
      "sparse" each unit has itself and recurrence_degree - 1 others as sources, a random graph of `recurrence_seed`
        (blocks of a model with the same seed have the same graph);
      "learned" a learned graph, see `exlstm.nn.recurrence.Learned` and `graph_penalty`.
    recurrence_blocks: blocks of R, independent of the heads of the projections and of the norm; None: one per head.
    recurrent_init: "zeros" (the published default) or "uniform", +-1/sqrt(width), as in the formal-language runs; of
      structures with fewer sources per unit, +-1/sqrt(sources).
    forget_bias: "power_law" (5 down to -7 within a head, by depth), "linspace" (3 to 6) or "zeros"; an exponential
      forget gate starts as open as the sigmoid one would be.
    input_gate: "exp", "sigmoid", "softplus", "relu" or "relu2". normalize: divide c by n; without it h has no bound,
      and unbounded gates, which get h through R, can leave the range of float32.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)
    heads: Size = 4
    conv_width: SizeOrZero = 4
    forget_gate: ForgetGate = "sigmoid"
    cell_activation: CellActivation = "tanh"
    recurrence: Structure = "block"
    recurrence_blocks: Size | None = None
    recurrence_rank: Size = 4
    recurrence_degree: Size = 4
    recurrence_seed: Seed = 0
    recurrent_init: Literal["zeros", "uniform"] = "zeros"
    forget_bias: Literal["power_law", "linspace", "zeros"] = "power_law"
    norm_eps: Positive = 1e-5
    input_gate: InputGate = "exp"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads, and for structures that do not fit R."""
        return SLSTM(width, self, depth, index)


class SLSTM(FixedStateMixer):
    """sLSTM of the xLSTM paper as a mixer: see `mixers.contract`, and `SLSTMConfig` for its options."""

    def __init__(self, width: int, config: SLSTMConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        H, V = config.heads, width // config.heads
        # the cell's heads are the blocks of R
        self.blocks = blocks = H if config.recurrence_blocks is None else config.recurrence_blocks
        if width % blocks:
            raise ValueError(f"recurrence_blocks is {blocks}; it must divide the width {width}.")
        size = width // blocks
        self.config, self.width, self.backend = config, width, "auto"
        self.conv = CausalConv(width, config.conv_width) if config.conv_width > 0 else None
        self.w_HGVK = nn.Parameter(torch.empty(H, 4, V, V))
        self.r_HKGV = nn.Parameter(torch.empty(blocks, size, 4, size)) if config.recurrence == "block" else None
        self.recurrence = build_recurrence(config, blocks, size)
        self.b_HGV = nn.Parameter(torch.empty(H, 4, V))
        self.norm = HeadNorm(H, V, config.norm_eps)
        forget = {
            "power_law": init.power_law(index, depth),
            "linspace": init.linspace(3, 6),
            "zeros": init.zeros,
        }[config.forget_bias]
        if config.forget_gate == "exp":
            forget = init.log_sigmoids(forget)
        table: dict[str, init.Fill] = {
            "w_HGVK": init.small(width),
            "b_HGV": lambda b_HGV: (b_HGV.zero_(), forget(b_HGV[:, 1])),
            "norm.weight": init.ones,
        }
        if self.conv is not None:
            conv_bound = config.conv_width**-0.5  # as torch's Conv1d
            table |= {"conv.weight_DW": init.uniform(conv_bound), "conv.bias_D": init.uniform(conv_bound)}
        if self.r_HKGV is not None:
            table["r_HKGV"] = init.zeros if config.recurrent_init == "zeros" else init.uniform(width**-0.5)
        if self.recurrence is not None:
            rows = self.recurrence.table(config.recurrent_init, width**-0.5)
            table |= {f"recurrence.{name}": row for name, row in rows.items()}
        init.fill(self, table)

    def forward(
        self, x_BTD: Tensor, state: SLSTMLayerState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, SLSTMLayerState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        c_BTD, conv = x_BTD, state.conv
        if self.conv is not None:
            c_BTD, conv = self.conv(x_BTD, conv, reset_BT=reset_BT, lengths_B=lengths_B, activation="silu")
        h_BTHV, cell = self.run_cell(c_BTD, x_BTD, state.cell, reset_BT=reset_BT, lengths_B=lengths_B)
        y_BTD = self.norm(h_BTHV).to(x_BTD.dtype)
        return mask_tail(y_BTD, lengths_B), SLSTMLayerState(conv, cell)

    def run_cell(self, c_BTD: Tensor, x_BTD: Tensor, state: SLSTMState, **rows: Any) -> tuple[Tensor, SLSTMState]:
        """The cell: [B, T, H, V], by the heads of the norm, and its state, by the blocks of R."""
        config, x = self.config, Projection(c_BTD, None if c_BTD is x_BTD else x_BTD, self.w_HGVK, self.b_HGV)
        r_HKGV = self.r_HKGV if self.recurrence is None else self.recurrence()
        options: dict[str, Any] = {
            "input_gate": config.input_gate,
            "forget_gate": config.forget_gate,
            "cell_activation": config.cell_activation,
            "normalize": config.normalize,
            "backend": self.backend,
        }
        if self.blocks == config.heads:
            return projected_slstm(x, r_HKGV, state, **rows, **options)
        h_BTHV, after = slstm(self.by_block(project_gates(x)), r_HKGV, state, **rows, **options)
        return h_BTHV.reshape(*x_BTD.shape[:2], config.heads, self.width // config.heads), after

    def log_gates(self, x_BTD: Tensor, state: SLSTMLayerState) -> tuple[Tensor, Tensor]:
        """(log i, log f) [B, T, H, V] of every step and unit, by the blocks of R: they see the output before them."""
        c_BTD = x_BTD
        if self.conv is not None:
            c_BTD, _ = self.conv(x_BTD, state.conv, reset_BT=None, lengths_B=None, activation="silu")
        r_HKGV = self.r_HKGV if self.recurrence is None else self.recurrence()
        raw_BTHGV = project_gates(Projection(c_BTD, None if c_BTD is x_BTD else x_BTD, self.w_HGVK, self.b_HGV))
        raw_BTHGV = raw_BTHGV if self.blocks == self.config.heads else self.by_block(raw_BTHGV)
        if r_HKGV is not None:
            h_BTHV, _ = self.run_cell(c_BTD, x_BTD, state.cell)
            h_BTHV = h_BTHV.reshape(*h_BTHV.shape[:2], self.blocks, -1)
            before_BTHK = torch.cat([state.cell.h_BHV[:, None].to(h_BTHV.dtype), h_BTHV[:, :-1]], dim=1)
            raw_BTHGV = raw_BTHGV + torch.einsum("bthk,hkgv->bthgv", before_BTHK, r_HKGV.to(h_BTHV.dtype))
        i_BTHV, f_BTHV = raw_BTHGV[..., 0, :], raw_BTHGV[..., 1, :]
        log_i_BTHV = log_input_gate(upcast(i_BTHV), self.config.input_gate, SHUT)
        return log_i_BTHV, log_forget_gate(upcast(f_BTHV), self.config.forget_gate)

    def by_block(self, raw_BTHGV: Tensor) -> Tensor:
        """Pre-activations with the units divided into the blocks of R instead of heads."""
        B, T, _, G, _ = raw_BTHGV.shape
        return raw_BTHGV.transpose(2, 3).reshape(B, T, G, self.blocks, self.width // self.blocks).transpose(2, 3)

    def adjacency(self) -> Tensor:
        """Connectivity, bool [D, D] on the CPU: True where R has weights from the first unit to the second.

        Of a learned graph, as in evaluation.
        """
        if self.recurrence is not None:
            return block_diagonal(self.recurrence.connections())
        V = self.width // self.blocks
        return block_diagonal(torch.full((self.blocks, V, V), self.r_HKGV is not None))

    def num_recurrent_weights(self) -> int:
        """Number of weights of the effective R that are not zero by structure: four per connection."""
        return 4 * int(self.adjacency().sum())

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> SLSTMLayerState:
        """State before the first step, on the device of the weights or on another."""
        zeros, V = wide_zeros(self.b_HGV, device), self.width // self.blocks
        past_BSD = zeros(batch, max(self.config.conv_width - 1, 0), self.width)
        return SLSTMLayerState(ConvState(past_BSD), SLSTMState(*(zeros(batch, self.blocks, V) for _ in range(4))))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 30 pointwise operations per channel, and of R beyond 2 per stored weight.

        A structured R is multiplied as a dense one, zeros included.
        """
        if self.recurrence is None:
            return 30.0 * self.width
        counted = sum(x.numel() for name, x in self.recurrence.named_parameters() if not name.startswith("graph"))
        return 30.0 * self.width + 8.0 * self.width * self.width / self.blocks - 2.0 * counted


def build_recurrence(config: SLSTMConfig, blocks: int, size: int) -> Recurrence | None:
    """The structure of R; None without R, and for dense blocks."""
    match config.recurrence:
        case "block" | "none":
            return None
        case "diagonal":
            return Diagonal(blocks, size)
        case "low_rank":
            return LowRank(blocks, size, config.recurrence_rank)
        case "sparse":
            return Sparse(blocks, size, config.recurrence_degree, config.recurrence_seed)
        case "learned":
            return Learned(blocks, size)
