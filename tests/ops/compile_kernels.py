"""Compiles every Triton kernel for NVIDIA GPUs, which needs none; run by `test_kernels_triton` in a process of its own.

    python tests/ops/compile_kernels.py KIND CAPABILITY K V CHUNK UNITS

Prints a line for each: its name and the bytes of shared memory that it takes.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from exlstm.ops.mlstm import triton_backward, triton_forward, triton_gates
from exlstm.ops.mlstm.triton import block, sizes_of
from exlstm.ops.slstm import triton_scan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTEGERS = {"T", "H", "N", "B"}
NUMBERS = {"scale", "eps"}
OTHERS = {"reset": "*i1", "lengths": "*i64"}


def kinds(kernel, narrow, kind, constants):
    """The type of every argument: those named in `narrow` are in the dtype of the inputs."""
    for name in kernel.arg_names:
        if name in constants:
            yield name, "constexpr"
        elif name in INTEGERS or (len(name) == 3 and name[1] == "_" and name[2] in "bth"):
            yield name, "i32"
        else:
            wide = "fp32" if name in NUMBERS else OTHERS.get(name, "*fp32")
            yield name, f"*{kind}" if name in narrow else wide


def shared_memory(kernel, narrow, kind, capability, constants):
    """Compiles it; the bytes it takes."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=dict(kinds(kernel, narrow, kind, constants)), constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).metadata.shared


def main(kind, capability, K, V, chunk, units):
    q, v = (torch.empty(1, chunk, 1, width, dtype=DTYPES[kind], device="meta") for width in (K, V))
    sizes = sizes_of(q, v, chunk)
    same = {"PRECISION": sizes.precision, "RESETS": True}
    mlstm = same | {
        "L": chunk, "TILE": sizes.tile, "K": K, "V": V, "BK": sizes.block_k, "BV": sizes.block_v,
        "WIDE": block(K, 1024), "STABILIZE": True, "NORMALIZE": True,
    }  # fmt: skip
    slstm = same | {"V": units, "WIDE": block(units, 1024), "ROWS": 16, "MIXING": True, "EXP_FORGET": False}
    inputs = {"q", "k", "v", "h", "dh", "dq", "dk", "dv"}
    for page, narrow, constants in (
        (triton_gates, set(), mlstm), (triton_forward, inputs, mlstm), (triton_backward, inputs, mlstm),
        (triton_scan, {"r"}, slstm),
    ):  # fmt: skip
        for name, kernel in vars(page).items():
            if (name.endswith("_kernel") or name == "gate_scan") and kernel.fn.__module__ == page.__name__:
                print(name, shared_memory(kernel, narrow, kind, capability, constants), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
