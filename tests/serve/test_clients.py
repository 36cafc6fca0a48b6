"""Real clients against a real server: openai's own, and lm-evaluation-harness."""

import json

import openai
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

import exlstm
from exlstm.data.tokenizer import train_bpe
from exlstm.harness.model import HarnessModel
from exlstm.hf import save_tokenizer
from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from serving_tools import build, serving


def client_of(served, **options):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, **options)


def test_openai_completions(served):
    with client_of(served) as client:
        found = client.completions.create(model="tiny", prompt="Once", max_tokens=12, seed=1, logprobs=2)
        (expected,) = generate(
            served.model, [Request(prompt="Once", max_tokens=12, seed=1, logprobs=2)], tokenizer=served.tokenizer
        )
        assert found.choices[0].text == expected.text
        assert found.choices[0].logprobs.token_logprobs == pytest.approx(list(expected.logprobs), abs=1e-5)
        assert found.model_extra["seed"] == 1
        parts = list(client.completions.create(
            model="", prompt="Once", max_tokens=12, seed=1, stream=True, stream_options={"include_usage": True}
        ))  # fmt: skip
        assert "".join(part.choices[0].text for part in parts if part.choices) == expected.text
        assert parts[-1].usage.total_tokens == 5 + 12
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "exlstm"


def test_openai_errors(served):
    with client_of(served) as client:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="tiny", prompt="a", max_tokens=10**6)
        assert error.value.param == "max_tokens"
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.APIError, match="time for this request"):
            list(client.completions.create(
                model="tiny", prompt="a", max_tokens=30_000, stream=True,
                extra_body={"timeout": 0.2, "ignore_eos": True},
            ))  # fmt: skip


def test_openai_goes_on_from_a_state(served):
    with client_of(served) as client:
        first = client.completions.create(
            model="tiny", prompt="Once", max_tokens=6, seed=1, extra_body={"keep_state": True}
        )
        state = first.choices[0].model_extra["state"]["id"]
        second = client.completions.create(
            model="tiny", prompt=" upon", max_tokens=6, temperature=0, extra_body={"state": state}
        )
        assert second.usage.prompt_tokens == 5
    ids = [256, *b"Once", *first.choices[0].text.encode(), *b" upon"]
    if "\ufffd" not in first.choices[0].text:
        (expected,) = generate(
            served.model, [Request(prompt=ids, max_tokens=6, sampling=exlstm.SamplingConfig(temperature=0.0))],
            tokenizer=served.tokenizer,
        )  # fmt: skip
        assert second.choices[0].text == expected.text


PAIRS = [
    ("the cat", " sat"), ("the cat", " sat on the mat"), ("a", "b"), ("the cat", " ran"), ("é", "漢 and more"),
    ("one two three four five six seven ", "eight"),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8])
def test_lm_eval_over_http_is_lm_eval_in_this_process(batch, tmp_path, served):
    """With the server's tokenizer, which lm-eval asks for texts without a boundary."""
    exlstm.save(served.model, tmp_path)
    local = HarnessModel(str(tmp_path), tokenizer="bytes", device="cpu", add_bos_token=False)
    check(served, local, batch_size=batch, tokenizer_backend="remote")


def test_lm_eval_with_a_tokenizer_of_its_own(tmp_path):
    """That of transformers puts the boundary in front, as in training."""
    tokenizer = train_bpe([b"the cat sat on the mat and ran to one two three " * 20], 300)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    model = build(vocab_size=tokenizer.vocab_size)
    exlstm.save(model, tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "hf")
    local = HarnessModel(str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer.json"), device="cpu")
    with serving(model, tokenizer) as served:
        check(served, local, batch_size=4, tokenizer=str(tmp_path / "hf"), add_bos_token=True)


def check(served, local, **options):
    """The two give the same scores, and the same answers."""
    remote = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model="tiny", max_length=4_096, **options
    )  # fmt: skip
    jobs = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    expected, found = local.loglikelihood(jobs), remote.loglikelihood(jobs)
    for (value, greedy), (other, other_greedy) in zip(expected, found, strict=True):
        assert other == pytest.approx(value, abs=1e-4)
        assert other_greedy == greedy
    settings = {"until": ["q", "zz"], "max_gen_toks": 16, "do_sample": False}
    jobs = [Instance("generate_until", {}, (text, settings), index) for index, (text, _) in enumerate(PAIRS)]
    assert remote.generate_until(jobs) == local.generate_until(jobs)
