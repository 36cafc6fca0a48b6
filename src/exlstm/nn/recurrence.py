"""Structures of the sLSTM's recurrent weights R: who hears whom within a block of units.

Each holds the parameters of one structure; its forward returns the effective R, dense within the blocks, as
`exlstm.ops.slstm` takes it. It is put together once a call, not once a step.

H blocks of R  K units heard and V units that hear (the same ones)  G gates: i, f, z, o  J rank, or units that a unit
hears
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from exlstm.nn import init
from exlstm.ops.common import exactly, wide

RecurrentInit = Literal["zeros", "uniform"]
# The hard concrete distribution (Louizos, Welling & Kingma 2018, arXiv:1712.01312): temperature, and the interval that
# its numbers are stretched to before they are cut to [0, 1]; the paper's values.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


class Recurrence(nn.Module):
    """A structure of R with `blocks` blocks of `size` units."""

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
        """Who hears whom, bool [H, K, V]: True where R has weights from unit K to the gates of unit V."""
        return torch.ones(self.blocks, self.size, self.size, dtype=torch.bool)


class Diagonal(Recurrence):
    """Each unit hears itself."""

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__(blocks, size)
        self.r_HGV = nn.Parameter(torch.empty(blocks, 4, size))

    def forward(self) -> Tensor:
        """Zeros beside the diagonal."""
        return torch.diag_embed(self.r_HGV, dim1=1, dim2=3)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """A unit hears one unit: +-1."""
        return {"r_HGV": init.zeros if start == "zeros" else init.uniform(1)}

    def connections(self) -> Tensor:
        """The identity."""
        return torch.eye(self.size, dtype=torch.bool).expand(self.blocks, -1, -1)


class LowRank(Recurrence):
    """R of a block is a product: `rank` sums over the units, which all gates of all units hear."""

    def __init__(self, blocks: int, size: int, rank: int) -> None:
        super().__init__(blocks, size)
        if not 1 <= rank <= size:
            raise ValueError(f"recurrence_rank is {rank}; it must be from 1 to {size}, the width of a block of R.")
        self.r_in_HKJ = nn.Parameter(torch.empty(blocks, size, rank))
        self.r_out_HJGV = nn.Parameter(torch.empty(blocks, rank, 4, size))

    def forward(self) -> Tensor:
        """The product of the two factors, as wide as states."""
        r_in_HKJ, r_out_HJM = wide(self.r_in_HKJ), wide(self.r_out_HJGV).flatten(2)
        with exactly(self.r_in_HKJ):
            r_HKM = r_in_HKJ @ r_out_HJM
        return r_HKM.view(self.blocks, self.size, 4, self.size).to(self.r_in_HKJ.dtype)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """Elements of the product have the variance of a dense R, or are zero because the second factor is."""
        rank = self.r_in_HKJ.shape[2]
        return {
            "r_in_HKJ": init.uniform((3 / rank) ** 0.5),
            "r_out_HJGV": init.zeros if start == "zeros" else init.uniform(bound),
        }


class Sparse(Recurrence):
    """Each unit hears `degree` units of its block, itself among them: a fixed random graph, the same for four gates.

    The graph is a function of these numbers and the seed. It is not saved with the weights.
    """

    sources_HJV: Tensor

    def __init__(self, blocks: int, size: int, degree: int, seed: int) -> None:
        super().__init__(blocks, size)
        if not 1 <= degree <= size:
            raise ValueError(f"recurrence_degree is {degree}; it must be from 1 to {size}, the width of a block of R.")
        self.r_HJGV = nn.Parameter(torch.empty(blocks, degree, 4, size))
        self.register_buffer("sources_HJV", random_graph(blocks, size, degree, seed), persistent=False)

    def forward(self) -> Tensor:
        """Zeros where there is no connection."""
        zeros_HKGV = self.r_HJGV.new_zeros(self.blocks, self.size, 4, self.size)
        return zeros_HKGV.scatter(1, self.sources_HJV[:, :, None].expand_as(self.r_HJGV), self.r_HJGV)

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """+-1 / sqrt(units heard)."""
        return {"r_HJGV": init.zeros if start == "zeros" else init.uniform(self.r_HJGV.shape[1] ** -0.5)}

    def connections(self) -> Tensor:
        """The graph."""
        return super().connections().logical_not().scatter(1, self.sources_HJV.cpu(), value=True)


def random_graph(blocks: int, size: int, degree: int, seed: int) -> Tensor:
    """Which units every unit hears, [H, J, V], itself first; on the CPU, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    lots_HKV = torch.rand(blocks, size, size, generator=generator, dtype=torch.float64, device="cpu")
    lots_HKV = lots_HKV.masked_fill(torch.eye(size, dtype=torch.bool, device="cpu"), -1)  # each draws itself
    return lots_HKV.argsort(dim=1)[:, :degree].contiguous()


