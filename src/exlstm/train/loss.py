"""Cross entropy of next-token predictions, in float32 or wider whatever the model's precision.

B batch  T time  D model width  C classes (vocabulary)  N tokens  L tokens of one chunk
"""

import math
from typing import Any

import torch
from torch import Tensor

from exlstm.data.packing import IGNORE
from exlstm.models.lm import LM
from exlstm.nn.linear import Linear
from exlstm.ops.derivatives import twice_differentiable
from exlstm.ops.products import add_product, product
from exlstm.runtime.availability import bfloat16_is_emulated
from exlstm.runtime.internals import has_hooks
from exlstm.runtime.tracing import TRANSFORMED, tracer

# logits of one chunk, 64 MiB in float32. Each chunk reads and writes the whole gradient of the head: with chunks of a
# quarter, and 32,000 classes, a step took 1.3 times as long
_CHUNK = 1 << 24


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(cap(x W^T))[target] in chunks of tokens, so that only one chunk of logits is in memory.

    Gradients are computed in the forward, from a chunk's probabilities, and scaled in the backward. Recomputing the
    logits in the backward took 1.4 times as long (four products instead of three), and would save one [C, D].
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_CD: Tensor, targets_N: Tensor, cap: float | None) -> Tensor:
        ctx.dtype = w_CD.dtype
        dx_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        x_ND, w_CD = _as_multiplied(x_ND), _as_multiplied(w_CD)
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        dw_CD = torch.zeros_like(w_CD, dtype=wide) if ctx.needs_input_grad[1] else None
        total = x_ND.new_zeros((), dtype=wide)
        rows = max(1, min(_rows(len(w_CD)), len(x_ND)))
        # one buffer for all chunks: page faults of fresh memory take time
        room = x_ND.new_empty(rows, len(w_CD), dtype=wide)
        for start in range(0, len(x_ND), rows):
            chunk = slice(start, start + rows)
            x_LD, targets_L = x_ND[chunk], targets_N[chunk]
            z_LC = _product(x_LD, w_CD.T, room[: len(x_LD)])
            total += _nats_and_gradient(z_LC, targets_L, cap)
            dz_LC = z_LC.to(x_LD.dtype)
            if dx_ND is not None:
                _product(dz_LC, w_CD, dx_ND[chunk])
            if dw_CD is not None:
                dw_CD = add_product(dw_CD, dz_LC.T, x_LD) if dz_LC.dtype == wide else dw_CD.add_(dz_LC.T @ x_LD)
        ctx.save_for_backward(dx_ND, dw_CD)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise ValueError("create_graph=True asks linear_cross_entropy for second derivatives; use cross_entropy.")
        dx_ND, dw_CD = ctx.saved_tensors
        dw_CD = None if dw_CD is None else (dw_CD * grad).to(ctx.dtype)
        return None if dx_ND is None else dx_ND * grad, dw_CD, None, None


def _as_multiplied(x: Tensor) -> Tensor:
    """x in the dtype that it is multiplied in: autocast's where that is on, float32 for emulated bfloat16 on a CPU."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    return x.float() if x.is_cpu and x.dtype == torch.bfloat16 and bfloat16_is_emulated() else x


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """The product a b in `out`, which may have another dtype."""
    return product(a, b, out=out) if a.dtype == out.dtype else out.copy_(a @ b)


def _nats_and_gradient(z_LC: Tensor, targets_L: Tensor, cap: float | None) -> Tensor:
    """The total nats of a chunk. z_LC: logits before the cap; their gradient takes their place."""
    slope_LC = None
    if cap is not None:
        z_LC.div_(cap).tanh_()
        slope_LC = z_LC.square().neg_().add_(1)
        z_LC.mul_(cap)
    counts_L = targets_L != IGNORE
    picked = torch.arange(len(z_LC), device=z_LC.device), targets_L.clamp(min=0)
    z_LC.sub_(z_LC.amax(dim=1, keepdim=True))
    picked_L = z_LC[picked]
    sum_L = z_LC.exp_().sum(dim=1)
    nats = (sum_L.log() - picked_L).where(counts_L, 0.0).sum()
    z_LC.mul_((counts_L / sum_L)[:, None])
    z_LC[picked] -= counts_L.to(z_LC.dtype)
    if slope_LC is not None:
        z_LC.mul_(slope_LC)
    return nats


class _CrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(logits)[target], in chunks of tokens, so that a big vocabulary needs no copy in float32.

    Saved for the backward, which is softmax(logits) - onehot(target), are the logits and one log-sum-exp per token.
    Autograd of `_definition` would also save logits in float32, and round gradients at the target differently.
    """

    @staticmethod
    def forward(ctx: Any, logits_NC: Tensor, targets_N: Tensor) -> Tensor:
        chunks = torch.split(logits_NC, _rows(logits_NC.shape[1]))
        lse_N = torch.cat([_wide(logits_LC).logsumexp(dim=1) for logits_LC in chunks])
        ctx.save_for_backward(logits_NC, targets_N, lse_N)
        ctx.options = {}
        return _nats(logits_NC, targets_N, lse_N)

    @staticmethod
    @twice_differentiable(lambda logits_NC, targets_N, _: _definition(logits_NC, targets_N))
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits_NC, targets_N, lse_N = ctx.saved_tensors
        grad_NC, rows = torch.empty_like(logits_NC), _rows(logits_NC.shape[1])
        for start in range(0, len(targets_N), rows):
            chunk = slice(start, start + rows)
            targets_L = targets_N[chunk]
            p_LC = (_wide(logits_NC[chunk]) - lse_N[chunk, None]).exp_()
            p_LC[torch.arange(len(p_LC), device=p_LC.device), targets_L.clamp(min=0)] -= 1
            grad_NC[chunk] = p_LC.mul_(grad * (targets_L != IGNORE)[:, None])
        return grad_NC, None


