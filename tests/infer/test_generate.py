"""Generation: carrying the state equals running the whole text again for every token, also in ragged batches."""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from exlstm.data.tokenizer import ByteTokenizer, train_bpe
from exlstm.infer.generate import generate, stream
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY, SamplingConfig, sample
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.states.file import load_state, save_state
from exlstm.models.states.snapshot import Snapshot

VOCABULARY = 23
LIVELY = SamplingConfig(temperature=1.2, top_k=15, top_p=0.95, repetition_penalty=1.4)


def build(pattern, *, dropout=0.0):
    config = lm_from_pattern(pattern, vocab_size=VOCABULARY, width=16, heads=2)
    model = LM(replace(config, dropout=dropout)).double()
    # the fresh model's logits are almost equal; spread out, they make tokens that depend on the text
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


@pytest.fixture(params=["ms", "M", "l", "mas"])
def model(request):
    return build(request.param)


def prompt_of(length, seed=0):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_definition(model, prompt, *, max_tokens, sampling, seed):
    """Without a state: the whole text so far goes through the model for every token."""
    text, generator = list(prompt), torch.Generator().manual_seed(seed)
    for _ in range(max_tokens):
        logits_BTC, _ = model(torch.tensor([text]))
        seen_BC = torch.zeros(1, VOCABULARY, dtype=torch.bool)
        seen_BC[0, text] = True
        text.append(sample(logits_BTC[:, -1], sampling, [generator], seen_BC).item())
    return text[len(prompt) :]


def tokens_of(model, prompt, **options):
    """The tokens of one prompt on its own."""
    seed = options.pop("seed", 0)
    return list(generate(model, [prompt], seeds=[seed], **options)[0].tokens)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(), LIVELY], ids=["greedy", "plain", "lively"])
def test_equals_the_definition(model, sampling):
    prompt = prompt_of(9)
    expected = by_definition(model, prompt, max_tokens=16, sampling=sampling, seed=3)
    assert tokens_of(model, prompt, max_tokens=16, sampling=sampling, seed=3) == expected
    assert len(set(expected)) > 2, "a model that repeats itself shows nothing"


def test_a_seed_decides_the_text():
    model = build("ms")
    first, again, other = (tokens_of(model, prompt_of(4), max_tokens=40, seed=seed) for seed in (11, 11, 12))
    assert first == again
    assert first != other


SETTINGS = [LIVELY, GREEDY, SamplingConfig(temperature=0.7, repetition_penalty=1.3), LIVELY, SamplingConfig(min_p=0.1)]


@pytest.mark.breadth(2)
@pytest.mark.parametrize("slots", [2, 16])
def test_a_ragged_batch_gives_each_prompt_what_it_gets_alone(model, slots):
    """Each with its own seed and settings."""
    prompts = [prompt_of(length, seed=length) for length in (1, 261, 7, 256, 2)]
    together = generate(model, prompts, max_tokens=8, sampling=SETTINGS, seeds=[5, 6, 7, 8, 9], slots=slots)
    for index, prompt in enumerate(prompts):
        alone = tokens_of(model, prompt, max_tokens=8, sampling=SETTINGS[index], seed=5 + index)
        assert list(together[index].tokens) == alone
        assert together[index].prompt_tokens == len(prompt)
        assert together[index].finish_reason == "length"


def test_a_prompt_that_stops_leaves_the_others_alone(model):
    prompts = [prompt_of(length, seed=length) for length in (3, 11, 6, 2)]
    free = [list(each.tokens) for each in generate(model, prompts, max_tokens=20)]
    stop = free[1][4]
    for with_stop, without in zip(generate(model, prompts, max_tokens=20, stop_tokens={stop}), free, strict=True):
        if stop in without:
            assert list(with_stop.tokens) == without[: without.index(stop)]
            assert (with_stop.finish_reason, with_stop.stop) == ("stop", stop)
        else:
            assert list(with_stop.tokens) == without
            assert (with_stop.finish_reason, with_stop.stop) == ("length", None)


