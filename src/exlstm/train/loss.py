"""Cross entropy of next-token predictions, in float32 or wider whatever the logits are.

B batch  T time  C classes (vocabulary)  N tokens  L tokens of one chunk
"""

import math
from typing import Any

import torch
from torch import Tensor

from exlstm.data.packing import IGNORE

_CHUNK = 1 << 22  # float32 numbers that are alive at once beyond the logits themselves


class _CrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(logits)[target], in chunks of tokens, so that a big vocabulary needs no copy in float32.

    Only the logits and one log-sum-exp per token are kept for the backward, which is softmax(logits) - onehot(target).
    """

    @staticmethod
    def forward(ctx: Any, logits_NC: Tensor, targets_N: Tensor) -> Tensor:
        lse_N = torch.cat([_wide(logits_LC).logsumexp(dim=1) for logits_LC in torch.split(logits_NC, _rows(logits_NC))])
        picked_N = _wide(logits_NC.gather(1, targets_N.clamp(min=0)[:, None])[:, 0])
        ctx.save_for_backward(logits_NC, targets_N, lse_N)
        return (lse_N - picked_N).where(targets_N != IGNORE, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits_NC, targets_N, lse_N = ctx.saved_tensors
        grad_NC = torch.empty_like(logits_NC)
        for start in range(0, len(targets_N), _rows(logits_NC)):
            chunk = slice(start, start + _rows(logits_NC))
            targets_L = targets_N[chunk]
            p_LC = (_wide(logits_NC[chunk]) - lse_N[chunk, None]).exp_()
            p_LC[torch.arange(len(p_LC), device=p_LC.device), targets_L.clamp(min=0)] -= 1
            grad_NC[chunk] = p_LC.mul_(grad * (targets_L != IGNORE)[:, None])
        return grad_NC, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(logits_NC: Tensor) -> int:
    return max(1, _CHUNK // logits_NC.shape[1])


def cross_entropy(logits_BTC: Tensor, targets_BT: Tensor) -> Tensor:
    """Total in nats (a scalar, float32 or wider) over all predictions; int64 targets, those that are IGNORE count 0."""
    total: Tensor = _CrossEntropy.apply(logits_BTC.flatten(0, 1), targets_BT.flatten())  # type: ignore[no-untyped-call]
    return total


def bits_per_byte(nats: float, size: float) -> float:
    """The loss in a unit that does not depend on the tokenizer: total nats / ln 2 / bytes of text."""
    return nats / math.log(2) / size