def _nats(logits_NC: Tensor, targets_N: Tensor, lse_N: Tensor) -> Tensor:
    """The total nats, given the log-sum-exp of every row."""
    picked_N = _wide(logits_NC.gather(1, targets_N.clamp(min=0)[:, None])[:, 0])
    return (lse_N - picked_N).where(targets_N != IGNORE, 0.0).sum()


def _definition(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """`cross_entropy` in plain torch, all rows at once: for tracers, transforms and second derivatives."""
    return _nats(logits_NC, targets_N, _wide(logits_NC).logsumexp(dim=1))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(classes: int) -> int:
    return max(1, _CHUNK // classes)


def cross_entropy(logits_BTC: Tensor, targets_BT: Tensor) -> Tensor:
    """Total nats over all predictions, a scalar in float32 or wider. int64 targets; those that are IGNORE count 0."""
    logits_NC, targets_N = logits_BTC.flatten(0, 1), targets_BT.flatten()
    if tracer() is not None:
        return _definition(logits_NC, targets_N)
    total: Tensor = _CrossEntropy.apply(logits_NC, targets_N)  # type: ignore[no-untyped-call]
    return total


def linear_cross_entropy(x_BTD: Tensor, w_CD: Tensor, targets_BT: Tensor, cap: float | None = None) -> Tensor:
    """`cross_entropy` of the logits x W^T with one chunk of them in memory. cap: soft limit, cap tanh(logits / cap).

    Products have the precision of a Linear, also under autocast; everything else is float32 or wider. For training:
    gradients are computed in the forward, and there are no second derivatives.
    Raises ValueError inside transforms of torch.func.
    """
    if tracer() is TRANSFORMED:
        raise ValueError("linear_cross_entropy cannot be transformed by torch.func; use cross_entropy.")
    total: Tensor = _LinearCrossEntropy.apply(x_BTD.flatten(0, 1), w_CD, targets_BT.flatten(), cap)  # type: ignore[no-untyped-call]
    return total


def model_cross_entropy(model: LM, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """`cross_entropy` of the model's predictions from `model.hidden`, without all logits in memory.

    A head with hooks, or that is not a plain matrix, is called as a module, with a chunk of tokens at a time. Autograd
    then saves its logits.
    """
    head, cap = model.head, model.config.logit_cap
    if torch.is_grad_enabled() and type(head) is Linear and head.stored()[1] is None and not has_hooks(head):
        return linear_cross_entropy(hidden_BTD, head.weight, targets_BT, cap)
    rows = _rows(model.config.vocab_size)
    chunks = zip(*(torch.split(x.flatten(0, 1), rows) for x in (hidden_BTD, targets_BT)), strict=True)
    return torch.stack([cross_entropy(model.read_out(x_LD)[None], targets_L[None]) for x_LD, targets_L in chunks]).sum()


def bits_per_byte(nats: float, size: float) -> float:
    """Bits per byte, which do not depend on the tokenizer: nats / ln 2 / size."""
    return nats / math.log(2) / size
