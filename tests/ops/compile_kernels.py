"""Compiles every Triton kernel of the mLSTM for NVIDIA GPUs, which needs none; run by `test_kernels_triton` in a
process of its own.

    python tests/ops/compile_kernels.py KIND CAPABILITY ROOM K V CHUNK

ROOM: bytes of shared memory that a program can have. Prints a line for each: its name, the bytes of shared memory that
it takes, and the matrix instructions it has.
"""

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from exlstm.ops.mlstm.triton import backward as triton_backward
from exlstm.ops.mlstm.triton import forward as triton_forward
from exlstm.ops.mlstm.triton import gates as triton_gates
from exlstm.ops.mlstm.triton.config import Launch, by_rule, work_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TYPES = {
    **dict.fromkeys(["T", "N", "G", "H"], "i32"), **dict.fromkeys(["scale", "eps"], "fp32"),
    **dict.fromkeys(["borders", "firsts", "owners"], "*i64"), **dict.fromkeys(["maps", "after"], "*fp64"),
    "reset": "*i1",
}  # fmt: skip
NARROW = {"q", "k", "v", "h", "dh", "dq", "dk", "dv", "cs", "dcs"}  # in the dtype of the inputs
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync")
PAGES = (triton_gates, triton_forward, triton_backward)
KERNELS = {
    name: kernel for page in PAGES for name, kernel in vars(page).items()
    if name.endswith(("_kernel", "_scan")) and kernel.fn.__module__ == page.__name__
}  # fmt: skip


def kind_of(name, kind):
    """The type of an argument of a kernel."""
    if re.fullmatch(r"[a-z]_[bth]", name):
        return "i32"
    return TYPES.get(name, f"*{kind if name in NARROW else 'fp32'}")


def compiled(kernel, kind, capability, launch, constants):
    """For inputs as torch makes them: tensors and strides are multiples of 16."""
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else kind_of(name, kind) for name in names}
    even = [n for n, name in enumerate(names) if signature[name].startswith("*") or re.fullmatch(r"[a-z]_[bth]", name)]
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(n,): [["tt.divisibility", 16]] for n in even},
    )  # fmt: skip
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(kind, capability, room, K, V, chunk):
    config = by_rule(work_of(DTYPES[kind], K, V, 128), room, chunk)
    for name, kernel in KERNELS.items():
        launch = getattr(config, name.removesuffix("_kernel"), Launch(16, 64, 4, 2))
        constants = {
            "TILE": config.tile, "PARTS": config.parts, "K": K, "V": V, "BK": launch.block_k, "BV": launch.block_v,
            "PACKED": True, "RESETS": True, "NORMALIZE": True, "STABILIZE": True,
            "BLOCK": 256,
            "PRECISION": "ieee" if kind == "fp32" else "tf32",
        }  # fmt: skip
        found = compiled(kernel, kind, capability, launch, constants)
        print(name, found.metadata.shared, len(MATRIX.findall(found.asm["ptx"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
