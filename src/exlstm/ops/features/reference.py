"""Feature maps of linear attention in plain torch: the definitions.

K width of x  M random features
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from exlstm.ops.common import without_autocast

FAVOR_EPS = 1e-4


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1, of any shape: e^x for x < 0, else x + 1. No numbers near 1 are subtracted."""
    positive = relu(x)
    return positive + torch.exp(x - positive)


def taylor_torch(x: Tensor) -> Tensor:
    """[..., K] -> [..., 1 + K + K (K + 1) / 2]: 1, y, and for every i y_i^2 / sqrt(2) and y_i y_j, j > i."""
    y: Tensor = x * x.shape[-1] ** -0.25
    squares = [
        y[..., i : i + 1] * torch.cat([y[..., i : i + 1] * 0.5**0.5, y[..., i + 1 :]], dim=-1)
        for i in range(x.shape[-1])
    ]
    return torch.cat([x.new_ones(()).expand(*x.shape[:-1], 1), y, *squares], dim=-1)


def favor_torch(x: Tensor, rows_MK: Tensor, is_query: bool) -> Tensor:
    """[..., K] -> [..., M]."""
    M, K = rows_MK.shape
    y = x * K**-0.25
    with without_autocast(x):
        exponent = linear(y, rows_MK) - 0.5 * y.square().sum(-1, keepdim=True)
    if is_query:
        exponent = exponent - exponent.detach().amax(-1, keepdim=True)
    features: Tensor = (torch.exp(exponent) + FAVOR_EPS) * M**-0.5
    return features


def random_rows(count: int, width: int, seed: int) -> Tensor:
    """Rows [count, width] for `favor`, in float64 on the CPU, the same for a seed on every machine.

    Every `width` of them are orthogonal, in directions that are all as likely, with the norms of Gaussian rows.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, dtype=torch.float64, device="cpu")

    blocks: list[Tensor] = []
    for _ in range(-(-count // width)):
        q, r = torch.linalg.qr(gaussian(width))
        # LAPACK chooses signs by the input, so that some directions would never be drawn
        blocks.append((q * r.diagonal().sign()).mT)
    rows: Tensor = torch.cat(blocks)[:count] * torch.linalg.vector_norm(gaussian(count), dim=1, keepdim=True)
    return rows
