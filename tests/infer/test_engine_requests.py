"""What a request may ask of the engine: logprobs, penalties, constraints, samples, snapshots; and how one fails."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import REQUESTS, VOCABULARY, alone, build, completions, prompt_of

from exlstm.data.tokenizer import ByteTokenizer
from exlstm.infer import decoding
from exlstm.infer.engine import Engine
from exlstm.infer.generate import generate
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY, SamplingConfig
from exlstm.mixers.state import leaves

MODEL = build("ms")
BYTES = build("ms", vocab_size=257)


def whole(model, tokens):
    """Log-probabilities of every next token, by one call on the whole sequence."""
    return model(torch.tensor([tokens]))[0][0].log_softmax(dim=-1).detach()


def events_of(engine, number):
    return [event for event in engine.run() if event.request == number]


def same_snapshot(found, expected):
    assert found.counts == expected.counts
    torch.testing.assert_close(found.logits_BC, expected.logits_BC, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.seen_BC, expected.seen_BC)
    for x, y in zip(leaves(found.state), leaves(expected.state), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_a_stop_token_comes_with_its_logprob():
    (free,) = generate(MODEL, [[1, 2]], max_tokens=6, sampling=GREEDY)
    stop = free.tokens[3]
    first = free.tokens.index(stop)
    engine = Engine(MODEL, slots=1)
    engine.submit(Request(prompt=[1, 2], sampling=GREEDY, stop_tokens=[stop], logprobs=3))
    *_, last = engine.run()
    assert (last.token, last.stop, last.finish_reason) == (None, stop, "stop")
    expected = whole(MODEL, [1, 2, *free.tokens[:first]])[-1]
    assert last.logprob == pytest.approx(float(expected[stop]), abs=1e-9)
    assert [token for token, _ in last.top_logprobs] == expected.topk(3).indices.tolist()
    assert dict(last.top_logprobs)[stop] == last.logprob, "one number in both places"


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), st.data(), st.integers(1, 9),
    st.booleans(), st.integers(0, 2),
)  # fmt: skip
def test_logprobs_of_prompts(prompt, data, chunk, cached, max_tokens):
    start = data.draw(st.integers(0, len(prompt)))
    cache = PrefixCache(1 << 20, min_tokens=1) if cached else None
    if cached:
        generate(MODEL, [prompt[: data.draw(st.integers(1, len(prompt)))]], max_tokens=0, cache=cache)
    engine = Engine(MODEL, slots=2, prefill_tokens=chunk, cache=cache)
    engine.submit(Request(prompt=[3], max_tokens=40))
    engine.step()
    wanted = Request(prompt=prompt, max_tokens=max_tokens, prompt_logprobs=2, logprobs_from=start, logprobs=2)
    found = events_of(engine, engine.submit(wanted))
    entries = [entry for event in found for entry in event.prompt_logprobs]
    assert [entry.token for entry in entries] == prompt[start:]
    expected = whole(MODEL, prompt)
    for place, entry in enumerate(entries, start):
        if place == 0:
            assert (entry.logprob, entry.top) == (None, ())
            continue
        before = expected[place - 1]
        assert entry.logprob == pytest.approx(float(before[entry.token]), abs=1e-8)
        assert [value for _, value in entry.top] == pytest.approx(before.topk(2).values.tolist(), abs=1e-8)
    assert len([event for event in found if event.token is not None]) == max_tokens
    assert found[-1].finish_reason == "length"


def test_logprobs_of_a_prompt_after_a_snapshot_begin_with_its_first_token():
    snapshot = MODEL.read([1, 2, 3])
    engine = Engine(MODEL, slots=1)
    events = events_of(engine, engine.submit(Request(prompt=[4, 5], after=snapshot, prompt_logprobs=0, max_tokens=0)))
    entries = [entry for event in events for entry in event.prompt_logprobs]
    expected = whole(MODEL, [1, 2, 3, 4, 5])
    assert [e.logprob for e in entries] == pytest.approx([float(expected[2, 4]), float(expected[3, 5])], abs=1e-9)


def test_contexts_that_are_scored_are_read_once():
    cache = PrefixCache(1 << 20)
    context, seen = prompt_of(50), []
    engine = Engine(MODEL, slots=4, cache=cache)
    for end in range(4):
        number = engine.submit(Request(
            prompt=[*context, end], max_tokens=1, prompt_logprobs=1, logprobs_from=len(context)
        ))  # fmt: skip
        seen += [event.cached_tokens for event in events_of(engine, number) if event.finish_reason]
    assert seen == [0, 50, 50, 50]


@pytest.mark.parametrize("penalties", [{"frequency_penalty": 1.5}, {"presence_penalty": -1.0}])
def test_penalties_count_the_completion(penalties):
    prompt, tokens = [1, 2, 3], []
    for _ in range(12):
        logits_C = MODEL(torch.tensor([prompt + tokens]))[0][0, -1].detach().clone()
        for token in set(tokens):
            times = tokens.count(token) * penalties.get("frequency_penalty", 0.0)
            logits_C[token] -= times + penalties.get("presence_penalty", 0.0)
        tokens.append(int(logits_C.argmax()))
    sampling = SamplingConfig(temperature=0.0, **penalties)
    assert list(generate(MODEL, [prompt], max_tokens=12, sampling=sampling)[0].tokens) == tokens
    assert list(generate(MODEL, [prompt], max_tokens=12, sampling=GREEDY)[0].tokens) != tokens


def test_bias_and_least_tokens():
    biased = Request(prompt=[1], max_tokens=5, logit_bias={7: 1e4}, logprobs=0)
    (found,) = generate(MODEL, [biased])
    assert found.tokens == (7,) * 5
    assert found.logprobs[0] == pytest.approx(float(whole(MODEL, [1])[0, 7]), abs=1e-9), "the model's own distribution"
    stop = Request(prompt=[1], max_tokens=9, logit_bias={7: 1e4}, stop_tokens=[7], min_tokens=4)
    (found,) = generate(MODEL, [stop])
    assert len(found.tokens) == 4
    assert 7 not in found.tokens
    text = Request(prompt="a", stop="b", min_tokens=3, max_tokens=9, logit_bias={98: 1e4})
    (found,) = generate(BYTES, [text], tokenizer=ByteTokenizer())
    assert (found.text, found.finish_reason) == ("bb", "stop")
    with pytest.raises(ValueError, match="token 99"):
        Engine(MODEL).submit(Request(prompt=[1], logit_bias={99: 1.0}))


@dataclass
class Listed:
    """A constraint to a list of tokens."""

    tokens: list
    done: int = 0

    def allowed(self):
        found = torch.zeros(VOCABULARY, dtype=torch.bool)
        found[self.tokens[self.done]] = True
        return found

    def accept(self, token):
        assert token == self.tokens[self.done]
        self.done += 1

    @property
    def complete(self):
        return self.done == len(self.tokens)

    def copy(self):
        return replace(self)


def test_constraints():
    engine = Engine(MODEL, slots=4)
    request = Request(prompt=[1], constraint=Listed([5, 6, 7]), max_tokens=10, keep_snapshot=True)
    numbers = engine.submit_samples(request, [1, 2])
    other = engine.submit(REQUESTS[1])
    events = list(engine.run())
    found = completions([event for event in events if event.finish_reason or event.token is not None])
    assert [found[number] for number in numbers] == [[5, 6, 7]] * 2
    assert found[other] == alone(MODEL)[1]
    ends = [event for event in events if event.request in numbers and event.finish_reason]
    assert [event.finish_reason for event in ends] == ["stop"] * 2
    for event in (event for event in events if event.snapshot is not None):
        same_snapshot(event.snapshot, MODEL.read([1, 5, 6, 7]))


def test_samples_of_one_prompt():
    """Each is what a request with its seed gives, and the prompt is read once."""
    request = replace(REQUESTS[1], max_tokens=8)
    expected = [list(generate(MODEL, [replace(request, seed=seed)])[0].tokens) for seed in (5, 9, 11)]
    engine = Engine(MODEL, slots=2)
    numbers = engine.submit_samples(replace(request, prompt_logprobs=0), [5, 9, 11])
    assert engine.waiting_tokens == len(request.prompt)
    events = list(engine.run())
    found = completions([event for event in events if not event.prompt_logprobs])
    assert [found[number] for number in numbers] == expected
    assert {event.request for event in events if event.prompt_logprobs} == {numbers[0]}
    assert engine.waiting_tokens == 0


@pytest.mark.parametrize("max_tokens", [1, 6])
def test_the_snapshot_of_an_answer_cut_by_length(max_tokens):
    """It comes a step after the end, and costs no call of the model of its own."""
    engine = Engine(MODEL, slots=2)
    number = engine.submit(Request(prompt=[1, 2], max_tokens=max_tokens, keep_snapshot=True, sampling=GREEDY))
    other = engine.submit(replace(REQUESTS[0], max_tokens=20))
    events = list(engine.run())
    tokens = [event.token for event in events if event.request == number and event.token is not None]
    own = [event for event in events if event.request == number]
    assert (own[-2].finish_reason, own[-2].snapshot, own[-1].finish_reason) == ("length", None, None)
    same_snapshot(own[-1].snapshot, MODEL.read([1, 2, *tokens]))
    assert list(own[-1].completion) == tokens
    (expected,) = generate(MODEL, [replace(REQUESTS[0], max_tokens=20)])
    assert [event.token for event in events if event.request == other] == list(expected.tokens)
    assert not engine.busy


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.booleans())
def test_the_snapshot_after_a_stop_string_is_that_of_the_text_before_it(seed, size, merged):
    tokenizer = ByteTokenizer()
    sampling = SamplingConfig(temperature=1.0, top_k=4)
    bias = dict.fromkeys(b"abc", 1e3)  # texts of three letters, so that stop strings begin again and again
    request = Request(prompt="ab", max_tokens=40, sampling=sampling, seed=seed, logit_bias=bias)
    (free,) = generate(BYTES, [request], tokenizer=tokenizer)
    stop = free.text[8 : 8 + size]
    engine = Engine(BYTES, slots=2, tokenizer=tokenizer)
    number = engine.submit(replace(request, stop=stop, keep_snapshot=True))
    if merged:
        engine.submit(replace(request, seed=seed + 1))
    events = events_of(engine, number)
    text = "".join(event.text for event in events)
    assert text == free.text[: free.text.index(stop)]
    assert bytes(events[-1].completion).decode() == text
    expected = BYTES.read([tokenizer.boundary, *tokenizer.encode(("ab" + text).encode())])
    same_snapshot(events[-1].snapshot, expected)


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = Engine(MODEL, slots=4, prefill_tokens=16)
    engine.submit(Request(prompt=[1], max_tokens=500))
    engine.step()
    long = engine.submit(Request(prompt=prompt_of(3000), max_tokens=1))
    for _ in range(5):
        engine.step()
    short = engine.submit(Request(prompt=prompt_of(10), max_tokens=1))
    events = [event.request for _ in range(3) for event in engine.step()]
    assert short in events
    assert long not in events
    assert engine.take_started() == [0, long, short]
    assert engine.take_started() == []


POISON = 22


def poison(monkeypatch, model, place):
    """Makes the model fail where a token is among its input: in prompts, in decoding, or both."""
    plain = {"hidden": model.hidden, "forward": model.forward}

    def hidden(tokens_BT, *args, **kwargs):
        if (tokens_BT == POISON).any() and place == "prompt":
            raise RuntimeError("poison")
        return plain["hidden"](tokens_BT, *args, **kwargs)

    def forward(tokens_BT, *args, **kwargs):
        if (tokens_BT == POISON).any() and tokens_BT.shape[1] == 1 and place == "decoding":
            raise RuntimeError("poison")
        return plain["forward"](tokens_BT, *args, **kwargs)

    monkeypatch.setattr(model, "hidden", hidden)
    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("pattern", ["ms", "ma"])
@pytest.mark.parametrize("place", ["prompt", "decoding", "sampler", "constraint"])
def test_a_request_that_fails_ends_alone(monkeypatch, place, pattern):
    model = build(pattern)
    good = [replace(request, logit_bias={POISON: -1e4}) for request in REQUESTS if POISON not in request.prompt]
    want = [list(generate(model, [request])[0].tokens) for request in good]
    bad = Request(prompt=[POISON, 1] if place == "prompt" else [1], max_tokens=9, logit_bias={POISON: 1e4})
    if place == "sampler":
        plain = decoding.sample_rows

        def sample_rows(logits_BC, *args):
            if (logits_BC.argmax(dim=-1) == POISON).any():
                raise RuntimeError("poison")
            return plain(logits_BC, *args)

        monkeypatch.setattr(decoding, "sample_rows", sample_rows)
    elif place == "constraint":
        bad = replace(bad, constraint=Listed([], 1))
    else:
        poison(monkeypatch, model, place)
    engine = Engine(model, slots=8, prefill_tokens=8)
    numbers = [engine.submit(request) for request in good[:2]]
    events = engine.step() + engine.step()
    failing = engine.submit(bad)
    numbers += [engine.submit(request) for request in good[2:]]
    events += engine.run()
    found = completions(events)
    assert [found[number] for number in numbers] == want
    (end,) = [event for event in events if event.request == failing and event.finish_reason]
    assert end.finish_reason == "error"
    assert "others were not affected" in end.error
    assert isinstance(end.cause, Exception)
    assert (engine.running, engine.waiting, engine.waiting_tokens) == (0, 0, 0)


def test_a_decoder_that_fails_ends_one_sequence(monkeypatch):
    tokenizer = ByteTokenizer()
    requests = [Request(prompt=text, max_tokens=12, seed=3) for text in ("ab", "cd", "ef")]
    want = [list(each.tokens) for each in generate(BYTES, requests, tokenizer=tokenizer)]
    engine = Engine(BYTES, slots=3, tokenizer=tokenizer)
    numbers = [engine.submit(request) for request in requests]
    events = engine.step() + engine.step()

    def fail(token, *, stops=True):
        raise RuntimeError("a broken decoder")

    monkeypatch.setattr(engine._active[numbers[1]].text, "feed", fail)
    events += engine.run()
    found = completions(events)
    assert (found[numbers[0]], found[numbers[2]]) == (want[0], want[2])
    assert [event.finish_reason for event in events if event.request == numbers[1]][-1] == "error"


@pytest.mark.breadth(1)
@pytest.mark.parametrize("seed", range(6))
def test_random_arrivals_and_cancels(seed):
    """Whatever comes and goes, what stays gets its tokens, and nothing is left over."""
    random = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (), generator=random))

    want, cache = alone(MODEL), PrefixCache(1 << 16, min_tokens=4)
    engine, events, numbers, cancelled = Engine(MODEL, slots=3, cache=cache), [], {}, set()
    for _ in range(60):
        engine.prefill_tokens = 1 + pick(12)
        if pick(2):
            n = pick(len(REQUESTS))
            keep = {"keep_snapshot": bool(pick(2)), "cache_completion": bool(pick(2))}
            numbers[engine.submit(replace(REQUESTS[n], **keep))] = n
        if numbers and not pick(4):
            number = list(numbers)[pick(len(numbers))]
            if engine.cancel(number):
                cancelled.add(number)
        events += engine.step()
    events += engine.run()
    ended = {event.request for event in events if event.finish_reason}
    assert ended | cancelled == set(numbers)
    for number in ended - cancelled:
        tokens = [event.token for event in events if event.request == number and event.token is not None]
        assert tokens == want[numbers[number]]
    assert not engine.busy
    assert not engine._active
    assert engine.waiting_tokens == 0


def test_warming_up_leaves_nothing():
    model = build("ms", torch.float32)
    engine = Engine(model, slots=5)
    engine.warm_up()
    assert engine._rows.slots.groups.keys() == {1, 2, 4, 5}
    assert (engine.take_started(), engine.waiting_tokens, engine.busy) == ([], 0, False)
    number = engine.submit(replace(REQUESTS[1], max_tokens=5))
    assert engine.cancel(number)
    engine.submit(REQUESTS[0])
    with pytest.raises(ValueError, match="warm it up before"):
        engine.warm_up()
