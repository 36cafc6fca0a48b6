"""Compiles the sLSTM's Triton kernels for NVIDIA GPUs, which needs none; run by `test_kernels_slstm_triton`.

    python tests/ops/compile_slstm.py KIND CAPABILITY BATCH UNITS WAY ...

Prints a line for each: its name, the bytes of shared memory that it takes, its registers and the bytes that it spills
(by the assembler that Triton brings), how often it says wgmma and mma, and how often
its loop reads or copies the whole R. WAY: scan or steps.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import slstm_cases
import torch
import triton
from compiling import compile_for

from exlstm.ops.slstm import SLSTMState
from exlstm.ops.slstm.triton.op import slstm_triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def assembled(ptx, capability):
    """(registers of a thread, bytes of it that are spilled)"""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "kernel.ptx"
        page.write_text(ptx)
        command = [tool, "-v", f"-arch=sm_{capability}{'a' * (capability == 90)}", page, "-o", page.with_suffix(".bin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return re.search(r"Used (\d+) registers", said)[1], re.search(r"(\d+) bytes spill stores", said)[1]


def main(kind, capability, batch, units, *ways):
    capability, batch, units = int(capability), int(batch), int(units)
    found = compile_for(capability)
    for way in ways:
        x, r, *state = slstm_cases.make(batch, 2, 1, units, dtype=torch.float32)
        h_BTHV, _ = slstm_triton(
            x.requires_grad_(), r.to(DTYPES[kind]), SLSTMState(*state), reset_BT=torch.zeros(batch, 2) > 0,
            lengths_B=None, exp_forget=False, resident=way == "scan",
        )  # fmt: skip
        h_BTHV.sum().backward()
    for name, (form,) in found.items():
        ptx = form.asm["ptx"]
        products = [len(re.findall(product, ptx)) for product in (r"wgmma\.mma_async", r"mma\.sync")]
        _, *loop = form.asm["ttgir"].partition("scf.for")
        shape = rf"<(?:{4 * units}x{units}|{units}x{4 * units})x"
        reads = re.findall(rf"(?:tt\.load|async_copy_global_to_local|local_alloc) .*{shape}", "".join(loop))
        print(name, form.metadata.shared, *assembled(ptx, capability), *products, len(reads), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
