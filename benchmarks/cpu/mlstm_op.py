"""The mLSTM op against the native kernels of `mlstm_kernels`: the fastest of its variants for each size.

Useful FLOPs, for the share of the sgemm rate: per head and step 4 K V for the memory (write and read) and L (K + V) for
the causal half of a chunk of L = 64, twice as many again in the backward. Recomputation is not counted.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accuracy import DRAWS, assert_as_accurate
from benchmarks.bench import Bench, Check
from benchmarks.gate import SAME_JOB, relative
from benchmarks.harness import Run, Timing, rounded, seconds_per_call
from exlstm.ops.mlstm import MLSTMState, mlstm

SHAPES = {"b4h4k128v128": (4, 4, 128, 128), "b1h4k128v256": (1, 4, 128, 256), "b1h8k64v64": (1, 8, 64, 64)}
LENGTHS = (512, 2048, 8192)
CHUNK = 64
LONGEST_PARALLEL = 512  # its time and memory grow with the square of the length


def run(bench: Bench) -> None:
    """Times every shape and length, without gradients and with them."""
    shapes = {"b1h2k16v16": (1, 2, 16, 16)} if bench.quick else SHAPES
    for shape, (B, H, K, V) in shapes.items():
        for T in (128,) if bench.quick else LENGTHS:
            for both in (False, True):
                name = f"{shape}_t{T}_{'forward_backward' if both else 'forward'}"
                if bench.wants(name):
                    measure(bench, name, (B, T, H, K, V), both)


def measure(bench: Bench, name: str, size: tuple[int, ...], both: bool) -> None:
    B, T, H, K, V = size
    runs, check, variant = programs(size, both)
    what = "forward and backward" if both else "forward"
    about = f"B {B}, T {T}, H {H}, K {K}, V {V}, float32, {what}; peer: {variant}"
    flops = B * T * H * (4 * K * V + CHUNK * (K + V)) * (3 if both else 1)
    bench.measure(name, about, runs, check, derive=partial(derive, flops))


def programs(size: tuple[int, ...], both: bool) -> tuple[dict[str, Run], Check, str]:
    """Our op and the fastest peer, the check of their numbers, and the name of the peer."""
    B, T, H, K, V = size
    inputs = draw(*size)
    first = [x.transpose(1, 2).contiguous() for x in inputs]  # theirs have the heads before the time
    grad_BTHV = torch.randn(B, T, H, V)
    start = gradients if both else forward
    ours = partial(start, mlstm, inputs, grad_BTHV)
    variant, theirs = fastest(
        {name: partial(start, f, first, grad_BTHV.transpose(1, 2).contiguous()) for name, f in kernels(T).items()}
    )
    return {"exlstm": ours, "mlstm_kernels": theirs}, partial(check, inputs, first), variant


def draw(B: int, T: int, H: int, K: int, V: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H)]
    q, k, v, i, f = (torch.randn(shape, generator=generator) for shape in shapes)
    return [q, k, v, i, f + 4]


def kernels(T: int) -> dict[str, Callable[..., Any]]:
    """The native variants of the peer, with options that a caller would choose."""
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd as autograd
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_custbw as custbw
    from mlstm_kernels.torch.parallel import mlstm_parallel__native_autograd as parallel

    found: dict[str, Callable[..., Any]] = {}
    for chunk in (64, 128):
        found[f"chunkwise native_autograd {chunk}"] = partial(autograd, chunk_size=chunk)
        found[f"chunkwise native_custbw {chunk}"] = partial(
            custbw, chunk_size=chunk, autocast_kernel_dtype=torch.float32
        )
    if T <= LONGEST_PARALLEL:
        found["parallel native_autograd"] = parallel
    return found


def fastest(runs: Mapping[str, Run]) -> tuple[str, Run]:
    """The fastest variant, by the better of two calls after a warm-up."""
    seconds = {name: min([seconds_per_call(run, 1) for _ in range(3)][1:]) for name, run in runs.items()}
    name = min(seconds, key=seconds.__getitem__)
    return name, runs[name]


def output(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def forward(f: Callable[..., Any], inputs: list[Tensor], _grad: Tensor) -> None:
    with torch.no_grad():
        f(*inputs)


def gradients(f: Callable[..., Any], inputs: list[Tensor], grad: Tensor) -> None:
    inputs = [x.detach().requires_grad_() for x in inputs]
    torch.autograd.grad(output(f(*inputs)), inputs, grad)


def check(inputs: list[Tensor], first: list[Tensor]) -> dict[str, Any]:
    """The rule of the tests on several draws of 4 rows of 80 steps; and the peer's numbers on the whole input.

    There q, k and n are positive: where the mass n.q cancels to almost nothing, no form divides by it well.
    """
    _, T, H, K = inputs[0].shape
    V = inputs[2].shape[-1]
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(1))

    def few(seed: int) -> list[Tensor]:
        q, k, v, i, f = draw(4, 80, H, K, V, seed)
        return [q.abs(), k.abs(), v, i, f, normal(4, H, K, V), normal(4, H, K).abs(), normal(4, H)]

    def op(*x: Tensor, backend: str) -> Any:
        return mlstm(*x[:5], MLSTMState(*x[5:]), backend=backend)

    assert_as_accurate(partial(op, backend="auto"), partial(op, backend="recurrent"), map(few, DRAWS))
    with torch.no_grad():
        theirs = output(next(iter(kernels(T).values()))(*first))
        difference = relative(mlstm(*inputs)[0], theirs.transpose(1, 2))
    assert difference < SAME_JOB, f"the output differs from the peer's by {difference:.2e}, allowed {SAME_JOB:.0e}"
    return {"difference_from_peer": rounded(difference)}


def derive(flops: int, timings: Mapping[str, Timing], speed: dict[str, float]) -> dict[str, Any]:
    """GFLOP/s of useful work, and their share of what sgemm reached beside it."""
    rates = {name: flops / timing.median / 1e9 for name, timing in timings.items()}
    return {
        "gflops": {name: rounded(rate) for name, rate in rates.items()},
        "share_of_sgemm": {name: rounded(rate / speed["sgemm_gflops"]) for name, rate in rates.items()},
    }
