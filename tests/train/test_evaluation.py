"""Scores: against the obvious computation, whatever the chunks, and with every token counted once."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Settings
from torch.nn import functional

from exlstm.data.packing import TokenStream, pack, windows_of
from exlstm.data.text import Document
from exlstm.data.tokenizer import ByteTokenizer, train_bpe
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train import evaluate as evaluation
from exlstm.train.evaluate import TextScore, evaluate, score, score_contexts, score_whole
from exlstm.train.replicas import ThreadedReplicas
from exlstm.train.run import train

LENGTHS = ByteTokenizer().byte_lengths


@pytest.fixture
def model() -> LM:
    """With a state that matters: its gates are open."""
    model = LM(lm_from_pattern("ml", vocab_size=257, width=16, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def stream() -> TokenStream:
    docs = [Document(str(size), bytes(range(65, 65 + size % 57)) * (size // 30)) for size in (200, 31, 450, 90)]
    return pack(docs, ByteTokenizer())


def plain_nats(model: LM, stream: TokenStream) -> float:
    """One row, one call per document."""
    nats = 0.0
    tokens = torch.from_numpy(stream.tokens.astype("int64"))
    starts = [*(tokens == stream.boundary).nonzero()[:, 0].tolist(), len(tokens)]
    for start, stop in pairwise(starts):
        row = tokens[start : min(stop, len(tokens) - 1) + 1]
        logits_BTC, _ = model(row[None, :-1])
        nats += functional.cross_entropy(logits_BTC[0].double(), row[1:], reduction="sum").item()
    return nats


@pytest.mark.parametrize("length", [7, 50, 10_000])
def test_the_whole_text_in_one_lane_is_the_plain_sum(length: int, model: LM, stream: TokenStream) -> None:
    found, coverage = score_whole(ThreadedReplicas(model, 1), stream, LENGTHS, batch=1, length=length, minutes=9)
    assert found.nats == pytest.approx(plain_nats(model, stream), rel=1e-5)
    assert (found.tokens, found.bytes, coverage) == (len(stream) - 1, stream.bytes, 1.0)
    assert found.loss == found.nats / found.tokens
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / stream.bytes)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_short_text_is_one_pass_whatever_the_batch(batch: int, model: LM, stream: TokenStream) -> None:
    found, _ = score_whole(ThreadedReplicas(model, 2), stream, LENGTHS, batch=batch, length=9, minutes=9)
    assert found.nats == pytest.approx(plain_nats(model, stream), rel=1e-5)


def test_a_lane_of_a_long_text_begins_with_what_comes_before(
    model: LM, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is scored as it is in a pass that begins so many tokens earlier: cut off, and no further."""
    monkeypatch.setattr(evaluation, "LANE", len(stream) // 4)
    monkeypatch.setattr(evaluation, "BEFORE", 30)
    found, coverage = score_whole(ThreadedReplicas(model, 2), stream, LENGTHS, batch=3, length=7, minutes=9)
    tokens = torch.from_numpy(stream.tokens.astype("int64"))[None]
    edges = [0, *(30 + number * (len(stream) - 31) // 3 for number in (1, 2, 3))]
    nats = 0.0
    for start, stop in pairwise(edges):
        first = max(start - 30, 0)
        inputs = tokens[:, first:stop]
        logits_BTC, _ = model(inputs, reset_BT=inputs == stream.boundary)
        scored = logits_BTC[0, start - first :]
        nats += functional.cross_entropy(scored.double(), tokens[0, start + 1 : stop + 1], reduction="sum").item()
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.tokens, coverage) == (len(stream) - 1, 1.0)
    assert found.nats != pytest.approx(plain_nats(model, stream), rel=1e-5)


@pytest.mark.parametrize("batch", [2, 5])
def test_lanes_count_every_token_once(
    batch: int, model: LM, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LANE", 1)
    found, coverage = score_whole(ThreadedReplicas(model, 2), stream, LENGTHS, batch=batch, length=9, minutes=9)
    assert (found.tokens, found.bytes, coverage) == (len(stream) - 1, stream.bytes, 1.0)


def test_bits_per_byte_of_a_uniform_model_do_not_depend_on_the_tokenizer() -> None:
    """log2(vocabulary) bits per token, divided by the bytes of the text."""
    docs = [Document("a", b"the sheep and the other sheep\n" * 40)]
    for tokenizer in (ByteTokenizer(), train_bpe([docs[0].data], 300)):
        model = LM(lm_from_pattern("m", vocab_size=tokenizer.vocab_size, width=16, heads=2))
        torch.nn.init.zeros_(model.head.weight)
        stream = pack(docs, tokenizer)
        found, _ = score_whole(
            ThreadedReplicas(model, 1), stream, tokenizer.byte_lengths, batch=1, length=64, minutes=9
        )
        expected = math.log2(tokenizer.vocab_size) * (len(stream) - 1) / stream.bytes
        assert found.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_the_time_limit_gives_an_honest_share(model: LM, stream: TokenStream) -> None:
    found, coverage = score_whole(ThreadedReplicas(model, 1), stream, LENGTHS, batch=2, length=10, minutes=0)
    assert found.tokens == 20
    assert coverage == 20 / (len(stream) - 1)


@pytest.mark.parametrize("chunk", [1, 16, 33, 64])
def test_chunks_change_nothing_but_the_memory(chunk: int, model: LM, stream: TokenStream) -> None:
    widths = []
    model.embed.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[1]))
    whole = score_contexts(ThreadedReplicas(model, 1), stream, LENGTHS, [64], tokens=300, batch=3, chunk=1000)
    cut = score_contexts(ThreadedReplicas(model, 1), stream, LENGTHS, [64], tokens=300, batch=3, chunk=chunk)
    assert max(widths[-3:]) <= chunk
    assert cut[64].nats == pytest.approx(whole[64].nats, rel=1e-5)
    assert cut[64].tokens == whole[64].tokens == 300


def test_contexts_are_windows_from_a_fresh_state(model: LM, stream: TokenStream) -> None:
    found = score_contexts(ThreadedReplicas(model, 1), stream, LENGTHS, [8, 40], tokens=120, batch=4, chunk=5)
    for context, result in found.items():
        nats = 0.0
        for inputs_BT, targets_BT, reset_BT, _ in windows_of(stream, length=context, limit=120):
            logits_BTC, _ = model(inputs_BT, reset_BT=reset_BT)
            nats += functional.cross_entropy(logits_BTC[0], targets_BT[0], reduction="sum").item()
        assert result.nats == pytest.approx(nats, rel=1e-5)
        assert result.tokens == 120
    assert found[8].nats != pytest.approx(found[40].nats, rel=1e-3)


def test_a_model_in_training_stays_in_training(model: LM, stream: TokenStream) -> None:
    model.train()
    score(ThreadedReplicas(model, 1), windows_of(stream, length=8, limit=16), LENGTHS, carry=False, chunk=8)
    assert model.training


def test_evaluate_agrees_with_the_end_of_the_run(settings: Settings, tiny: LMConfig, text: Path) -> None:
    summary = train(settings(final_minutes=9.0), model=tiny)
    found = evaluate(summary.run)
    assert found.whole == summary.final
    assert found.step == summary.final_step
    assert found.coverage == 1.0
    assert found.contexts == {}  # none of them fits
    assert list(evaluate(summary.run, data=str(text)).contexts) == [256, 1024, 4096]
    whole = evaluate(summary.run, data=str(text), context=[10, 20], tokens=100, checkpoint=4)
    assert (whole.step, whole.whole.bytes) == (4, text.stat().st_size)
    assert {context: result.tokens for context, result in whole.contexts.items()} == {10: 100, 20: 100}
    assert evaluate(summary.run, part="test").whole.bytes != found.whole.bytes
    table = whole.table()
    assert " parts, each" not in table
    assert "(the last row reads 3 parts, each after" in replace(whole, lanes=3).table()
    assert f"{whole.whole.bits_per_byte:.4f}" in table
    assert f"{whole.contexts[20].perplexity:.3f}" in table
    text.write_text(text.read_text() + "more\n")
    assert "which has changed since" in evaluate(summary.run).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": [100_000]}, "give more text"),
        ({"context": [0]}, "length=0"),
        ({"checkpoint": 5}, "no checkpoint of step 5"),
        ({"data": "/nowhere"}, "there is no file or folder '/nowhere'"),
        ({"device": "abacus"}, "--device 'abacus'"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str, settings: Settings, tiny: LMConfig) -> None:
    summary = train(settings(steps=1, validations=1), model=tiny)
    with pytest.raises(ValueError, match=message):
        evaluate(summary.run, **options)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run or model at"):
        evaluate(str(tmp_path / "nothing"))


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    assert TextScore(nats=1e6, tokens=1, bytes=1).perplexity < math.inf