def test_going_on_from_a_snapshot(model, tmp_path):
    """With more tokens or none, forked, and from a file: the tokens of the whole prompt, bit by bit the same logits."""
    prompt = prompt_of(12)
    whole = tokens_of(model, prompt, max_tokens=10, sampling=LIVELY, seed=3)
    head, read = model.read(prompt[:5]), model.read(prompt)
    rest = Request(prompt=prompt[5:], after=head, max_tokens=10, sampling=LIVELY, seed=3)
    found = generate(model, [read, rest, read], max_tokens=10, sampling=LIVELY, seeds=[3, 9, 3])
    assert [list(each.tokens) for each in found] == [whole] * 3
    assert [each.prompt_tokens for each in found] == [0, 7, 0]
    save_state(head, tmp_path / "state")
    loaded = replace(rest, after=load_state(tmp_path / "state", model), logprobs=2)
    (first,), (second,) = generate(model, [replace(rest, logprobs=2)]), generate(model, [loaded])
    assert (first.tokens, first.logprobs, first.top_logprobs) == (second.tokens, second.logprobs, second.top_logprobs)


@pytest.mark.parametrize("ends", ["length", "stop"])
def test_the_snapshot_after_a_completion_has_read_all_of_it(model, ends):
    prompt = prompt_of(6)
    free = tokens_of(model, prompt, max_tokens=9, seed=4)
    stop_tokens = {free[-1]} if ends == "stop" else set()
    (done,) = generate(
        model,
        [prompt],
        max_tokens=9,
        seeds=[4],
        stop_tokens=stop_tokens,
        keep_snapshots=True,
        sampling=SamplingConfig(),
    )
    text = [*prompt, *done.tokens]
    want = model.read(text)
    assert done.finish_reason == ends
    assert done.snapshot.counts == (len(text),)
    assert torch.equal(done.snapshot.seen_BC, want.seen_BC)
    torch.testing.assert_close(done.snapshot.logits_BC, want.logits_BC)
    torch.testing.assert_close(model.read([1], done.snapshot).logits_BC, model.read([1], want).logits_BC)


def test_a_conversation_in_turns_equals_one_prompt(model):
    """The penalty knows what was said in earlier turns."""
    first, second = prompt_of(6), prompt_of(5, seed=2)
    turn = generate(model, [first], max_tokens=7, sampling=LIVELY, keep_snapshots=True)[0]
    again = generate(model, [Request(prompt=second, after=turn.snapshot, max_tokens=9, sampling=LIVELY, seed=8)])[0]
    whole = [*first, *turn.tokens, *second]
    assert list(again.tokens) == tokens_of(model, whole, max_tokens=9, sampling=LIVELY, seed=8)


def test_logprobs_are_the_models_own():
    model, prompt = build("ms"), prompt_of(5)
    (done,) = generate(model, [prompt], max_tokens=6, sampling=LIVELY, logprobs=3)
    text = [*prompt, *done.tokens]
    own_TC = model(torch.tensor([text]))[0][0].log_softmax(-1)
    for place, (token, logprob, top) in enumerate(zip(done.tokens, done.logprobs, done.top_logprobs, strict=True), 4):
        assert logprob == pytest.approx(own_TC[place, token].item())
        values, ids = own_TC[place].topk(3)
        assert [each for each, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist())
    plain = generate(model, [prompt], max_tokens=6, sampling=LIVELY, logprobs=0)[0]
    assert (plain.tokens, plain.top_logprobs) == (done.tokens, ((),) * 6)
    assert plain.logprobs == pytest.approx(done.logprobs)
    assert generate(model, [prompt], max_tokens=1)[0].logprobs is None


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = build("ms", dropout=0.5)
    expected = tokens_of(model, prompt_of(5), max_tokens=12)
    model.train()
    found = []
    for event in stream(model, [prompt_of(5)], max_tokens=12):
        assert model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        found.append(event.token)
    assert found == expected


class Position(NamedTuple):
    step_B: Tensor


