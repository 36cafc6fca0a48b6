"""Completions over HTTP equal those of the engine in this process."""

import pytest

from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY, SamplingConfig


def in_process(served, prompt, **settings):
    (found,) = generate(served.model, [Request(prompt=prompt, **settings)], tokenizer=served.tokenizer)
    return found


def test_text_and_ids(served):
    expected = in_process(served, "Once", max_tokens=20, sampling=GREEDY)
    ids = [served.tokenizer.boundary, *b"Once"]
    for prompt in ("Once", ids, ["Once"], [ids]):
        found = served.post("/v1/completions", {"prompt": prompt, "max_tokens": 20, "temperature": 0}).json()
        (choice,) = found["choices"]
        assert choice["text"] == expected.text
        assert choice["finish_reason"] == "length"
        assert found["usage"]["prompt_tokens"] == 5
        assert found["usage"]["completion_tokens"] == 20
    assert found["object"] == "text_completion"
    assert found["system_fingerprint"].startswith("exlstm-")


def test_streams_join_to_the_whole(served):
    body = {"prompt": "Once", "max_tokens": 40, "seed": 3, "stream_options": {"include_usage": True}}
    found = served.stream("/v1/completions", body)
    expected = in_process(served, "Once", max_tokens=40, seed=3)
    assert "".join(frame["choices"][0]["text"] for frame in found[:-1]) == expected.text
    assert [frame["choices"][0]["finish_reason"] for frame in found[:-1]] == [None] * (len(found) - 2) + ["length"]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 40
    assert len({frame["id"] for frame in found}) == 1


@pytest.mark.parametrize("n", [1, 3])
def test_samples(served, n):
    body = {"prompt": ["ab", "cd"], "max_tokens": 10, "seed": 5, "n": n}
    found = served.post("/v1/completions", body).json()
    assert [choice["index"] for choice in found["choices"]] == list(range(2 * n))
    for place, prompt in enumerate(("ab", "cd")):
        assert found["choices"][place * n]["text"] == in_process(served, prompt, max_tokens=10, seed=5).text
    assert found["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_has_an_entry_for_every_token(served, max_tokens):
    ids = [[256, *b"hello"], [*b"ab"]]
    body = {"prompt": ids, "max_tokens": max_tokens, "logprobs": 1, "echo": True, "temperature": 0}
    found = served.post("/v1/completions", body).json()
    for choice, prompt in zip(found["choices"], ids, strict=True):
        logprobs = choice["logprobs"]
        assert {len(x) for x in logprobs.values()} == {len(prompt) + max_tokens}
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None


def test_penalties_reach_the_engine(served):
    sampling = SamplingConfig(temperature=0.0, frequency_penalty=2.0)
    expected = in_process(served, "Once", max_tokens=20, sampling=sampling)
    body = {"prompt": "Once", "max_tokens": 20, "temperature": 0, "frequency_penalty": 2}
    assert served.post("/v1/completions", body).json()["choices"][0]["text"] == expected.text


def test_ids_and_alternatives(served):
    """In the order of the names, of the chosen token first."""
    body = {"prompt": "Once", "max_tokens": 4, "seed": 1, "logprobs": 3, "return_token_ids": True}
    choice = served.post("/v1/completions", body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["token_ids"] == logprobs["token_ids"]
    assert served.tokenizer.decode(choice["token_ids"]).decode("utf-8", "replace") == choice["text"]
    for token, top, others in zip(
        logprobs["token_ids"], logprobs["top_logprobs"], logprobs["alternatives"], strict=True
    ):
        assert others[0]["id"] == token
        assert {each["text"]: each["logprob"] for each in others} == top
