"""The mLSTM op beside the Triton kernels of `mlstm_kernels` and FLA's simple GLA (no input gate, no normaliser).

The least that the op takes, s bytes per number, per head and step: q, k, v read and h written, (2 K + 2 V) s, and the
gates in float32; the backward reads q, k, v, dh and writes dq, dk, dv, (4 K + 3 V) s, and the gates and their
gradients. FLOPs: 4 K V for the memory (write and read) and L (K + V) for the causal half of a chunk of L = 64; twice as
many again in the backward. What is computed again, and states that are written, do not count.
"""

from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from accuracy import DRAWS, assert_as_accurate
from benchmarks.gpu.calls import DIRECTIONS, call, same_rows
from benchmarks.gpu.work import Cost, Setup, Variant, Work, finite
from benchmarks.harness import Run
from exlstm.ops.mlstm import MLSTMState, mlstm

Size = tuple[int, int, int, int, int]  # B, T, H, K, V
Called = tuple[
    Callable[..., Any], list[Tensor], Callable[[], Tensor]
]  # an op, its inputs, the gradient that comes back
SHAPES: dict[str, Size] = {"b8h16k128v256": (8, 8192, 16, 128, 256), "b8h8k256v512": (8, 8192, 8, 256, 512)}
TINY: dict[str, Size] = {"tiny": (1, 24, 2, 16, 64)}
CHUNKS = (64, 128, 256)
FLOPS_CHUNK = 64
OPEN = 30.0  # an input gate that is 1


def works(setup: Setup) -> Iterator[Work]:
    """Yields both shapes, without gradients and with them."""
    for shape, size in (TINY if setup.tiny else SHAPES).items():
        for direction, both in DIRECTIONS.items():
            B, T, H, K, V = size
            about = f"B {B}, T {T}, H {H}, K {K}, V {V}, {str(setup.dtype)[6:]}, {direction.replace('_', ' and ')}"
            inputs = Inputs(size, setup)
            theirs = {
                name: Variant(
                    build=partial(build_peer, peer, inputs, both), cost=cost(size, both),
                    check=finite if both else partial(same, inputs),
                )
                for name, (peer, same) in PEERS.items()
            }  # fmt: skip
            yield Work(name=f"{shape}_{direction}", about=about, variants=ours(inputs, both) | theirs)


class Inputs:
    """Inputs, the same for all programs, made at first use; gates have the digits of the dtype only."""

    def __init__(self, size: Size, setup: Setup) -> None:
        self.size, self.setup = size, setup

    @cached_property
    def time_first(self) -> list[Tensor]:
        """q, k, v: [B, T, H, ...]; i, f: [B, T, H] in float32."""
        B, T, H, K, V = self.size
        generator = torch.Generator(self.setup.device).manual_seed(0)
        shapes = [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H)]
        q, k, v, i, f = (
            torch.randn(shape, generator=generator, device=self.setup.device).to(self.setup.dtype) for shape in shapes
        )
        return [q, k, v, i.float(), (f + 3).float()]

    @cached_property
    def heads_first(self) -> list[Tensor]:
        """[B, H, T, ...], all in the dtype."""
        return [x.transpose(1, 2).contiguous().to(self.setup.dtype) for x in self.time_first]

    @cached_property
    def grad_BTHV(self) -> Tensor:
        return torch.randn_like(self.time_first[2])

    def heads_first_grad(self) -> Tensor:
        return self.grad_BTHV.transpose(1, 2).contiguous()

    @cached_property
    def plain(self) -> Tensor:
        with torch.no_grad():
            return mlstm(*self.time_first, backend="chunkwise")[0]

    @cached_property
    def plain_sigmoid(self) -> Tensor:
        return sigmoid(*self.time_first)


Peer = Callable[[Inputs], Called]
Like = Callable[[Inputs, Tensor], dict[str, float]]


def ours(inputs: Inputs, both: bool) -> dict[str, Variant]:
    """Our op by default, and with chunks of given lengths."""

    def build(options: dict[str, int]) -> Run:
        op = partial(mlstm, backend="triton", **options)
        return call(op, inputs.time_first, (lambda: inputs.grad_BTHV) if both else None)

    def check(options: dict[str, int], found: Any) -> dict[str, Any]:
        told = {"rule": rule(inputs.size[3:], options.get("chunk_len"), inputs.setup)}
        return told | (finite(found) if both else same_rows(found, inputs.plain))

    lengths: dict[str, dict[str, int]] = {"exlstm": {}}
    lengths |= {} if inputs.setup.tiny else {f"exlstm, chunks of {n}": {"chunk_len": n} for n in CHUNKS}
    return {
        name: Variant(build=partial(build, options), check=partial(check, options), cost=cost(inputs.size, both))
        for name, options in lengths.items()
    }


def mlstm_kernels(kernel: str, inputs: Inputs, **options: Any) -> Called:
    """The peer with its own chunk lengths and gates in the dtype, as it expects them."""
    from mlstm_kernels.torch import get_mlstm_kernel

    op = partial(get_mlstm_kernel(f"chunkwise--{kernel}"), **options)
    return op, inputs.heads_first, inputs.heads_first_grad


