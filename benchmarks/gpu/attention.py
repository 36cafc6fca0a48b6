"""The mLSTM op beside flash attention of the same width, as sequences grow and the tokens stay as many.

H V / 128 heads of 128, causal. Attention's FLOPs: 2 T 128 per head and token, for the half of Q K^T and P V that
counts, 3.5 times as many with the backward. Least bytes: q, k, v and the output; backward q, k, v, its gradient, dq,
dk, dv.
"""

from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu import mlstm_op
from benchmarks.gpu.calls import DIRECTIONS, call
from benchmarks.gpu.work import Cost, Setup, Variant, Work
from benchmarks.harness import Run

TOKENS, LENGTHS, H, K, V = 65_536, (512, 2048, 8192), 16, 128, 256
TINY_TOKENS, TINY_LENGTHS = 32, (16,)
WIDTH = 128  # of a head
BACKENDS = {"flash attention": "FLASH_ATTENTION", "cuDNN attention": "CUDNN_ATTENTION"}


def works(setup: Setup) -> Iterator[Work]:
    """Times every length, without gradients and with them."""
    tokens, lengths = (TINY_TOKENS, TINY_LENGTHS) if setup.tiny else (TOKENS, LENGTHS)
    for T in lengths:
        for direction, both in DIRECTIONS.items():
            size = (tokens // T, T, H, K, V) if not setup.tiny else (tokens // T, T, 2, 16, WIDTH // 2)
            inputs, heads = mlstm_op.Inputs(size, setup), size[2] * size[4] // WIDTH
            qkv = Heads((size[0], heads, T, WIDTH), setup)
            about = f"mLSTM, B, T, H, K, V = {size}, and causal attention of {heads} heads of {WIDTH}, {direction}"
            theirs = {
                name: Variant(build=partial(qkv.build, backend, both), cost=cost(size[0], heads, T, both))
                for name, backend in BACKENDS.items()
            }
            ours = mlstm_op.ours(inputs, both)
            yield Work(name=f"t{T}_{direction}", about=about.replace("_", " and "), variants=ours | theirs)


class Heads:
    """q, k, v of attention, [B, heads, T, 128], on the card when they are first asked for."""

    def __init__(self, shape: tuple[int, int, int, int], setup: Setup) -> None:
        self.shape, self.setup = shape, setup

    @cached_property
    def qkv(self) -> list[Tensor]:
        return [torch.randn(self.shape, device=self.setup.device, dtype=self.setup.dtype) for _ in range(3)]

    def build(self, backend: str, both: bool) -> Run:
        """torch's attention with one fixed backend."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def attention(*qkv: Tensor) -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return scaled_dot_product_attention(*qkv, is_causal=True)

        return call(attention, self.qkv, (lambda: torch.randn_like(self.qkv[0])) if both else None)


def cost(B: int, heads: int, T: int, both: bool) -> Cost:
    """The cost, as the module's docstring counts it."""
    numbers = B * heads * T * WIDTH
    return Cost(2 * numbers * (11 if both else 4), 2 * numbers * T * (3.5 if both else 1))
