"""The diagonal scan on a GPU as operators of torch, with its backward. A lone step is a scan of one step.

B batch  T time  E channels
"""

from typing import Any

import torch
import triton
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.scan.triton.kernels import Flags, Steps, backward_kernel, forward_kernel
from exlstm.runtime.gpu.operator import block_size, operator
from exlstm.runtime.tracing import has_gradients

MULTIPROCESSORS = 128  # of a large GPU, about
STAGES = 4  # steps whose inputs are on their way


def cut(B: int, E: int) -> tuple[int, int]:
    """(channels of a program, programs): few channels where there are few programs, but a whole line of memory."""
    block = block_size(E, 128)
    while block > 32 and B * triton.cdiv(E, block) < MULTIPROCESSORS:
        block //= 2
    return block, B * triton.cdiv(E, block)


def options(block: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {
        "BLOCK": block,
        "RESETS": reset_BT is not None,
        "RAGGED": lengths_B is not None,
        "STAGES": STAGES,
        "num_warps": max(1, block // 32),
    }


def flags_of(x: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None) -> Flags:
    """Resets and lengths; x, which is not read, where there are none."""
    return Flags(x if reset_BT is None else reset_BT.contiguous(), x if lengths_B is None else lengths_B.contiguous())


def steps_of(x_BTE: Tensor) -> Steps:
    """A tensor and its strides."""
    return Steps(x_BTE, *x_BTE.stride())


def forward(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h of every step and of the last one."""
    (B, T, E), (y_BTE, after_BE) = b_BTE.shape, fake_forward(a_BTE, b_BTE, h_BE)
    block, programs = cut(B, E)
    if programs:
        forward_kernel[programs,](
            steps_of(a_BTE),
            steps_of(b_BTE),
            flags_of(h_BE, reset_BT, lengths_B),
            h_BE.contiguous(),
            y_BTE,
            after_BE,
            T,
            E,
            **options(block, reset_BT, lengths_B),
        )
    return y_BTE, after_BE


def backward(
    a_BTE: Tensor,
    h_BE: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    y_BTE: Tensor,
    dy_BTE: Tensor,
    dafter_BE: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and the first h."""
    (B, T, E), (da_BTE, db_BTE, dh_BE) = y_BTE.shape, fake_backward(a_BTE, h_BE, None, None, y_BTE)
    block, programs = cut(B, E)
    if programs:
        backward_kernel[programs,](
            steps_of(a_BTE),
            flags_of(h_BE, reset_BT, lengths_B),
            h_BE.contiguous(),
            y_BTE,
            dy_BTE.contiguous(),
            dafter_BE.contiguous(),
            da_BTE,
            db_BTE,
            dh_BE,
            T,
            E,
            **options(block, reset_BT, lengths_B),
        )
    return da_BTE, db_BTE, dh_BE


def fake_forward(a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """The shapes of `forward`."""
    return h_BE.new_empty(b_BTE.shape), h_BE.new_empty(h_BE.shape)


def fake_backward(
    a_BTE: Tensor, h_BE: Tensor, reset_BT: Any, lengths_B: Any, y_BTE: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of `backward`."""
    return y_BTE.new_empty(y_BTE.shape), y_BTE.new_empty(y_BTE.shape), h_BE.new_empty(h_BE.shape)


run_forward = operator(
    "scan_forward(Tensor a, Tensor b, Tensor first, Tensor? reset, Tensor? lengths) -> (Tensor, Tensor)",
    forward,
    fake_forward,
)
run_backward = operator(
    "scan_backward(Tensor a, Tensor first, Tensor? reset, Tensor? lengths, Tensor y, Tensor dy, Tensor dlast) "
    "-> (Tensor, Tensor, Tensor)",
    backward,
    fake_backward,
)


class Scan(torch.autograd.Function):
    """(a, b, h before) -> (h of every step, h after), both float32; a and b in any dtype up to that."""

    @staticmethod
    def forward(
        ctx: Any, a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y_BTE, after_BE = run_forward(a_BTE, b_BTE, h_BE, reset_BT, lengths_B)
        ctx.save_for_backward(a_BTE, h_BE, reset_BT, lengths_B, y_BTE)
        return y_BTE, after_BE

    @staticmethod
    @once_differentiable("scan", "triton")
    def backward(ctx: Any, dy_BTE: Tensor, dafter_BE: Tensor) -> tuple[Tensor | None, ...]:
        return *run_backward(*ctx.saved_tensors, dy_BTE, dafter_BE), None, None


def scan_triton(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `scan_recurrent`, in float32."""
    call: Any = Scan.apply if has_gradients((a_BTE, b_BTE, h_BE)) else run_forward
    y_BTE, after_BE = call(a_BTE, b_BTE, h_BE, reset_BT, lengths_B)
    return y_BTE, after_BE
