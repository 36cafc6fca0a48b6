"""Convolutions as matrix products: steps of all rows in columns of equal length, and Toeplitz matrices of a filter.

B batch  T time  E channels  M columns  L steps of a column  N columns of a row  Q filters  I their numbers (2 L - 1)
"""

from torch import Tensor
from torch.nn.functional import pad


def in_columns(x_BTE: Tensor, L: int, place_BT: Tensor | None = None, M: int = 0) -> Tensor:
    """x_EML: every step in a column, zeros elsewhere.

    Without places each row is cut every L steps, and columns are in the order (n, b). place_BT: of every step, its
    place among the steps of all M columns.
    """
    B, T, E = x_BTE.shape
    if place_BT is None:
        N = -(-T // L)
        filled = pad(x_BTE, (0, 0, 0, N * L - T)) if N * L > T else x_BTE
        return filled.reshape(B, N, L, E).permute(3, 1, 0, 2).reshape(E, N * B, L)
    steps = x_BTE.new_zeros(M * L, E)
    steps[place_BT.flatten()] = x_BTE.reshape(B * T, E)
    return steps.view(M, L, E).permute(2, 0, 1).contiguous()


def from_columns(y_EML: Tensor, B: int, T: int, place_BT: Tensor | None = None) -> Tensor:
    """y_BTE: the steps from their columns; what else is there is left out."""
    E, M, L = y_EML.shape
    if place_BT is not None:
        return y_EML.permute(1, 2, 0).reshape(M * L, E)[place_BT]
    N = -(-T // L)
    filled = y_EML.view(E, N, B, L).permute(2, 1, 3, 0).reshape(B, N * L, E)
    return filled[:, :T].contiguous()


def toeplitz(filter_QI: Tensor) -> Tensor:
    """[Q, L, L]: row s, column t is number L - 1 + t - s of the filter, which has 2 L - 1 of them."""
    L = (filter_QI.shape[1] + 1) // 2
    return filter_QI.unfold(1, L, 1).flip(1)


def diagonal_sums(x_QLL: Tensor) -> Tensor:
    """[Q, 2 L - 1]: the sums over elements of equal t - s, from 1 - L to L - 1; the gradient of `toeplitz`."""
    Q, L, _ = x_QLL.shape
    # in rows of 2 L numbers, read as rows of 2 L - 1, each row lies one place further: diagonals become columns
    sheared = pad(x_QLL.flip(1), (0, L)).flatten(1)[:, : L * (2 * L - 1)]
    return sheared.view(Q, L, 2 * L - 1).sum(1)