class Learned(Recurrence):
    """A graph that is learned: a dense R times a gate per connection, the same for four gates.

    A gate is hard concrete: in [0, 1], and with some probability exactly 0 or 1. In training every call draws gates
    anew from torch's default generator of the device, so a sequence that is cut in two meets two draws, and copies of a
    model on several threads draw in the order in which they come: training runs it with one worker. In evaluation
    gates are what the paper takes for it, without chance. `graph_penalty` is what makes gates close.
    """

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__(blocks, size)
        self.r_HKGV = nn.Parameter(torch.empty(blocks, size, 4, size))
        self.graph_HKV = nn.Parameter(torch.empty(blocks, size, size))  # log alpha

    def forward(self) -> Tensor:
        """Weights times gates."""
        return (wide(self.r_HKGV) * self.gates()[:, :, None]).to(self.r_HKGV.dtype)

    def gates(self) -> Tensor:
        """[H, K, V] in [0, 1], drawn anew in training, else the paper's estimator, which is the same every time."""
        log_alpha_HKV = wide(self.graph_HKV)
        if self.training:
            noise_HKV = torch.rand_like(log_alpha_HKV).logit(eps=1e-6)
            log_alpha_HKV = (log_alpha_HKV + noise_HKV) / TEMPERATURE
        return (torch.sigmoid(log_alpha_HKV) * (HIGH - LOW) + LOW).clamp(0, 1)

    def penalty(self) -> Tensor:
        """The number of gates that are expected to be open (not zero) in training; differentiable."""
        return torch.sigmoid(wide(self.graph_HKV) - TEMPERATURE * math.log(-LOW / HIGH)).sum()

    def table(self, start: RecurrentInit, bound: float) -> dict[str, init.Fill]:
        """Gates as the paper's code has them for a drop rate of 0.5: log alpha 0, with deviation 0.01 to be unlike.

        In training a gate is then not zero with probability 0.83, and half open on average.
        """
        return {"r_HKGV": init.zeros if start == "zeros" else init.uniform(bound), "graph_HKV": init.normal(0.01)}

    @torch.no_grad()
    def connections(self) -> Tensor:
        """The gates that are not zero in evaluation."""
        return torch.sigmoid(wide(self.graph_HKV)).cpu() > -LOW / (HIGH - LOW)


@runtime_checkable
class Recurrent(Protocol):
    """A mixer that feeds its output back through recurrent weights."""

    def adjacency(self) -> Tensor:
        """Who hears whom, bool [D, D] on the CPU: True where there are weights from the first unit to the second."""

    def num_recurrent_weights(self) -> int:
        """Recurrent weights that are not zero by structure: four per connection."""


def num_recurrent_weights(model: nn.Module) -> int:
    """Recurrent weights of the whole model that are not zero by structure; of learned graphs, in evaluation."""
    return sum(module.num_recurrent_weights() for module in model.modules() if isinstance(module, Recurrent))


def block_diagonal(open_HKV: Tensor) -> Tensor:
    """Who hears whom among all units, from who does within each block: bool [D, D]."""
    H, K, _ = open_HKV.shape
    return torch.diag_embed(open_HKV.permute(1, 2, 0), dim1=0, dim2=2).reshape(H * K, H * K)


def graph_penalty(model: nn.Module) -> Tensor:
    """How many connections of learned graphs are expected to be open in the whole model: a differentiable scalar.

    Times a price it is added to the loss (Louizos et al. 2018). 0 for a model without learned graphs.
    """
    found = [module.penalty() for module in model.modules() if isinstance(module, Learned)]
    device = next((parameter.device for parameter in model.parameters()), None)
    return torch.stack(found).sum() if found else torch.zeros((), device=device)
