"""The engine: tokens do not depend on the other sequences; requests start, end, fail and are cancelled."""

from dataclasses import replace

import pytest
import torch
from fake_cuda_graph import install_fake_cuda

from exlstm.data.tokenizer import ByteTokenizer
from exlstm.infer import token_loop
from exlstm.infer.cuda_graph import CUDAGraphStep
from exlstm.infer.engine import Engine
from exlstm.infer.generate import generate
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY, SamplingConfig
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern

VOCABULARY = 23
LIVELY = SamplingConfig(temperature=1.2, top_k=15, top_p=0.95, repetition_penalty=1.4)
SETTINGS = [GREEDY, LIVELY, SamplingConfig(), SamplingConfig(temperature=0.8, min_p=0.05), LIVELY]


def build(pattern, dtype=torch.float64, vocab_size=VOCABULARY):
    torch.manual_seed(0)
    model = LM(lm_from_pattern(pattern, vocab_size=vocab_size, width=16, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.to(dtype).eval()


def prompt_of(length, seed=0):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


SHARED = prompt_of(20)
REQUESTS = [
    Request(prompt=prompt, max_tokens=5 + 3 * n, sampling=SETTINGS[n], seed=n)
    for n, prompt in enumerate([prompt_of(1), [*SHARED, 1], prompt_of(30, seed=3), [*SHARED, 2, 3], [*SHARED, 4]])
]


def completions(events):
    tokens, ends = {}, {}
    for event in events:
        found = tokens.setdefault(event.request, [])
        if event.token is not None:
            found.append(event.token)
        if event.finish_reason is not None:
            assert event.request not in ends
            ends[event.request] = event.finish_reason
    assert ends.keys() == tokens.keys()
    return tokens


def alone(model):
    return [list(generate(model, [request])[0].tokens) for request in REQUESTS]


CASES = [(pattern, torch.float64) for pattern in ("ms", "M", "l", "a", "mas", "hyena,m")] + [
    ("ms", torch.float32),
    ("M", torch.float32),
]


@pytest.mark.breadth(2)
@pytest.mark.parametrize(("pattern", "dtype"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_company_changes_nothing(pattern, dtype):
    """Slots, order, moment of coming, chunks, cache."""
    model = build(pattern, dtype)
    want, cache = alone(model), PrefixCache(1 << 20, min_tokens=4)
    assert len({tuple(each) for each in want}) == len(want)
    for slots, prefill_tokens, order, held in (
        (1, 7, (0, 1, 2, 3, 4), None),
        (2, 256, (4, 3, 2, 1, 0), cache),
        (3, 5, (2, 0, 4, 1, 3), cache),
        (5, 64, (1, 3, 0, 2, 4), None),
    ):
        engine, events, numbers = Engine(model, slots=slots, prefill_tokens=prefill_tokens, cache=held), [], {}
        for n in order:
            numbers[engine.submit(REQUESTS[n])] = n
            events += engine.step() + engine.step()
            assert engine.decoding <= slots
        events += engine.run()
        assert {numbers[number]: tokens for number, tokens in completions(events).items()} == dict(enumerate(want))
    assert cache.stats().hits > 4


def test_graphs(monkeypatch):
    model = build("ms")
    want = alone(model)
    install_fake_cuda(monkeypatch)
    monkeypatch.setitem(token_loop.STEP_CLASSES, "cpu", CUDAGraphStep)
    engine = Engine(model, slots=3)
    for request in REQUESTS:
        engine.submit(request)
    assert completions(engine.run()) == dict(enumerate(want))
    assert engine._rows.slots.why_not is None
    assert engine._rows.slots.groups.keys() == {1, 2, 3}


@pytest.mark.parametrize("ends", [(0, 1), (1, 4), (0, 2, 4), (2, 3, 4)])
def test_several_that_end_at_the_same_moment(ends):
    model = build("ms")
    requests = [replace(request, max_tokens=3 if n in ends else 9) for n, request in enumerate(REQUESTS)]
    engine = Engine(model, slots=5)
    for request in requests:
        engine.submit(request)
    events = [engine.step() for _ in range(3)]
    assert {event.request for event in events[-1] if event.finish_reason} == set(ends)
    assert engine.running == 5 - len(ends)
    found = completions([*(event for step in events for event in step), *engine.run()])
    assert [found[n] for n in range(5)] == [list(generate(model, [each])[0].tokens) for each in requests]


def test_a_long_prompt_does_not_hold_up_the_others():
    model = build("m")
    engine = Engine(model, slots=2, prefill_tokens=10)
    engine.submit(Request(prompt=[1], max_tokens=20))
    engine.step()
    engine.submit(Request(prompt=prompt_of(100), max_tokens=3))
    for _ in range(9):
        assert [event.request for event in engine.step()] == [0]
    assert [event.request for event in engine.step()] == [0, 1]


def test_cancelling():
    model = build("ms")
    want = alone(model)
    engine = Engine(model, slots=2, prefill_tokens=4)
    numbers = [engine.submit(request) for request in REQUESTS]
    events = engine.step() + engine.step()
    assert (engine.decoding, engine.running, engine.waiting) == (1, 3, 2), "prompts are read beside the slots"
    assert engine.cancel(numbers[0]), "it is being decoded"
    assert engine.cancel(numbers[1]), "it is being read"
    assert engine.cancel(numbers[4]), "it waits"
    assert (engine.decoding, engine.running, engine.waiting) == (0, 1, 1)
    assert not engine.cancel(numbers[0])
    assert not engine.cancel(99)
    events = list(engine.run())
    assert completions(events) == {2: want[2], 3: want[3]}
    assert not engine.busy
    assert not engine.cancel(numbers[2])
    assert engine.step() == []


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_sequence_whose_logits_are_not_numbers_ends_alone(row):
    model = build("ms")
    want = alone(model)
    engine = Engine(model, slots=5)
    for request in REQUESTS[1:4]:
        engine.submit(request)
    events = engine.step() + engine.step()
    for x in engine._rows.slots.buffers.view(engine._rows.slots.buffers.side, row, 1)[0]:
        if isinstance(x, torch.Tensor):
            x.fill_(torch.nan)
        else:
            [part.fill_(torch.nan) for part in x if isinstance(part, torch.Tensor)]
    events += engine.run()
    tokens = completions(events)
    (failed,) = [event for event in events if event.finish_reason == "error"]
    assert failed.request == row
    assert "NaN" in failed.error
    for n in {0, 1, 2} - {row}:
        assert tokens[n] == want[1 + n]
    # the slot is as good as new for the next
    number = engine.submit(REQUESTS[1])
    assert completions(engine.run()) == {number: want[1]}


def test_a_bad_request_is_refused_and_disturbs_nobody():
    model = build("ms")
    want = alone(model)
    engine = Engine(model, slots=2)
    engine.submit(REQUESTS[1])
    events = engine.step()
    for request, words in {
        Request(prompt=[]): "no tokens",
        Request(prompt=[VOCABULARY]): "outside the vocabulary",
        Request(prompt="text"): "no tokenizer",
        Request(prompt=[1], stop=""): "no tokenizer",
        Request(prompt=[1], max_tokens=-2): "max_tokens must be 0 or more, not -2",
        Request(after=build("m").read([1])): "another model",
        Request(prompt=[1], seed=-(2**70)): "64 bits",
    }.items():
        with pytest.raises(ValueError, match=words):
            engine.submit(request)
    assert engine.waiting == 0
    assert completions(events + list(engine.run()))[0] == want[1]


def test_bytes_are_known_in_advance():
    model = build("ms", torch.float32)
    engine = Engine(model, slots=4)
    assert engine.bytes_per_sequence == model.state_bytes()
    assert engine.state_bytes == 2 * 4 * model.state_bytes()
    before = engine.state_bytes
    engine.submit(Request(prompt=prompt_of(50), max_tokens=30))
    list(engine.run())
    assert engine.state_bytes == before
    called = Engine(model.double(), slots=4)
    assert called.state_bytes == 4 * called.bytes_per_sequence
    growing = Engine(build("ma"), slots=2)
    assert growing.bytes_per_sequence is None
    empty = growing.state_bytes
    growing.submit(Request(prompt=prompt_of(50), max_tokens=3))
    growing.step()
    assert growing.state_bytes > empty
    list(growing.run())
    assert growing.state_bytes == empty, "what has ended keeps no memory"


def test_text_and_the_end_of_documents():
    tokenizer = ByteTokenizer()
    model = build("ms", vocab_size=300)
    engine = Engine(model, slots=2, tokenizer=tokenizer)
    numbers = [engine.submit(Request(prompt=text, max_tokens=12, seed=3)) for text in ("ab", "cd")]
    ids = engine.submit(Request(prompt=[tokenizer.boundary, *b"ab"], max_tokens=12, seed=3))
    events = list(engine.run())
    texts = {number: "".join(event.text for event in events if event.request == number) for number in (*numbers, ids)}
    tokens = completions(events)
    assert texts[numbers[0]] == texts[ids] != texts[numbers[1]]
    assert texts[ids] == tokenizer.decode(tokens[ids]).decode("utf-8", "replace")
    with pytest.raises(ValueError, match="empty stop string"):
        engine.submit(Request(prompt="x", stop=["a", ""]))


def test_a_prompt_can_be_read_for_the_cache_alone():
    model, cache = build("ms"), PrefixCache(1 << 20)
    assert generate(model, [SHARED], max_tokens=0, cache=cache)[0].tokens == ()
    assert cache.stats().entries == 1
    assert generate(model, [[*SHARED, 1]], max_tokens=1, cache=cache)[0].cached_tokens == 20


@pytest.mark.parametrize("options", [{"slots": 0}, {"prefill_tokens": 0}])
def test_engines_that_cannot_be(options):
    with pytest.raises(ValueError, match="at least 1"):
        Engine(build("m"), **options)
