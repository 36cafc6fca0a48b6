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

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from exlstm.ops.slstm.triton.op import scan_plan, steps_plan
from exlstm.ops.slstm.triton.scan import backward_kernel, forward_kernel
from exlstm.ops.slstm.triton.step import backward_step, forward_step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OTHERS = {"reset": "*i1", "lengths": "*i64"}


def compiled(kernel, kind, capability, constants, launch):
    """The compiled kernel; addresses are multiples of 16 bytes, as torch's are."""
    types = {}
    for name in kernel.arg_names:
        wide = "i32" if name in {"t", "B", "T", "H"} else OTHERS.get(name, "*fp32")
        types[name] = "constexpr" if name in constants else f"*{kind}" if name == "r" else wide
    number = {name: kernel.arg_names.index(name) for name in types}
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(number[name],): value for name, value in constants.items()},
        attrs={(number[name],): [["tt.divisibility", 16]] for name, type_ in types.items() if type_[0] == "*"},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


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
    dtype, capability, batch, units = DTYPES[kind], int(capability), int(batch), int(units)
    scan, steps = scan_plan(batch, 1, units, dtype, True), steps_plan(batch, 1, units, dtype)
    pairs = [(forward_kernel, scan.forward), (backward_kernel, scan.backward)] * ("scan" in ways)
    pairs += [(forward_step, steps.forward), (backward_step, steps.backward)] * ("steps" in ways)
    for kernel, plan in pairs:
        same = {"V": units, "RESETS": True, "EXP_FORGET": False, "PRECISION": "ieee" if kind == "fp32" else "tf32"}
        constants = {**plan, **same, "MIXING": True}
        # sizes of one are compiled in
        constants |= {"B": 1, "T": 1, "H": 1} if batch == 1 else {}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        found = compiled(kernel, kind, capability, constants, {"num_warps": plan["num_warps"]})
        ptx = found.asm["ptx"]
        products = [len(re.findall(name, ptx)) for name in (r"wgmma\.mma_async", r"mma\.sync")]
        _, *loop = found.asm["ttgir"].partition("scf.for")
        shape = rf"<(?:{4 * units}x{units}|{units}x{4 * units})x"
        reads = re.findall(rf"(?:tt\.load|async_copy_global_to_local|local_alloc) .*{shape}", "".join(loop))
        print(kernel.fn.__name__, found.metadata.shared, *assembled(ptx, capability), *products, len(reads), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