class Scripted(LM):
    """A model that says the tokens of a script whatever the prompt, and notes how it is called."""

    def __init__(self, script, vocabulary):
        super().__init__(lm_from_pattern("m", vocab_size=vocabulary, width=16))
        self.script, self.vocabulary, self.lengths = script, vocabulary, []
        self.register_forward_hook(lambda *_: None)  # so that steps are not replayed

    def shapes(self, batch):
        return (Position(torch.zeros(batch)),)

    def zero_state(self, batch):
        return (Position(torch.full((batch,), -1.0)),)

    def stack(self, tokens_BT, state=None, *, reset_BT=None, lengths_B=None):
        B, T = tokens_BT.shape
        self.lengths.append(T)
        step_B = torch.zeros(B) if state is None or T > 1 else state[0].step_B + 1
        return step_B[:, None, None].expand(B, T, 16), (Position(step_B),)

    def read_out(self, x):
        logits = torch.zeros(*x.shape[:-1], self.vocabulary)
        for place, step in enumerate(x[..., 0].flatten().tolist()):
            logits.view(-1, self.vocabulary)[place, self.script[int(step) % len(self.script)]] = 50.0
        return logits


def test_tokens_come_as_soon_as_they_are_sampled_and_prefill_is_bounded():
    model = Scripted([4, 5, 6], 10)
    events = stream(model, [[1] * 521], max_tokens=1000)
    assert model.lengths == []
    assert [event.token for event in islice(events, 3)] == [4, 5, 6]
    assert model.lengths == [256, 256, 9, 1, 1]


def test_nothing_is_computed_after_the_last_token():
    model = Scripted([4, 5], 10)
    assert tokens_of(model, [1, 2], max_tokens=2) == [4, 5]
    assert model.lengths == [2, 1]
    (nothing,) = generate(model, [[1]], max_tokens=0)
    assert (nothing.tokens, nothing.finish_reason, nothing.text) == ((), "length", None)
    assert generate(model, [], max_tokens=5) == []
    assert model.lengths == [2, 1]
    (read,) = generate(model, [[1, 2]], max_tokens=0, keep_snapshots=True)
    assert read.snapshot.counts == (2,)


def pieces_of(model, tokenizer, prompt, **options):
    return [event.text for event in stream(model, [prompt], tokenizer=tokenizer, **options) if event.text]


def test_text_streams_whole_characters_and_ends_with_the_document():
    tokenizer = ByteTokenizer()
    model = Scripted([*"né€ 😀!".encode(), tokenizer.boundary, 65], tokenizer.vocab_size)
    assert pieces_of(model, tokenizer, "the prompt", max_tokens=100) == ["n", "é", "€", " ", "😀", "!"]
    assert pieces_of(model, tokenizer, "the prompt", max_tokens=2) == ["n", "\ufffd"]
    request = Request(prompt="the prompt", max_tokens=14, stop_at_boundary=False)
    assert generate(model, [request], tokenizer=tokenizer)[0].text == "né€ 😀!A"


def test_a_stop_string_ends_the_text_before_it():
    tokenizer = ByteTokenizer()
    model = Scripted(list(b"one. two.\n\nUser: three"), tokenizer.vocab_size)
    options = {"tokenizer": tokenizer, "max_tokens": 100}
    (done,) = generate(model, ["x"], stop=["\n\nUser", "nowhere"], **options)
    assert (done.text, done.finish_reason, done.stop) == ("one. two.", "stop", "\n\nUser")
    assert bytes(done.tokens) == b"one. two.\n\nUser"
    pieces = [event.text for event in stream(model, ["x"], stop="\n\nUser", **options)]
    assert "".join(pieces) == "one. two."
    assert pieces[:9] == list("one. two.")
    (cut,) = generate(model, ["x"], stop="\n\nUsx", tokenizer=tokenizer, max_tokens=13)
    assert (cut.text, cut.finish_reason) == ("one. two.\n\nUs", "length"), "what was held back comes at the end"


