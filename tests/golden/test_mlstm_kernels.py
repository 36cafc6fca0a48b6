"""The mLSTM op against the kernels of its authors, `mlstm_kernels` 2.0.6, in float64."""

from functools import partial

import pytest
import torch
from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_autograd, mlstm_chunkwise__native_custbw
from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw

from exlstm.ops.mlstm import MLSTMState, mlstm

B, T, H, K, V = 2, 32, 3, 8, 16


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H), (B, H, K, V), (B, H, K), (B, H)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def heads_first(x):
    return x.transpose(1, 2)


def theirs(kernel, q, k, v, i, f, c, n, m, **options):
    h, (c, n, m) = kernel(
        *(heads_first(x) for x in (q, k, v, i, f)), c_initial=c, n_initial=n, m_initial=m[..., None],
        return_last_states=True, chunk_size=8, **options,
    )  # fmt: skip
    return heads_first(h), MLSTMState(c, n, m[..., 0] if m.ndim == 3 else m)


def gradients(run, x):
    x = [t.clone().requires_grad_() for t in x]
    h, _ = run(*x)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(h.shape, generator=generator, dtype=torch.float64)
    (h * weight).sum().backward()
    return [t.grad for t in x[:7]]


def ours(q, k, v, i, f, c, n, m):
    return mlstm(q, k, v, i, f, MLSTMState(c, n, m), chunk_len=8)


@pytest.mark.parametrize("backend", ["chunkwise", "recurrent"])
def test_outputs_and_states(backend):
    """From a state that is not zero; against their chunkwise and their step-by-step form. eps is the same in all."""
    x = inputs()
    h_BTHV, state = mlstm(*x[:5], MLSTMState(*x[5:]), backend=backend)
    in_steps = partial(mlstm_recurrent_sequence__native_fw, dtype_state=torch.float64)
    for kernel in (mlstm_chunkwise__native_autograd, in_steps):
        h, last = theirs(kernel, *x)
        for got, want in zip((h_BTHV, *state), (h, *last), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_gradients():
    """Without eps: it alone is seen in the unit m, which theirs differentiates and ours does not."""
    x = inputs()
    want = gradients(lambda *t: theirs(mlstm_chunkwise__native_autograd, *t, eps=0.0), x)
    got = gradients(lambda *t: mlstm(*t[:5], MLSTMState(*t[5:]), chunk_len=8, eps=0.0), x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["q", "k", "i", "f"])
def test_what_their_hand_written_backward_leaves_out(name):
    """The gradient through the normaliser. A kernel of ours that agreed with theirs here would be wrong."""
    index = "qkvif".index(name)
    x = inputs()
    exact = gradients(lambda *t: theirs(mlstm_chunkwise__native_autograd, *t), x)[index]
    left_out = gradients(lambda *t: theirs(mlstm_chunkwise__native_custbw, *t, autocast_kernel_dtype=torch.float32), x)
    assert (left_out[index] - exact).norm() > 0.05 * exact.norm()
    assert (gradients(ours, x)[index] - exact).norm() < 1e-5 * exact.norm()
