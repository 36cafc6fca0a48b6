"""Inputs for the sLSTM tests: a list of six tensors, x (with the gates i, f, z, o), R and the state h, c, n, m."""

import torch

from exlstm.ops.slstm import SLSTMState, slstm

NAMES = ("x", "r", "h", "c", "n", "m")


def make(B=2, T=20, H=2, V=3, *, seed=0, gate=1.0, dtype=torch.float64, fresh=0.3):
    """Gates with standard deviation `gate`; a share of `fresh` of the state's elements has seen nothing yet."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    seen = torch.rand(B, H, V, generator=generator) >= fresh
    state = [normal(B, H, V), normal(B, H, V), normal(B, H, V).abs() + 0.5, normal(B, H, V)]
    r = normal(H, V, 4, V) / V**0.5 / 2
    return [(gate * normal(B, T, H, 4, V)).to(dtype), r.to(dtype), *((part * seen).to(wide) for part in state)]


def resets(B, T, *, seed=0, share=0.2):
    """Each step is a reset with this probability."""
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share


def call(*x, mixing=True, **options):
    """`slstm` on the six tensors; without mixing R is left out."""
    return slstm(x[0], x[1] if mixing else None, SLSTMState(*x[2:]), **options)


def everything(x, run):
    """{name: tensor} of output, state and all gradients of `run(*x) -> (h, state)`; m has none."""
    x = [t.detach().clone().requires_grad_(n < 5) for n, t in enumerate(x)]
    h, state = run(*x)
    generator = torch.Generator().manual_seed(9)
    found = {"output": h, **{f"state.{name}": t for name, t in state._asdict().items()}}
    sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum()
        for t in found.values()
        if t.requires_grad
    ).backward()
    for name, t in zip(NAMES[:5], x, strict=False):
        found[f"gradient of {name}"] = torch.zeros_like(t) if t.grad is None else t.grad
    return {name: t.detach() for name, t in found.items()}