def simple_gla(inputs: Inputs) -> Called:
    from fla.ops.simple_gla import chunk_simple_gla

    q_BTHK, k_BTHK, v_BTHV, _, f_BTH = inputs.time_first
    return chunk_simple_gla, [q_BTHK, k_BTHK, v_BTHV, logsigmoid(f_BTH)], lambda: inputs.grad_BTHV


def build_peer(peer: Peer, inputs: Inputs, both: bool) -> Run:
    op, x, grad = peer(inputs)
    return call(op, x, grad if both else None)


def like_exp(inputs: Inputs, got_BHTV: Tensor) -> dict[str, float]:
    """Checks that a variant computes the mLSTM."""
    return same_rows(got_BHTV.transpose(1, 2), inputs.plain)


def like_sigmoid(inputs: Inputs, got_BHTV: Tensor) -> dict[str, float]:
    """The same with a sigmoid input gate and without normaliser."""
    return same_rows(got_BHTV.transpose(1, 2), inputs.plain_sigmoid)


def like_simple_gla(inputs: Inputs, got_BTHV: Tensor) -> dict[str, float]:
    """Without input gate besides."""
    q, k, v, i, f = inputs.time_first
    return same_rows(got_BTHV, sigmoid(q, k, v, torch.full_like(i, OPEN), f))


@torch.no_grad()
def sigmoid(*x: Tensor) -> Tensor:
    return mlstm(*x, input_gate="sigmoid", normalize=False, backend="chunkwise")[0]


# chunks above 128 are wrong in the backward of xl_chunk
PEERS: dict[str, tuple[Peer, Like]] = {
    "mlstm_kernels xl_chunk 128": (partial(mlstm_kernels, "triton_xl_chunk", chunk_size=128), like_exp),
    "mlstm_kernels xl_chunk 64": (partial(mlstm_kernels, "triton_xl_chunk", chunk_size=64), like_exp),
    "mlstm_kernels limit_chunk 64": (partial(mlstm_kernels, "triton_limit_chunk", chunk_size=64), like_exp),
    "mlstm_kernels xl_chunk_siging 128": (
        partial(mlstm_kernels, "triton_xl_chunk_siging", chunk_size=128, normalize=False), like_sigmoid,
    ),
    "mlstm_kernels xl_chunk_siging 256": (
        partial(mlstm_kernels, "triton_xl_chunk_siging", chunk_size=256, normalize=False), like_sigmoid,
    ),
    "fla chunk_simple_gla": (simple_gla, like_simple_gla),
}  # fmt: skip


def cost(size: Size, both: bool) -> Cost:
    """The cost, as the module's docstring counts it, with s = 2 for bfloat16."""
    B, T, H, K, V = size
    numbers, gates = (6 * K + 5 * V, 6) if both else (2 * K + 2 * V, 2)
    flops = (4 * K * V + FLOPS_CHUNK * (K + V)) * (3 if both else 1)
    return Cost(B * T * H * (2 * numbers + 4 * gates), B * T * H * flops)


@cache
def rule(widths: tuple[int, int], chunk_len: int | None, setup: Setup) -> str:
    """The accuracy rule of the tests, outputs, states and gradients: these widths in the dtype, small ones in float32.

    In bfloat16 every number is judged with bfloat16's digits: the products take operands with no more. q, k and n are
    positive: where n.q cancels, no form divides by it well.
    """
    steps = 20 if setup.tiny else 300
    normal = partial(torch.randn, generator=torch.Generator(setup.device).manual_seed(1), device=setup.device)

    def few(K: int, V: int, dtype: torch.dtype) -> list[Tensor]:
        q_BTHK, k_BTHK, v_BTHV = (normal(1, steps, 2, width) for width in (K, K, V))
        i_BTH, f_BTH = normal(1, steps, 2), normal(1, steps, 2) + 4
        state = normal(1, 2, K, V), normal(1, 2, K).abs(), normal(1, 2)
        return [x.to(dtype) for x in (q_BTHK.abs(), k_BTHK.abs(), v_BTHV, i_BTH, f_BTH, *state)]

    for dtype, (K, V) in {setup.dtype: widths, torch.float32: (16, 32)}.items():
        draws = [few(K, V, dtype) for _ in DRAWS]
        options = {} if chunk_len is None else {"chunk_len": chunk_len}
        fast, definition = (partial(narrow, backend=name, **options) for name in ("triton", "recurrent"))
        assert_as_accurate(fast, definition, draws, names=("q", "k", "v", "i", "f", "C", "n", "m"))
    return "outputs, states and gradients within 2 x the plain form's error"


def narrow(*x: Tensor, **options: Any) -> tuple[Tensor, MLSTMState]:
    """The op on a state in the inputs' dtype, and its state in that dtype again."""
    state = MLSTMState(*(y if y.dtype == torch.float64 else y.float() for y in x[5:]))
    h_BTHV, after = mlstm(*x[:5], state, **options)
    return h_BTHV, MLSTMState(*(y.to(x[0].dtype) for y in after))
