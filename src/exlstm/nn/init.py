"""Initial values: fills of tensors, and tables of them that fill a module.

A table maps every parameter's name to its fill; a parameter without a row is an error.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Fill = Callable[[Tensor], object]


def zeros(x: Tensor) -> None:
    """Fills with 0."""
    x.zero_()


def ones(x: Tensor) -> None:
    """Fills with 1."""
    x.fill_(1)


def constant(value: float) -> Fill:
    """Fills with `value`."""
    return lambda x: x.fill_(value)


def normal(deviation: float, around: float = 0.0) -> Fill:
    """N(around, deviation^2)."""
    return lambda x: x.normal_(around, deviation)


def small(width: int) -> Fill:
    """N(0, 2 / (5 width)) (Nguyen & Salazar 2019): projections into a block, embeddings, heads."""
    return normal((2 / (5 * width)) ** 0.5)


def wang(width: int, depth: int) -> Fill:
    """N(0, (2 / (depth sqrt(width)))^2) (Wang & Komatsuzaki 2021): projections back into the residual stream."""
    return normal(2 / (depth * width**0.5))


def uniform(bound: float) -> Fill:
    """U(-bound, bound)."""
    return lambda x: x.uniform_(-bound, bound)


def between(low: float, high: float) -> Fill:
    """U(low, high)."""
    return lambda x: x.uniform_(low, high)


def log_uniform(low: float, high: float) -> Fill:
    """exp(U(log low, log high)): each factor of e is as likely as the next, as for the step sizes of state spaces."""
    return lambda x: x.uniform_(math.log(low), math.log(high)).exp_()


def orthogonal(gain: float = 1.0) -> Fill:
    """Matrices, along the last two axes, with orthonormal rows or columns, times `gain`."""

    def apply(x: Tensor) -> None:
        for matrix in x.view(-1, *x.shape[-2:]):
            nn.init.orthogonal_(matrix, gain)

    return apply


def xavier(gain: float = 1.0) -> Fill:
    """U(-b, b), b = gain sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""
    return lambda x: nn.init.xavier_uniform_(x, gain)


def counted(x: Tensor) -> None:
    """1, 2, 3, ... along the last axis."""
    x.copy_(torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype).expand_as(x))


def by_channel(of: Callable[[Tensor], Tensor]) -> Fill:
    """The values of a function of the channel's number, 0, 1, 2, ... in float64, with all axes counted as one."""
    return lambda x: x.copy_(of(torch.arange(x.numel(), device=x.device, dtype=torch.float64)).view(x.shape))


def multiples(step: float) -> Fill:
    """0, step, 2 step, ... along the last axis."""
    return lambda x: x.copy_(step * torch.arange(x.shape[-1], device=x.device, dtype=x.dtype).expand_as(x))


def logs(of: Fill) -> Fill:
    """log of the values of `of`, for parameters whose exponential is used."""
    return lambda x: (of(x), x.log_())


def logits(of: Fill) -> Fill:
    """The values whose sigmoids are those of `of`."""
    return lambda x: (of(x), x.logit_())


def inverse_softplus(of: Fill) -> Fill:
    """The values whose softplus is that of `of`: y + log(1 - exp(-y))."""
    return lambda x: (of(x), x.add_(torch.log(-torch.expm1(-x))))


def linspace(first: float, last: float) -> Fill:
    """Evenly spaced numbers along the last axis."""
    return lambda x: x.copy_(torch.linspace(first, last, x.shape[-1], device=x.device, dtype=x.dtype).expand_as(x))


def log_sigmoids(of: Fill) -> Fill:
    """log sigmoid of the values of `of`: an exponential forget gate then starts as open as a sigmoid one."""
    return lambda x: (of(x), x.copy_(torch.nn.functional.logsigmoid(x)))


def power_ramp(exponent: float, first: float, last: float, *, closed: bool = True) -> Fill:
    """first + (last - first) (j / J)^exponent for j = 0, 1, ... along the last axis.

    closed: J is one less than there are numbers, so that the last is `last`; else J is how many there are.
    """

    def apply(x: Tensor) -> None:
        count = x.shape[-1]
        share = torch.linspace(0, 1, count if closed else count + 1, device=x.device, dtype=x.dtype)[:count]
        x.copy_((first + (last - first) * share**exponent).expand_as(x))

    return apply


def geometric(first: float, ratio: float) -> Fill:
    """first, first ratio, first ratio^2, ... along the last axis."""
    return lambda x: x.copy_((first * ratio ** torch.arange(x.shape[-1], dtype=torch.float64)).expand_as(x))


def zigzag(around: float, by: float) -> Fill:
    """around + by (0, 1, -1, 0, 1, -1, ...) along the last axis."""

    def apply(x: Tensor) -> None:
        steps = (torch.arange(x.shape[-1], device=x.device) + 1) % 3 - 1
        x.copy_((around + by * steps.to(x.dtype)).expand_as(x))

    return apply


def hippo(states: int) -> tuple[Tensor, Tensor]:
    """Poles of the HiPPO matrix for Legendre polynomials, of its normal part (Gu et al. 2022, arXiv:2206.11893).

    The matrix is S = A + p p^T with A_nk = -sqrt((2n + 1)(2k + 1)) for n > k, -(n + 1) on the diagonal and 0 above it,
    and p_n = sqrt(n + 1/2). The real part of every pole is -1/2.

    Returns the imaginary parts below zero [states / 2], float64, which stand for a pair of poles each, and their
    eigenvectors as columns [states, states / 2], complex128.
    """
    p = torch.sqrt(torch.arange(states, dtype=torch.float64) + 0.5)
    # the part of S without its diagonal: skew-symmetric, so that -i times it has real eigenvalues
    skew = (torch.outer(p, p).triu(1) - torch.outer(p, p).tril(-1)).to(torch.complex128)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    return frequencies[: states // 2], vectors[:, : states // 2]


def power_law(index: int, depth: int) -> Fill:
    """5 - 12 (j / (V - 1))^(0.3 + 1.3 index / (depth - 1)) along the last axis: +5 to -7."""
    return power_ramp(0.3 + (1.3 * index / (depth - 1) if depth > 1 else 0.0), 5, -7)


def fill(module: nn.Module, table: Mapping[str, Fill]) -> None:
    """Fills every parameter of `module` from its row of the table. AssertionError unless the names are the same."""
    parameters = dict(module.named_parameters())
    assert parameters.keys() == table.keys(), f"rows and parameters differ: {sorted(parameters.keys() ^ table.keys())}"
    with torch.no_grad():
        for name, parameter in parameters.items():
            if not parameter.is_meta:  # on the meta device draws give no values, and cost more than building the model
                table[name](parameter)
