"""Comparison of two forms of an op: outputs, states and gradients, each relative to its size."""

import torch


def assert_same(got, want, *, tolerance):
    """Every tensor to within `tolerance` of its largest element.

    A gradient of terms that cancel is measured by the largest gradient. Numbers below the smallest of the dtype may be
    zero.
    """
    assert got.keys() == want.keys()
    sizes = {name: exact.abs().max() if exact.numel() else torch.tensor(0.0) for name, exact in want.items()}
    largest = max(size for name, size in sizes.items() if name.startswith("gradient"))
    for name, exact in want.items():
        assert got[name].shape == exact.shape, name
        assert torch.isfinite(got[name]).all(), f"{name} is not finite"
        size = max(sizes[name], 0.01 * largest) if name.startswith("gradient") else sizes[name]
        error = (got[name] - exact).abs().max() if exact.numel() else 0
        nothing = torch.finfo(got[name].dtype).tiny
        assert error <= tolerance * size + nothing, f"{name}: error {error:.2e} of {sizes[name]:.2e}"


def everything(x, run, names):
    """{name: tensor} of output, state and all gradients of `run(*x) -> (output, state)`, for one fixed loss."""
    x = [t.detach().clone().requires_grad_() for t in x]
    out, state = run(*x)
    found = {"output": out, **{f"state.{name}": t for name, t in state._asdict().items()}}
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in found.values()]
    sum((t * weight).sum() for t, weight in zip(found.values(), weights, strict=True)).backward()
    found |= {f"gradient of {name}": t.grad for name, t in zip(names, x, strict=True)}
    return {name: t.detach() for name, t in found.items()}
