"""Compiles the Triton kernels of the scans for an NVIDIA GPU, which needs none; run by `test_kernels_scans_triton`.

    python tests/ops/compile_scans.py CAPABILITY

Prints a line for each form of a kernel: its op, its name, the bytes of shared memory that it takes, its registers and
the bytes that it spills.
"""

import sys

import torch
from compile_slstm import assembled
from compiling import compile_for
from recurrences import RECURRENCES

from exlstm.ops.scan.triton.op import scan_triton
from exlstm.ops.selective_scan.reference import SelectiveScanInputs
from exlstm.ops.selective_scan.triton.op import selective_scan_triton


def scan(B, T, sizes, dtype, rows):
    a, b, h = RECURRENCES["scan"].make(B, T, sizes)
    scan_triton(a.to(dtype), b.to(dtype), h, *rows.values())
    y, after = scan_triton(a.to(dtype).requires_grad_(), b.to(dtype), h, *rows.values())
    (y.sum() + after.sum()).backward()


def selective_scan(B, T, sizes, dtype, rows):
    x, dt, b, c, a, skip, h = RECURRENCES["selective_scan"].make(B, T, sizes)
    x, b, c = (t.to(dtype) for t in (x, b, c))
    selective_scan_triton(SelectiveScanInputs(x, dt, a, b, c, skip, h), **rows, softplus=False)
    given = SelectiveScanInputs(x.requires_grad_(), dt, a, b, c, skip, h)
    y, after = selective_scan_triton(given, **rows, softplus=True)
    (y.sum() + after.sum()).backward()


# sizes that Triton would make constants of, those of mamba-130m, and odd ones with many states
CASES = [
    (scan, 1, 1, {"E": 1}, torch.bfloat16),
    (scan, 8, 20, {"E": 1536}, torch.float32),
    (selective_scan, 1, 1, {"E": 1, "Z": 1}, torch.float32),
    (selective_scan, 2, 20, {"E": 1536, "Z": 16}, torch.bfloat16),
    (selective_scan, 2, 20, {"E": 33, "Z": 128}, torch.float32),
]


if __name__ == "__main__":
    capability = int(sys.argv[1])
    for op, B, T, sizes, dtype in CASES:
        found = compile_for(capability)
        op(B, T, sizes, dtype, {"reset_BT": None, "lengths_B": None})
        rows = {"reset_BT": torch.zeros(B, T, dtype=torch.bool), "lengths_B": torch.full((B,), T)}
        op(B, T, sizes, dtype, rows)
        for name, forms in found.items():
            for form in forms:
                print(op.__name__, name, form.metadata.shared, *assembled(form.asm["ptx"], capability), flush=True)
