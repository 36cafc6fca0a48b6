"""The prefix cache: exact tokens, a bound in bytes, the least recently used out, and what it saves."""

import copy
import random

import pytest
import torch

from exlstm.infer.engine import Engine
from exlstm.infer.generate import generate
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Request
from exlstm.infer.sampling import SamplingConfig
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.states.snapshot import snapshot_bytes

VOCABULARY = 23
LIVELY = SamplingConfig(temperature=1.2, repetition_penalty=1.4)


def build(pattern, seed=0):
    torch.manual_seed(seed)
    model = LM(lm_from_pattern(pattern, vocab_size=VOCABULARY, width=16, heads=2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def prompt_of(length, seed=0):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def counted(monkeypatch):
    """How many tokens of prompts the model has read."""
    found, hidden = [], LM.hidden

    def counting(self, tokens_BT, *args, lengths_B=None, **options):
        found.append(tokens_BT.numel() if lengths_B is None else int(lengths_B.sum()))
        return hidden(self, tokens_BT, *args, lengths_B=lengths_B, **options)

    monkeypatch.setattr(LM, "hidden", counting)
    return found


def cost(counted, model, prompt, cache, **options):
    counted.clear()
    (done,) = generate(model, [prompt], max_tokens=6, sampling=LIVELY, cache=cache, **options)
    return sum(counted), done


@pytest.mark.parametrize("pattern", ["ms", "M", "mas"])
def test_a_system_prompt_costs_nothing_from_the_third_request_on(pattern, counted):
    model, cache, system = build(pattern), PrefixCache(1 << 24), prompt_of(40)
    asks = [[*system, first, *prompt_of(4, seed=first)] for first in (1, 2, 3)]
    for ask, read, cached in zip([*asks, asks[0]], [45, 45, 5, 0], [0, 0, 40, 45], strict=True):
        found, done = cost(counted, model, ask, cache)
        assert (found, done.cached_tokens) == (read, cached)
        assert done.tokens == generate(model, [ask], max_tokens=6, sampling=LIVELY)[0].tokens
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses) == (4, 2, 2)
    assert (stats.hit_tokens, stats.read_tokens, stats.evictions) == (85, 95, 0)


def test_beginnings_that_are_asked_for_and_completions(counted):
    model, cache, ask = build("ms"), PrefixCache(1 << 24), prompt_of(30)
    request = Request(prompt=ask, max_tokens=5, sampling=LIVELY, cache_at=[7, 20], cache_completion=True)
    (done,) = generate(model, [request], cache=cache)
    assert cache.stats().entries == 4
    for prompt, read in (([*ask[:7], 0, 0], 2), ([*ask[:20], *[0] * 4], 4), ([*ask, *done.tokens, 1, 2], 2)):
        found, other = cost(counted, model, prompt, cache)
        assert found == read
        assert other.tokens == generate(model, [prompt], max_tokens=6, sampling=LIVELY)[0].tokens
    with pytest.raises(ValueError, match="its beginning of 31 cannot be cached"):
        generate(model, [Request(prompt=ask, cache_at=[31])], cache=cache)


def test_no_state_is_kept_for_a_few_tokens_in_common(counted):
    model = build("m")
    for min_tokens, entries in ((16, 2), (2, 3)):
        cache = PrefixCache(1 << 24, min_tokens=min_tokens)
        for first in (1, 2):
            cost(counted, model, [5, 6, first], cache)
        assert cache.stats().entries == entries


def test_a_conversation_goes_on_from_the_end_of_its_last_prompt(counted):
    """The tokens of a snapshot in `after` are unknown: nothing is looked up or stored for it."""
    model, cache = build("ms"), PrefixCache(1 << 24)
    cost(counted, model, prompt_of(20), cache)
    assert cost(counted, model, [*prompt_of(20), 1, 2], cache)[0] == 2
    before = cache.stats()
    generate(model, [Request(prompt=prompt_of(20), after=model.read([3]), cache_completion=True)], cache=cache)
    assert cache.stats() == before


def test_bytes_are_bounded_and_the_least_recently_used_goes(counted):
    model = build("ms")
    one = snapshot_bytes(model) + 4 * 10
    cache = PrefixCache(3 * one)
    prompts = [[first, *prompt_of(9, seed=first)] for first in range(4)]
    for prompt in prompts[:3]:
        cost(counted, model, prompt, cache)
    assert cache.stats().bytes == 3 * one
    assert cost(counted, model, prompts[0], cache)[0] == 0
    cost(counted, model, prompts[3], cache)  # 1 goes
    assert [cost(counted, model, prompts[n], cache)[0] for n in (0, 2, 3)] == [0, 0, 0]
    assert cost(counted, model, prompts[1], cache)[0] == 10
    assert (cache.stats().entries, cache.stats().evictions) == (3, 2)
    small = PrefixCache(one - 1)
    cost(counted, model, prompts[0], small)
    assert (small.stats().entries, small.stats().bytes) == (0, 0)


@pytest.mark.parametrize("pattern", ["m", "a"])
def test_against_a_dictionary(pattern):
    """Many random prompts over few tokens, so that they part anywhere: the tree finds what a dictionary would."""
    model, cache, known = build(pattern), PrefixCache(40_000), {}
    draw = random.Random(1)
    snapshots = {size: model.read([1] * size) for size in range(1, 9)}
    for _ in range(120):
        prompt = tuple(draw.randrange(2) for _ in range(draw.randrange(1, 9)))
        found, held, seen = cache.find(model, prompt)
        best = max((size for size in range(1, len(prompt) + 1) if prompt[:size] in known), default=0)
        assert held == best
        assert found is (known[prompt[:best]] if best else None)
        assert seen >= held
        if draw.random() < 0.6:
            assert cache.keep(prompt, snapshots[len(prompt)])
            known[prompt] = snapshots[len(prompt)]
        held_now = {tokens for tokens in known if _holds(cache, tokens)}
        known = {tokens: snapshot for tokens, snapshot in known.items() if tokens in held_now}
        assert cache.stats().entries == len(known)
        nodes = list(_nodes(cache._root))
        assert cache.stats().bytes == sum(node.nbytes for node in nodes) <= 40_000
        assert all(node.snapshot or node.children for node in nodes[1:])
    assert cache.stats().evictions > 8


def _nodes(node):
    yield node
    for child in node.children.values():
        assert child.parent is node
        yield from _nodes(child)


def _holds(cache, tokens):
    """Without touching the order of use."""
    node, left = cache._root, list(tokens)
    while left:
        node = node.children.get(left[0])
        if node is None or list(node.tokens) != left[: len(node.tokens)]:
            return False
        left = left[len(node.tokens) :]
    return node.snapshot is not None


def test_a_cache_belongs_to_one_model():
    model, other = build("ms"), build("ms", seed=1)
    cache = PrefixCache(1 << 24)
    generate(model, [[1, 2]], max_tokens=1, cache=cache)
    twin = copy.deepcopy(model)
    assert generate(twin, [[1, 2]], max_tokens=1, cache=cache)[0].cached_tokens == 2
    with pytest.raises(ValueError, match="states of another model"):
        Engine(other, cache=cache)
    with pytest.raises(ValueError, match="another model"):
        cache.keep([1], other.read([1]))
    engine = Engine(model, cache=cache)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="weights that this one had before"):
        engine.submit(Request(prompt=[1, 2]))
    cache.clear()
    engine.submit(Request(prompt=[1, 2], max_tokens=1))
    assert [event.cached_tokens for event in engine.run()] == [0]


def test_what_cannot_be_kept():
    model, cache = build("m"), PrefixCache(1 << 20)
    for tokens, snapshot in (([1], model.read([1, 2])), ([1, 2], model.read([[1], [2]]))):
        with pytest.raises(ValueError, match="pass one row and its tokens"):
            cache.keep(tokens, snapshot)
    with pytest.raises(ValueError, match="max_bytes is -1"):
        PrefixCache(-1)
