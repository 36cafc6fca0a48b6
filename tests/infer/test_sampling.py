"""Sampling: what each filter keeps, what the penalty does, draws follow the distribution, rows are independent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.infer.sampling import (
    GREEDY,
    NUCLEUS,
    SamplingConfig,
    draw_from,
    draws_of,
    filtered_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repeats,
    sample,
    sample_rows,
)


def random_logits(B, C, seed, scale=3.0):
    return scale * torch.randn(B, C, generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def kept(logits_BC):
    return logits_BC > -torch.inf


logits = st.builds(
    random_logits, st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 50.0])
)


@settings(max_examples=60, deadline=None)
@given(logits_BC=logits, k=st.integers(1, 50))
def test_top_k_keeps_the_k_largest_unchanged(logits_BC, k):
    out_BC = keep_top_k(logits_BC, k)
    assert (kept(out_BC).sum(-1) == min(k, logits_BC.shape[1])).all()
    assert torch.equal(out_BC[kept(out_BC)], logits_BC[kept(out_BC)])
    for row_C, keep_C in zip(logits_BC, kept(out_BC), strict=True):
        assert keep_C.all() or row_C[keep_C].min() >= row_C[~keep_C].max()


def test_top_k_keeps_exactly_k_of_equal_logits():
    assert kept(keep_top_k(torch.zeros(1, 9), 4)).sum() == 4


@settings(max_examples=60, deadline=None)
@given(logits_BC=logits, p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_with_that_mass(logits_BC, p):
    out_BC = keep_top_p(logits_BC, p)
    assert torch.equal(out_BC[kept(out_BC)], logits_BC[kept(out_BC)])
    for row_C, keep_C in zip(logits_BC.double().softmax(-1), kept(out_BC), strict=True):
        mass = row_C[keep_C].sum()
        assert mass >= p - 1e-9
        assert mass - row_C[keep_C].min() < p + 1e-9, "one token fewer would have been enough"
        assert keep_C.all() or row_C[keep_C].min() >= row_C[~keep_C].max()


def by_sorting(logits_C, p):
    """What top-p keeps, the simple way: from the most likely on, of equals the first, until p is reached."""
    probability_C = logits_C.double().softmax(0).tolist()
    mass, keep = 0.0, set()
    for index in sorted(range(len(probability_C)), key=lambda index: (-logits_C[index].item(), index)):
        if mass >= p:
            break
        keep.add(index)
        mass += probability_C[index]
    return keep


@pytest.mark.parametrize("scale", [0.01, 2.0, 30.0])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("C", [30, 8 * NUCLEUS + 1])
def test_top_p_of_small_and_large_vocabularies(C, coarse, scale):
    """Coarse logits, as of a model in bfloat16, have many equals; of these the first are kept, alone and in a batch."""
    logits_BC = random_logits(3, C, seed=1, scale=scale)
    logits_BC = (4 * logits_BC).round() / 4 if coarse else logits_BC
    logits_BC[2, : C // 2] = -torch.inf
    for p in (0.123, 0.51, 0.95):
        keep_BC = kept(keep_top_p(logits_BC, p))
        for row_C, keep_C in zip(logits_BC, keep_BC, strict=True):
            assert set(keep_C.nonzero()[:, 0].tolist()) == by_sorting(row_C, p)
            assert torch.equal(kept(keep_top_p(row_C[None], p))[0], keep_C)


def test_top_p_known_case():
    logits_BC = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, expected in ((0.4, [1]), (0.5001, [1, 3]), (0.74, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        assert kept(keep_top_p(logits_BC, p))[0].nonzero()[:, 0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(logits_BC=logits, p=st.floats(0.0, 1.0))
def test_min_p_is_relative_to_the_most_likely(logits_BC, p):
    keep_BC = kept(keep_min_p(logits_BC, p))
    ratio_BC = (logits_BC - logits_BC.amax(-1, keepdim=True)).exp()
    assert keep_BC[ratio_BC > p + 1e-5].all()
    assert not keep_BC[ratio_BC < p - 1e-5].any()
    assert keep_BC.any(-1).all()


def test_penalty_lowers_seen_tokens_only_whatever_their_sign():
    logits_BC = torch.tensor([[2.0, -2.0, 0.5, -0.5]])
    out_BC = penalize_repeats(logits_BC, torch.tensor([[True, True, False, False]]), 2.0)
    assert out_BC.tolist() == [[1.0, -4.0, 0.5, -0.5]]
    config = SamplingConfig(temperature=0, repetition_penalty=8.0)
    assert sample(logits_BC, config, [], torch.tensor([[True, False, False, False]])).tolist() == [2]


def test_temperature_divides_and_extremes_do_not_overflow():
    logits_BC = random_logits(2, 7, 0)
    torch.testing.assert_close(
        filtered_logits(logits_BC, SamplingConfig(temperature=0.5)).softmax(-1), (2 * logits_BC).softmax(-1)
    )
    for temperature in (1e-30, 1e30):
        tokens_B = sample(1e4 * logits_BC, SamplingConfig(temperature=temperature), generators(0, 1))
        assert temperature > 1 or torch.equal(tokens_B, logits_BC.argmax(-1))


def test_greedy_is_the_argmax_and_draws_nothing():
    logits_BC = random_logits(3, 11, 5)
    assert torch.equal(sample(logits_BC, GREEDY, []), logits_BC.argmax(-1))


def test_draws_follow_the_distribution():
    probability_BC = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).expand(20_000, 4).double()
    draw_B = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = draw_from(probability_BC, draw_B).bincount(minlength=4)
    assert counts.tolist() == [10_000, 0, 6_000, 4_000]


def test_sampled_frequencies_match_the_probabilities():
    logits_BC, generator = torch.tensor([[0.0, 1.0, 2.0, -1.0]]), torch.Generator().manual_seed(0)
    tokens = torch.tensor([sample(logits_BC, SamplingConfig(), [generator]).item() for _ in range(4000)])
    share_C = tokens.bincount(minlength=4) / 4000
    torch.testing.assert_close(share_C, logits_BC[0].softmax(-1), atol=0.03, rtol=0)  # about four standard deviations


@pytest.mark.parametrize("draw", [0.0, 1.0 - 2**-53])
@pytest.mark.parametrize("scale", [1 / 3, 0.5, 1.0, 1 + 2**-52, 1.1, 7.0])
def test_a_token_of_probability_zero_is_never_drawn(draw, scale):
    probability_BC = scale * torch.tensor([[0.0, 0.7, 0.1, 0.2 / 3, 0.0]]).double()
    assert draw_from(probability_BC, torch.tensor([draw], dtype=torch.float64)).item() == (1 if draw == 0 else 3)


def test_a_row_samples_the_same_alone_and_in_a_batch():
    logits_BC, config = random_logits(3, 50, 2), SamplingConfig(temperature=1.5, top_k=20, top_p=0.9)
    together, alone = generators(7, 8, 9), generators(7, 8, 9)
    for _ in range(20):
        tokens_B = sample(logits_BC, config, together)
        single = [sample(logits_BC[i : i + 1], config, [alone[i]]).item() for i in range(3)]
        assert tokens_B.tolist() == single


def test_every_row_by_its_own_settings():
    """Each as `sample` would do it alone, and nothing of a row whose logits are broken."""
    logits_BC, seen_BC = random_logits(6, 30, 6), torch.rand(6, 30) < 0.5
    logits_BC[2, 7], logits_BC[4] = math.nan, -math.inf
    seen_BC[3, logits_BC[3].argmax()] = True
    warm, cold = SamplingConfig(temperature=1.5, top_p=0.9), SamplingConfig(temperature=0, repetition_penalty=9.0)
    configs = [warm, GREEDY, warm, cold, GREEDY, warm]
    marks = [seen_C if config is cold else None for seen_C, config in zip(seen_BC, configs, strict=True)]
    found = sample_rows(logits_BC, configs, draws_of(configs, generators(*range(6))), marks)
    for row, config in enumerate(configs):
        if row in (2, 4):
            assert found[row] is None
            continue
        alone = sample(logits_BC[row : row + 1], config, generators(row), seen_BC[row : row + 1])
        assert found[row] == alone.item()
    assert found[3] != logits_BC[3].argmax(), "the penalty matters"


def test_inputs_are_not_changed():
    logits_BC = random_logits(2, 9, 3)
    before_BC = logits_BC.clone()
    config = SamplingConfig(temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, repetition_penalty=1.3)
    sample(logits_BC, config, generators(0, 1), torch.ones_like(logits_BC, dtype=torch.bool))
    assert torch.equal(logits_BC, before_BC)


def test_bfloat16_logits_are_sampled_in_float32():
    logits_BC = random_logits(2, 300, 4).bfloat16()
    assert torch.equal(sample(logits_BC, GREEDY, []), logits_BC.float().argmax(-1))
    assert sample(logits_BC, SamplingConfig(top_p=0.5), generators(0, 1)).dtype == torch.int64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        sample(torch.tensor([[0.0, bad, 1.0]]), SamplingConfig(), generators(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", 0), ("top_p", 0.0),
        ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0), ("repetition_penalty", math.nan),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be .*{value}".replace(".", r"\.").replace(r"\.*", ".*")):
        SamplingConfig(**{field: value})
