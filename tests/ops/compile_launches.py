"""Makes every launch as on a GPU, but for the launch itself; run by `test_kernels_triton` in a process of its own.

    python tests/ops/compile_launches.py [everything]

What the interpreter cannot show is shown here: how Triton treats arguments by their values (an integer that is 1
may become a constant), and that what is passed fits what is compiled. Prints the kernels and how many forms each has.
"""

import sys

import mlstm_cases
import slstm_cases
import torch
from compiling import compile_for

from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.mlstm.triton.op import mlstm_triton
from exlstm.ops.mlstm.triton.step_op import mlstm_triton_step
from exlstm.ops.slstm import SLSTMState
from exlstm.ops.slstm.triton.op import slstm_triton


def mlstm(sizes, dtype, chunk_len=None, borders=None, reset=None):
    """Both directions."""
    rows = sizes[0] if borders is None else len(borders) - 1
    q, k, v, i, f, *_ = (x.requires_grad_() for x in mlstm_cases.make(*sizes, dtype=dtype))
    state = MLSTMState(*mlstm_cases.make(rows, 1, *sizes[2:], dtype=torch.float32)[5:])
    h_BTHV, after = mlstm_triton(q, k, v, i, f, state, cu_seqlens=borders, reset_BT=reset, chunk_len=chunk_len)
    (h_BTHV.sum() + after.c_BHKV.sum()).backward()


def mlstm_step(sizes, dtype):
    q, k, v, i, f, *state = mlstm_cases.make(*sizes, dtype=dtype)
    mlstm_triton_step(q, k, v, i, f, MLSTMState(*state))


def slstm(sizes, dtype):
    """Both directions of both ways through time."""
    for resident in (True, False):
        x, r, *state = (t.requires_grad_() for t in slstm_cases.make(*sizes, dtype=dtype))
        h_BTHV, _ = slstm_triton(
            x, r, SLSTMState(*state), reset_BT=None, lengths_B=None, exp_forget=False, resident=resident
        )
        h_BTHV.sum().backward()


def main(everything):
    found = compile_for(90)
    narrow = torch.bfloat16
    mlstm((1, 1, 1, 1, 1), narrow, 16)
    mlstm_step((1, 1, 1, 1, 1), narrow)
    slstm((1, 1, 1, 1), narrow)
    for dtype in (torch.float32, narrow) if everything else ():
        for sizes in ((1, 1, 1, 1, 1), (1, 70, 1, 16, 16), (2, 150, 3, 24, 40)):
            mlstm(sizes, dtype)
        mlstm((1, 150, 3, 24, 40), dtype, None, torch.tensor([0, 20, 150]), torch.zeros(1, 150, dtype=torch.bool))
        mlstm_step((2, 1, 3, 24, 40), dtype)
        slstm((3, 4, 2, 20), dtype)
    for name, forms in found.items():
        print(name, len(forms))


if __name__ == "__main__":
    main(everything=sys.argv[1:] == ["everything"])
