"""Rotary positions as rotations of complex numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from exlstm.ops.rope import rope


def by_complex_numbers(x, position, base=10_000.0):
    """Halves as real and imaginary part, turned by position * base^(-2f/K)."""
    K = x.shape[-1]
    turns = torch.stack([position.double() * base ** (-2 * f / K) for f in range(K // 2)], dim=-1)
    z = torch.complex(x[..., : K // 2].double(), x[..., K // 2 :].double()) * torch.exp(1j * turns)[:, :, None]
    return torch.cat([z.real, z.imag], dim=-1)


@given(K=st.sampled_from([2, 4, 10]), base=st.sampled_from([10.0, 1e4, 5e5]), seed=st.integers(0, 2**31))
def test_against_complex_numbers(K, base, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 3, K, generator=generator, dtype=torch.float64)
    position = torch.randint(10_000, (2, 5), generator=generator)
    torch.testing.assert_close(
        rope(x, position, base=base), by_complex_numbers(x, position, base), rtol=1e-9, atol=1e-9
    )


def test_only_distances_matter():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = [(rope(q, torch.tensor([[t]])) * rope(k, torch.tensor([[t - 3]]))).sum() for t in (3, 4, 1000, 1_000_000)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=1e-8, atol=1e-8)


def test_far_positions_keep_their_digits():
    """Angles in float32 would be off by 0.1 at a million steps; here only x is rounded."""
    x, position = torch.randn(1, 4, 1, 8), torch.tensor([[0, 1000, 1_000_000, 10_000_000]])
    torch.testing.assert_close(rope(x, position), by_complex_numbers(x, position).float(), rtol=1e-5, atol=1e-6)
    assert rope(x.bfloat16(), position).dtype == torch.bfloat16
