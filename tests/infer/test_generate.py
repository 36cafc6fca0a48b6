"""Generation: carrying the state equals running the whole text again for every token, also in ragged batches."""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from exlstm.data.tokenizer import ByteTokenizer, train_bpe
from exlstm.infer.generate import PREFILL_CHUNK, generate, generate_batch, generate_text, prefill
from exlstm.infer.sampling import GREEDY, SamplingConfig, sample
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern

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


@pytest.fixture(params=["ms", "M", "a", "l", "mas"])
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


def completions(model, prompts, **options):
    tokens = [[] for _ in prompts]
    for index, token in generate_batch(model, prompts, **options):
        tokens[index].append(token)
    return tokens


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(), LIVELY], ids=["greedy", "plain", "lively"])
def test_equals_the_definition(model, sampling):
    prompt = prompt_of(9)
    expected = by_definition(model, prompt, max_tokens=24, sampling=sampling, seed=3)
    assert list(generate(model, prompt, max_tokens=24, sampling=sampling, seed=3)) == expected
    assert len(set(expected)) > 2, "a model that repeats itself shows nothing"


def test_a_seed_decides_the_text(model):
    first, again, other = (list(generate(model, prompt_of(4), max_tokens=40, seed=seed)) for seed in (11, 11, 12))
    assert first == again
    assert first != other


def test_a_ragged_batch_gives_each_prompt_what_it_gets_alone(model):
    prompts = [prompt_of(length, seed=length) for length in (1, PREFILL_CHUNK + 5, 7, PREFILL_CHUNK, 2)]
    together = completions(model, prompts, max_tokens=16, sampling=LIVELY, seeds=[5, 6, 7, 8, 9])
    for index, prompt in enumerate(prompts):
        assert together[index] == list(generate(model, prompt, max_tokens=16, sampling=LIVELY, seed=5 + index))


def test_a_prompt_that_stops_leaves_the_others_alone(model):
    prompts = [prompt_of(length, seed=length) for length in (3, 11, 6, 2)]
    free = completions(model, prompts, max_tokens=30)
    stop = free[1][4]
    stopped = completions(model, prompts, max_tokens=30, stop_tokens={stop})
    for with_stop, without in zip(stopped, free, strict=True):
        assert with_stop == without[: without.index(stop)] if stop in without else with_stop == without
    assert len(stopped[1]) <= 4


@pytest.mark.parametrize("chunk_len", [1, 3, 7, 50])
def test_prefill_in_chunks_equals_prefill_at_once(model, chunk_len):
    prompts = [prompt_of(length, seed=length) for length in (1, 14, 7, 21)]
    logits_BC, state = prefill(model, prompts, chunk_len=chunk_len)
    for index, prompt in enumerate(prompts):
        alone_BTC, _ = model(torch.tensor([prompt]))
        torch.testing.assert_close(logits_BC[index], alone_BTC[0, -1])
    after_B1C, _ = model(torch.ones(4, 1, dtype=torch.long), state)
    for index, prompt in enumerate(prompts):
        alone_BTC, _ = model(torch.tensor([[*prompt, 1]]))
        torch.testing.assert_close(after_B1C[index, 0], alone_BTC[0, -1])


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = build("ms", dropout=0.5)
    expected = list(generate(model, prompt_of(5), max_tokens=12))
    model.train()
    found = []
    for token in generate(model, prompt_of(5), max_tokens=12):
        assert model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        found.append(token)
    assert found == expected


class Position(NamedTuple):
    step_B: Tensor


class Scripted(nn.Module):
    """Stands in for a model: says the tokens of a script whatever the prompt, and notes how it is called."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.config = lm_from_pattern("m", vocab_size=vocabulary, width=16)
        self.embed = nn.Embedding(vocabulary, 1)
        self.script, self.vocabulary, self.lengths = script, vocabulary, []

    def forward(self, tokens_BT, state=None, *, reset_BT=None, lengths_B=None):
        B, T = tokens_BT.shape
        self.lengths.append(T)
        step = 0 if state is None or T > 1 else int(state[0].step_B[0]) + 1
        logits_BTC = torch.zeros(B, T, self.vocabulary)
        logits_BTC[..., self.script[step % len(self.script)]] = 50.0
        return logits_BTC, (Position(torch.full((B,), step)),)


def test_tokens_come_as_soon_as_they_are_sampled_and_prefill_is_bounded():
    model = Scripted([4, 5, 6], 10)
    tokens = generate(model, [1] * (2 * PREFILL_CHUNK + 9), max_tokens=1000)
    assert model.lengths == []
    assert list(islice(tokens, 3)) == [4, 5, 6]
    assert model.lengths == [PREFILL_CHUNK, PREFILL_CHUNK, 9, 1, 1]


def test_nothing_is_computed_after_the_last_token():
    model = Scripted([4, 5], 10)
    assert list(generate(model, [1, 2], max_tokens=2)) == [4, 5]
    assert model.lengths == [2, 1]
    assert list(generate(model, [1], max_tokens=0)) == []
    assert list(generate_batch(model, [], max_tokens=5)) == []
    assert model.lengths == [2, 1]


def test_text_streams_whole_characters_and_ends_with_the_document():
    tokenizer = ByteTokenizer()
    model = Scripted([*"né€ 😀!".encode(), tokenizer.boundary, 65], tokenizer.vocab_size)
    pieces = list(generate_text(model, tokenizer, "the prompt", max_tokens=100))
    assert pieces == ["n", "é", "€", " ", "😀", "!"]
    assert list(generate_text(model, tokenizer, "the prompt", max_tokens=2)) == ["n", "\ufffd"]


def test_text_is_what_the_tokenizer_makes_of_the_tokens():
    tokenizer = train_bpe([b"one two three four two three four three four" * 4], 300)
    model = LM(lm_from_pattern("m", vocab_size=tokenizer.vocab_size, width=16))
    prompt = [tokenizer.boundary, *tokenizer.encode(b"two three")]
    tokens = list(generate(model, prompt, max_tokens=60, seed=2, stop_tokens={tokenizer.boundary}))
    text = "".join(generate_text(model, tokenizer, "two three", max_tokens=60, seed=2))
    assert text == tokenizer.decode(tokens).decode("utf-8", "replace")
    assert "".join(generate_text(model, tokenizer, "", max_tokens=5)) != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 has no tokens"),
        ({"max_tokens": -1}, "max_tokens must be 0 or more, not -1"),
        ({"seeds": [1, 2, 3]}, "1 prompts but 3 seeds"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(options, message):
    model = Scripted([4], 10)
    options = {"prompts": [[1]], "max_tokens": 5, **options}
    with pytest.raises(ValueError, match=message):
        generate_batch(model, options.pop("prompts"), **options)
    assert model.lengths == []


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ValueError, match="257 tokens but the model only 23"):
        generate_text(build("m"), ByteTokenizer(), "text", max_tokens=1)


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token 99 is outside the vocabulary of 23"):
        list(generate(build("m"), [1, 99], max_tokens=1))


@pytest.mark.gpu
def test_a_gpu_gives_the_tokens_of_the_cpu():
    model, prompts = build("msMa"), [prompt_of(length, seed=length) for length in (3, 300, 12)]
    on_cpu = completions(model, prompts, max_tokens=20, sampling=LIVELY)
    assert completions(model.to("cuda"), prompts, max_tokens=20, sampling=LIVELY) == on_cpu