def test_text_is_what_the_tokenizer_makes_of_the_tokens():
    tokenizer = train_bpe([b"one two three four two three four three four" * 4], 300)
    model = LM(lm_from_pattern("m", vocab_size=tokenizer.vocab_size, width=16))
    prompt = [tokenizer.boundary, *tokenizer.encode(b"two three")]
    tokens = tokens_of(model, prompt, max_tokens=60, seed=2, stop_tokens={tokenizer.boundary})
    text = "".join(pieces_of(model, tokenizer, "two three", max_tokens=60, seeds=[2]))
    assert text == tokenizer.decode(tokens).decode("utf-8", "replace")
    assert generate(model, [""], max_tokens=5, tokenizer=tokenizer)[0].prompt_tokens == 1
    (done,) = generate(model, ["two three"], max_tokens=60, seeds=[2], tokenizer=tokenizer)
    assert (done.text, list(done.tokens)) == (text, tokens)


def test_ids_that_the_tokenizer_does_not_have_are_never_sampled():
    """The model wants nothing else; they are not among the most likely either, but count in the probabilities."""
    tokenizer = ByteTokenizer()
    model = LM(lm_from_pattern("m", vocab_size=tokenizer.vocab_size + 47, width=16)).double()
    model.read_out = lambda x: LM.read_out(model, x) + 30.0 * (torch.arange(304) >= 257)
    for sampling in (GREEDY, SamplingConfig(), LIVELY):
        (done,) = generate(model, ["a"], max_tokens=20, sampling=sampling, logprobs=2, tokenizer=tokenizer)
        assert len(done.tokens) == 20 or done.stop == tokenizer.boundary
        assert all(token < 257 for token in done.tokens)
        assert all(token < 257 for top in done.top_logprobs for token, _ in top)
        assert all(logprob < -25 for logprob in done.logprobs)
    (free,) = generate(model, [[1]], max_tokens=20)
    assert min(free.tokens) >= 257


SNAPSHOT_OF_TWO = "two rows"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"prompts": [[1], [1, 99]]}, "prompt 1 has token 99, which is outside the vocabulary of 23"),
        ({"prompts": ["text"]}, "prompt 0 is a text, and there is no tokenizer"),
        ({"prompts": "text"}, "must be a list"),
        ({"prompts": [1, 2, 3]}, "must be a list"),
        ({"prompts": [SNAPSHOT_OF_TWO]}, "a snapshot of 2 rows"),
        ({"max_tokens": -1}, "max_tokens must be 0 or more, not -1"),
        ({"seeds": [1, 2, 3]}, "1 prompts but 3 seeds"),
        ({"seeds": [2**64]}, "a whole number of 64 bits"),
        ({"sampling": [GREEDY, GREEDY]}, "1 prompts but 2 sampling settings"),
        ({"stop": "x"}, "has stop strings, and there is no tokenizer"),
        ({"logprobs": -1}, "logprobs of -1"),
        ({"slots": 0}, "slots is 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(options, message, monkeypatch):
    model = build("m")
    options = {"prompts": [[1]], "max_tokens": 5, **options}
    if options["prompts"] == [SNAPSHOT_OF_TWO]:
        options["prompts"] = [model.read([[1], [2]])]
    monkeypatch.setattr(LM, "stack", None)
    for function in (stream, generate):
        with pytest.raises(ValueError, match=message):
            function(model, **options)


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ValueError, match="257 tokens but the model only 23"):
        generate(build("m"), ["text"], tokenizer=ByteTokenizer())


def test_another_models_snapshot_is_refused():
    snapshot = build("m").read([1])
    assert isinstance(snapshot, Snapshot)
    with pytest.raises(ValueError, match="another model"):
        generate(build("s"), [snapshot])


def test_a_model_that_says_nothing_ends_with_an_error():
    model = build("m")
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    (done,) = generate(model, [[1, 2]])
    assert (done.tokens, done.finish_reason) == ((), "error")
    assert "NaN" in done.error


@pytest.mark.gpu
def test_a_gpu_gives_the_tokens_of_the_cpu():
    model, prompts = build("msMa"), [prompt_of(length, seed=length) for length in (3, 300, 12)]
    on_cpu = [each.tokens for each in generate(model, prompts, max_tokens=20, sampling=LIVELY)]
    assert [each.tokens for each in generate(model.to("cuda"), prompts, max_tokens=20, sampling=LIVELY)] == on_cpu
