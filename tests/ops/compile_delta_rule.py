"""Compiles the delta rule's Triton kernels for an NVIDIA GPU, which needs none; run by `test_kernels_delta_triton`.

    python tests/ops/compile_delta_rule.py CAPABILITY KIND K V

Prints a line for each: its name, and the bytes of shared memory of its largest form.
"""

import sys

import torch
from compiling import compile_for
from recurrences import RECURRENCES

from exlstm.ops.delta_rule.reference import RuleInputs
from exlstm.ops.delta_rule.triton.op import backward, forward, rule_triton_step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(capability, kind, K, V):
    found, dtype = compile_for(capability), DTYPES[kind]
    q, k, v, beta, g, s = RECURRENCES["delta_rule with a decay"].make(1, 100, {"H": 2, "K": K, "V": V})
    q, k, v = (x.to(dtype) for x in (q, k, v))
    for decay, reset in ((g, torch.zeros(1, 100, dtype=torch.bool)), (None, None)):
        given = q, k, v, beta, decay, s, reset
        o, last = forward(*given)
        backward(*given, o, last)
    one = [x[:, :1] for x in (q, k, v, beta, g[..., None])]
    for x in (RuleInputs(*one[:4], None, None, one[4]), RuleInputs(*one[:3], None, one[0], one[1], one[1].float())):
        rule_triton_step(x, s, reset_BT=None, valid_BT=None)
    for name, forms in found.items():
        print(name, max(form.metadata.shared for form in forms), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
