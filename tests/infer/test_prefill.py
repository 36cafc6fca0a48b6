"""Which prompts are read in a step: the budget holds, nothing starves, short prompts do not wait for long ones."""

from hypothesis import given
from hypothesis import strategies as st

from exlstm.infer.prefill import MOST_WASTE, PATIENCE, Waiting, calls, shares

prompts = st.builds(
    lambda left, cut, passed: Waiting(left=left, chunk=min(left, cut), passed=passed),
    st.integers(1, 5000), st.integers(1, 600), st.integers(0, 2 * PATIENCE),
)  # fmt: skip


@given(st.lists(prompts, max_size=20), st.integers(1, 512))
def test_a_budget_is_kept_and_used(waiting, budget):
    given_ = shares(waiting, budget)
    assert all(0 <= tokens <= prompt.chunk for tokens, prompt in zip(given_, waiting, strict=True))
    assert sum(given_) == min(budget, sum(prompt.chunk for prompt in waiting))


@given(st.lists(prompts, min_size=1, max_size=20), st.integers(4, 512))
def test_the_oldest_long_prompt_gets_a_quarter(waiting, budget):
    long = [place for place, prompt in enumerate(waiting) if prompt.left > budget]
    if long:
        assert shares(waiting, budget)[long[0]] >= min(waiting[long[0]].chunk, budget // 4)


def test_the_shortest_goes_first_unless_another_was_passed_over():
    longer, short = Waiting(left=110, chunk=110), Waiting(left=60, chunk=60)
    assert shares([longer, short], 120) == [60, 60]
    patient = Waiting(left=110, chunk=110, passed=PATIENCE)
    assert shares([patient, short], 120) == [110, 10]


def test_under_a_stream_of_short_prompts_a_long_one_ends():
    left, steps = 10_000, 0
    while left > 0:
        given_ = shares([Waiting(left=left, chunk=min(left, 256)), *[Waiting(left=256, chunk=256)] * 3], 256)
        left, steps = left - given_[0], steps + 1
    assert steps <= 10_000 / 64 + PATIENCE


@given(st.lists(st.integers(0, 500), max_size=30), st.integers(1, 16))
def test_every_prompt_is_in_one_call_and_calls_waste_little(sizes, most):
    groups = calls(sizes, most)
    assert sorted(place for group in groups for place in group) == [p for p, size in enumerate(sizes) if size]
    for group in groups:
        assert len(group) <= most
        assert len(group) * max(sizes[p] for p in group) <= MOST_WASTE * sum(sizes[p] for p in group)
