"""Connectivity of the sLSTM: structures of the recurrent weights R within blocks of units.

A structure holds its parameters; its forward returns the effective R, dense within the blocks, as `exlstm.ops.slstm`
takes it. R is put together once a call, not once a step.

H blocks of R  K source units and V target units (the same ones)  G gates: i, f, z, o  J rank, or sources of a unit
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from exlstm.nn import init
from exlstm.ops.common import upcast, without_autocast

RecurrentInit = Literal["zeros", "uniform"]
# Hard concrete distribution (Louizos, Welling & Kingma 2018, arXiv:1712.01312), with the paper's values: temperature,
# and the interval that samples are stretched to before they are clipped to [0, 1].
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


class Recurrence(nn.Module):
    """Base of the structures of R: `blocks` blocks of `size` units."""

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__()
        self.blocks, self.size = blocks, size

    def forward(self) -> Tensor:
        """The effective R, [H, K, 4, V], in the dtype of the parameters."""
        raise NotImplementedError

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """Initial values by parameter. start: of R, "zeros" or "uniform"; bound: of a uniform dense R."""
        raise NotImplementedError

    def connections(self) -> Tensor:
        """Connectivity, bool [H, K, V]: True where R has weights from unit K to the gates of unit V."""
        return torch.ones(self.blocks, self.size, self.size, dtype=torch.bool)


class Diagonal(Recurrence):
    """Diagonal R: each unit is connected to itself."""

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__(blocks, size)
        self.r_HGV = nn.Parameter(torch.empty(blocks, 4, size))

    def forward(self) -> Tensor:
        """R with zeros off the diagonal."""
        return torch.diag_embed(self.r_HGV, dim1=1, dim2=3)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """+-1: a unit has one source."""
        return {"r_HGV": init.zeros if start == "zeros" else init.uniform(1)}

    def connections(self) -> Tensor:
        """Identity matrices."""
        return torch.eye(self.size, dtype=torch.bool).expand(self.blocks, -1, -1)


class LowRank(Recurrence):
    """Low-rank R: in each block a product of two factors of this rank, all units to all gates of all units."""

    def __init__(self, blocks: int, size: int, rank: int) -> None:
        super().__init__(blocks, size)
        if not 1 <= rank <= size:
            raise ValueError(f"recurrence_rank is {rank}; it must be from 1 to {size}, the width of a block of R.")
        self.r_in_HKJ = nn.Parameter(torch.empty(blocks, size, rank))
        self.r_out_HJGV = nn.Parameter(torch.empty(blocks, rank, 4, size))

    def forward(self) -> Tensor:
        """Product of the factors, computed in float32 or wider."""
        r_in_HKJ, r_out_HJM = upcast(self.r_in_HKJ), upcast(self.r_out_HJGV).flatten(2)
        with without_autocast(self.r_in_HKJ):
            r_HKM = r_in_HKJ @ r_out_HJM
        return r_HKM.view(self.blocks, self.size, 4, self.size).to(self.r_in_HKJ.dtype)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """Factors whose product has the variance of a dense R; for zeros, the second factor is zero."""
        rank = self.r_in_HKJ.shape[2]
        return {
            "r_in_HKJ": init.uniform((3 / rank) ** 0.5),
            "r_out_HJGV": init.zeros if start == "zeros" else init.uniform(bound),
        }


class Sparse(Recurrence):
    """Sparse R: a fixed random graph, the same for four gates. Each unit has `degree` sources, itself among them.

    The graph is a function of the sizes and the seed. It is not saved with the weights.
    """

    sources_HJV: Tensor

    def __init__(self, blocks: int, size: int, degree: int, seed: int) -> None:
        super().__init__(blocks, size)
        if not 1 <= degree <= size:
            raise ValueError(f"recurrence_degree is {degree}; it must be from 1 to {size}, the width of a block of R.")
        self.r_HJGV = nn.Parameter(torch.empty(blocks, degree, 4, size))
        self.register_buffer("sources_HJV", random_graph(blocks, size, degree, seed), persistent=False)

    def forward(self) -> Tensor:
        """R with zeros where there is no connection."""
        zeros_HKGV = self.r_HJGV.new_zeros(self.blocks, self.size, 4, self.size)
        return zeros_HKGV.scatter(1, self.sources_HJV[:, :, None].expand_as(self.r_HJGV), self.r_HJGV)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """+-1 / sqrt(sources of a unit)."""
        return {"r_HJGV": init.zeros if start == "zeros" else init.uniform(self.r_HJGV.shape[1] ** -0.5)}

    def connections(self) -> Tensor:
        """The random graph."""
        return super().connections().logical_not().scatter(1, self.sources_HJV.cpu(), value=True)


def random_graph(blocks: int, size: int, degree: int, seed: int) -> Tensor:
    """Sources of every unit, [H, J, V], itself first; on the CPU, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    lots_HKV = torch.rand(blocks, size, size, generator=generator, dtype=torch.float64, device="cpu")
    lots_HKV = lots_HKV.masked_fill(torch.eye(size, dtype=torch.bool, device="cpu"), -1)  # each unit comes first
    return lots_HKV.argsort(dim=1)[:, :degree].contiguous()


