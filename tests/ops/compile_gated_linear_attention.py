"""Compiles the Triton kernels of linear attention with decays for NVIDIA GPUs, which needs none.

Run by `test_gated_linear_attention_triton` in its own process. Prints a line for each kernel: capability, dtype, K, V,
its name, how many forms it has, the bytes of shared memory, and the fewest matrix instructions of a form.
"""

import re

import torch
from compiling import compile_for
from recurrences import RECURRENCES

from exlstm.ops.gated_linear_attention.triton.op import gated_linear_attention_triton

MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync")


def both_ways(dtype, K, V, T, reset):
    """Every kernel, once."""
    x = [t.to(dtype) for t in RECURRENCES["decay per key"].make(1, T, {"H": 1, "K": K, "V": V})]
    reset_BT = torch.zeros(1, T, dtype=torch.bool) if reset else None
    options = {"axis": "key", "reset_BT": reset_BT, "valid_BT": None}
    inputs = [t.requires_grad_() for t in (*x[:4], x[4].float())]
    o_BTHV, s_BHKV = gated_linear_attention_triton(*inputs, bonus_HK=None, **options)
    (o_BTHV.float().sum() + s_BHKV.sum()).backward()
    with torch.no_grad():
        bonus = torch.ones(1, K, dtype=dtype)
        first = None if reset_BT is None else reset_BT[:, :1]
        options["reset_BT"] = first
        gated_linear_attention_triton(*(t[:, :1] for t in inputs[:4]), inputs[4], bonus_HK=bonus, **options)


if __name__ == "__main__":
    for capability in (80, 90):
        for dtype, K, V in ((torch.bfloat16, 128, 256), (torch.float32, 24, 40), (torch.float32, 64, 64)):
            found = compile_for(capability)
            for T in (1, 70):
                both_ways(dtype, K, V, T, reset=True)
            both_ways(dtype, K, V, 3, reset=False)
            for name, forms in found.items():
                shared = max(form.metadata.shared for form in forms)
                products = min(len(MATRIX.findall(form.asm["ptx"])) for form in forms)
                print(capability, dtype, K, V, name, len(forms), shared, products, flush=True)
