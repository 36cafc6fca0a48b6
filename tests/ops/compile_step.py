"""Compiles the mLSTM's step for NVIDIA GPUs, which needs none; run by `test_mlstm_step_triton` in its own process.

Prints a line for each form: capability, dtype, K, V, and the bytes of shared memory.
"""

import mlstm_cases
import torch
from compiling import compile_for

from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.mlstm.triton.step_op import mlstm_triton_step

# heads, K, V and options: as in the 7B, and an odd one
SIZES = [
    (torch.bfloat16, 8, 256, 512, {}),
    (torch.float32, 4, 24, 40,
     {"input_gate": "sigmoid", "normalize": False, "reset_BT": torch.zeros(1, 1, dtype=torch.bool)}),
]  # fmt: skip


if __name__ == "__main__":
    for capability in (80, 90):
        for dtype, H, K, V, options in SIZES:
            found = compile_for(capability)
            *inputs, c, n, m = mlstm_cases.make(1, 1, H, K, V, dtype=dtype)
            mlstm_triton_step(*inputs, MLSTMState(c, n, m), **options)
            (form,) = found["step_kernel"]
            print(capability, dtype, K, V, form.metadata.shared)
