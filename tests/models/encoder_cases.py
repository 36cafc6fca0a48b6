"""Encoders with parameters away from their initial values, and inputs for them."""

import torch

import exlstm

INPUT, WIDTH = 5, 16


def build(pattern="msMl", input_size=INPUT, dtype=torch.float64, **options):
    """With every parameter away from the zeros and ones it starts from."""
    torch.manual_seed(1)
    model = exlstm.XLSTM(input_size, WIDTH, pattern=pattern, num_heads=2, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def inputs(B=3, T=12, input_size=INPUT, seed=0, dtype=torch.float64):
    return torch.randn(B, T, input_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def resets(B=3, T=12, share=0.2, seed=2):
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share


def assert_close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
