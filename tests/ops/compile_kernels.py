"""Compiles every Triton kernel of the mLSTM for an NVIDIA GPU, which needs none; run by `test_kernels_triton`.

    python tests/ops/compile_kernels.py KIND CAPABILITY ROOM K V CHUNK

ROOM: bytes of shared memory that a program can have. Prints a line for each: its name, the bytes of shared memory that
it takes, and the matrix instructions it has.
"""

import re
import sys

import mlstm_cases
import torch
from compiling import compile_for

from exlstm.ops.mlstm.triton.config import default_config, work_of
from exlstm.ops.mlstm.triton.op import backward, forward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync")


def main(kind, capability, room, K, V, chunk):
    found = compile_for(capability)
    config = default_config(work_of(DTYPES[kind], K, V, 128), room, chunk)
    *inputs, c, n, m = mlstm_cases.make(1, 20, 1, K, V, dtype=DTYPES[kind])
    gates, borders, reset_BT = [x.float() for x in inputs[3:]], torch.tensor([0, 20]), torch.zeros(1, 20, dtype=bool)
    h_BTHV, *_, planes, mass = forward(*inputs[:3], *gates, c, n, m, reset_BT, borders, True, True, 1e-6, 0, config)
    backward(*inputs[:3], c, n, borders, planes, mass, h_BTHV, h_BTHV, c, n, True, 1e-6, 0, config)
    for name, forms in found.items():
        products = min(len(MATRIX.findall(form.asm["ptx"])) for form in forms)
        print(name, max(form.metadata.shared for form in forms), products, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