class Learned(Recurrence):
    """Learned graph: a dense R times a gate per connection, the same for four gates.

    A gate is hard concrete: in [0, 1], and with some probability exactly 0 or 1. In evaluation it is the paper's
    deterministic estimator. In training every call draws gates from torch's default generator of the device: a
    sequence in two calls has two draws, and results with several worker threads would depend on their order, so
    training uses one. `graph_penalty` drives gates to 0.
    """

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__(blocks, size)
        self.r_HKGV = nn.Parameter(torch.empty(blocks, size, 4, size))
        self.graph_HKV = nn.Parameter(torch.empty(blocks, size, size))  # log alpha

    def forward(self) -> Tensor:
        """R times the gates."""
        return (upcast(self.r_HKGV) * self.gates()[:, :, None]).to(self.r_HKGV.dtype)

    def gates(self) -> Tensor:
        """Gates [H, K, V] in [0, 1]: a draw in training, the paper's deterministic estimator in evaluation."""
        log_alpha_HKV = upcast(self.graph_HKV)
        if self.training:
            noise_HKV = torch.rand_like(log_alpha_HKV).logit(eps=1e-6)
            log_alpha_HKV = (log_alpha_HKV + noise_HKV) / TEMPERATURE
        return (torch.sigmoid(log_alpha_HKV) * (HIGH - LOW) + LOW).clamp(0, 1)

    def penalty(self) -> Tensor:
        """Expected number of open (nonzero) gates in training; differentiable."""
        return torch.sigmoid(upcast(self.graph_HKV) - TEMPERATURE * math.log(-LOW / HIGH)).sum()

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """log alpha 0 with deviation 0.01, as in the paper's code for a drop rate of 0.5.

        In training a gate is then nonzero with probability 0.83, and 0.5 on average.
        """
        return {"r_HKGV": init.zeros if start == "zeros" else init.uniform(bound), "graph_HKV": init.normal(0.01)}

    @torch.no_grad()
    def connections(self) -> Tensor:
        """Connectivity in evaluation: gates that are not zero."""
        return torch.sigmoid(upcast(self.graph_HKV)).cpu() > -LOW / (HIGH - LOW)


@runtime_checkable
class Recurrent(Protocol):
    """Mixer that feeds its output back through recurrent weights."""

    def adjacency(self) -> Tensor:
        """Connectivity, bool [D, D] on the CPU: True where there are weights from the first unit to the second."""

    def num_recurrent_weights(self) -> int:
        """Number of recurrent weights that are not zero by structure: four per connection."""


def num_recurrent_weights(model: nn.Module) -> int:
    """Number of recurrent weights of a model that are not zero by structure; of learned graphs, in evaluation."""
    return sum(module.num_recurrent_weights() for module in model.modules() if isinstance(module, Recurrent))


def block_diagonal(open_HKV: Tensor) -> Tensor:
    """Connectivity among all units, bool [D, D], from that within each block."""
    H, K, _ = open_HKV.shape
    return torch.diag_embed(open_HKV.permute(1, 2, 0), dim1=0, dim2=2).reshape(H * K, H * K)


def graph_penalty(model: nn.Module) -> Tensor:
    """Expected number of open connections of a model's learned graphs: a differentiable scalar, 0 without any.

    Times a price it is added to the loss (Louizos et al. 2018).
    """
    found = [module.penalty() for module in model.modules() if isinstance(module, Learned)]
    device = next((parameter.device for parameter in model.parameters()), None)
    return torch.stack(found).sum() if found else torch.zeros((), device=device)
