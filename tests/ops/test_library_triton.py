"""Kernels are operators of torch: compiling and exporting see one call, with the right shapes and no graph breaks."""

from functools import partial

import pytest
import torch
from mlstm_cases import NAMES, call, make
from triton_cases import here

pytest.importorskip("triton", reason="Triton has no wheel for this system")
run = partial(call, backend="triton", chunk_len=16)


def gradients(f, x, reset_BT=None):
    """The output and the gradients of all inputs that have one."""
    x = [t.clone().requires_grad_(n < 7) for n, t in enumerate(x)]
    h_BTHV, state = f(*x, reset_BT=reset_BT)
    (h_BTHV.square().sum() + state.c_BHKV.sum()).backward()
    return {"h": h_BTHV.detach(), **{name: t.grad for name, t in zip(NAMES[:7], x, strict=False)}}


def test_compiled_whole_with_gradients():
    """fullgraph: a break in the graph is an error."""
    x = here(make(2, 19, 2, 8, 6, dtype=torch.float32))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    want, got = gradients(run, x), gradients(compiled, x)
    for name, exact in want.items():
        torch.testing.assert_close(got[name], exact, rtol=1e-5, atol=1e-6, msg=name)


def test_operators_keep_their_word():
    """torch's own check: schema, shapes without numbers, nothing changed in place; packed sequences as well."""
    from exlstm.ops.mlstm.triton import run_backward, run_forward

    q, k, v, i, f, *state = here(make(1, 19, 2, 8, 6, dtype=torch.float32))
    packed = [torch.cat([t, t]) for t in state]
    for borders, first in ((None, state), (here(torch.tensor([0, 4, 19])), packed)):
        forward = (q, k, v, i, f, *first, None, borders, True, True, 1e-6, 16)
        torch.library.opcheck(run_forward, forward, test_utils=["test_schema", "test_faketensor"])
        h, c, n, _, gates, mass = run_forward(*forward)
        backward = (q, k, v, *first, borders, gates, mass, h, h, c, n, True, 1e-6, 16)
        torch.library.opcheck(run_backward, backward, test_utils=["test_schema", "test_faketensor"])


def test_exported():
    class Cell(torch.nn.Module):
        def forward(self, *x):
            return run(*x)[0]

    x = here(make(2, 19, 2, 8, 6, dtype=torch.float32))
    program = torch.export.export(Cell(), tuple(x))
    assert "exlstm.mlstm_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*x), run(*x)[0])
