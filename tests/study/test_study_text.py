"""Texts and what is learned of them: every number against a plain computation, whatever the windows."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.study import Lesson, stack, texts
from exlstm.study.problems import TextProblem, TokenProblem, problem_of
from exlstm.study.texts import StudyText, documentation, is_text, study_text

TASK = "email/300"
SHORT, LONG = 32, 1500  # the long one takes two forward passes
LESSON = Lesson(task=TASK, train=(SHORT, SHORT), test=((SHORT, SHORT), (LONG, LONG)))


@pytest.fixture(scope="module")
def problem():
    return problem_of((LESSON,))


@pytest.fixture(scope="module")
def model(problem):
    torch.manual_seed(0)
    found = problem.build(stack((MLSTMConfig(heads=2, up_multiple=8), AttentionConfig(heads=2)), width=8)).eval()
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return found


def test_a_text_has_three_parts_of_other_documents():
    text = study_text(TASK)
    assert isinstance(text, StudyText)
    assert text.tokenizer.vocab_size == 300
    parts = [stream for part in text.domains.values() for stream in part.values()] + list(text.train.streams)
    documents = [
        {bytes(piece) for piece in np.split(stream.tokens, np.flatnonzero(stream.tokens == stream.boundary))}
        for stream in parts
    ]
    for number, found in enumerate(documents):
        for other in documents[:number]:
            assert not {piece for piece in found & other if len(piece) > 4}
    assert text.counts_C.tolist() == [Counter(text.train.streams[0].tokens.tolist())[token] for token in range(300)]
    assert len(text.sha256) == 64


def test_what_is_no_text_is_no_task():
    assert is_text("mixed/1024")
    for name in ("mixed", "mixed/", "mixed/x", "parity", "novel/1024"):
        assert not is_text(name)
    with pytest.raises(ValueError, match=r"no task 'novel/1024'; use one of .*english/1024"):
        Lesson(task="novel/1024", train=(8, 8), test=((8, 8),))
    with pytest.raises(ValueError, match=r"email/300 cannot be learned beside another task; give it alone"):
        problem_of((LESSON, LESSON))
    with pytest.raises(ValueError, match="no answers to prefixes"):
        Lesson(task=TASK, train=(8, 8), test=((8, 8),), dense=True)
    assert isinstance(problem_of((Lesson(task="parity", train=(3, 9), test=((3, 9),)),)), TokenProblem)


def test_documentation_is_long_strings_of_all_that_has_some():
    long = "a sentence " * 30
    source = f'''"""{long}module"""
x = """{long}of no use"""
class A:
    """short"""
    def f(self):
        """{long}method"""
async def g():
    """{long}coroutine"""
'''
    found = documentation(source.encode()).decode()
    assert [word for word in ("module", "method", "coroutine", "short", "of no use") if word in found] == [
        "module", "method", "coroutine",
    ]  # fmt: skip
    assert documentation(b"not python at all (") == b""
    assert documentation(b"x = 1") == b""


@pytest.mark.slow
def test_the_documentation_of_packages_is_english(monkeypatch):
    monkeypatch.setattr(texts, "_PACKAGES", ())
    read = texts.TEXTS["english"]["english"]()
    assert len(read) > 200
    assert all(document.name.startswith("stdlib/") and len(document.data) >= 200 for document in read)
    words = Counter(b" ".join(document.data for document in read).lower().split())
    assert words[b"the"] > 5000


def test_the_loss_is_that_of_the_windows(problem, model):
    loss, tokens = problem.loss(model, 3, seed=5, rows=4, device=torch.device("cpu"))
    batch = problem.text.train.batch_at(3, batch=4, length=SHORT, seed=5, carry=False)
    logits_BTC, _ = model(batch.inputs_BT)
    assert tokens == 4 * SHORT
    assert loss.item() == pytest.approx(
        functional.cross_entropy(logits_BTC.flatten(0, 1), batch.targets_BT.flatten()).item(), rel=1e-5
    )
    other, _ = problem.loss(model, 3, seed=6, rows=4, device=torch.device("cpu"))
    assert other.item() != loss.item()


@pytest.mark.parametrize("part", [0, 1])
def test_scores_are_those_of_single_windows(problem, model, part):
    rows, length = 64, LESSON.test[part][1]
    with torch.no_grad():
        found = problem.score(model, 0, part, "test", rows)
        stream = problem.text.domains["test"]["email"]
        tokens, losses, places = [], [], []
        for start in range(0, max(rows * SHORT, length) // length * length, length):
            window = torch.from_numpy(stream.tokens[start : start + length + 1].astype(np.int64))
            logits_BTC, _ = model(window[None, :-1])
            losses += functional.cross_entropy(logits_BTC[0], window[1:], reduction="none").tolist()
            tokens += window[1:].tolist()
            places += range(length)
    sizes = problem.text.tokenizer.byte_lengths[tokens]
    bits = sum(losses) / math.log(2) / sizes.sum()
    assert found["asked"] == len(tokens)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["by_domain"] == {"email": pytest.approx(bits, rel=1e-5)}
    assert found["score"] == pytest.approx(1 - bits / 8, rel=1e-5)
    counts = problem.text.counts_C[tokens]
    for table, keys in (("by_position", places), ("by_count", counts)):
        assert sum(row[2] for row in found[table]) == len(tokens)
        for low, high, count, nats, size in found[table]:
            inside = [index for index, key in enumerate(keys) if low <= key < high]
            assert count == len(inside)
            assert nats == pytest.approx(sum(losses[index] for index in inside), rel=1e-4)
            assert size == sizes[inside].sum()


def test_frequencies_are_what_a_model_has_to_beat(problem, model):
    text = problem.text
    tokens = text.domains["test"]["email"].tokens[:500].astype(np.int64)
    plain = -sum(math.log2((text.counts_C[token] + 1) / (text.counts_C.sum() + 300)) for token in tokens)
    assert problem.unigram(tokens) == pytest.approx(plain / text.tokenizer.byte_lengths[tokens].sum())
    with torch.no_grad():
        for weight in model.head.parameters():
            before = weight.clone()
            weight.zero_()  # all tokens alike
        found = problem.score(model, 0, 0, "test", 8)
        weight.copy_(before)
    assert found["at_chance"]
    assert found["bits_per_byte"] > found["unigram"]


def test_a_text_in_two_domains_is_scored_by_domain(monkeypatch):
    half = texts.TEXTS["email"]["email"]
    two = {"first": lambda: half()[:12], "second": lambda: half()[12:]}
    monkeypatch.setattr(texts, "TEXTS", {**texts.TEXTS, "two": two})
    problem = TextProblem((Lesson(task="two/280", train=(16, 16), test=((16, 16),)),))
    torch.manual_seed(0)
    model = problem.build(stack((AttentionConfig(heads=1),), width=8)).eval()
    with torch.no_grad():
        found = problem.score(model, 0, 0, "validation", 8)
    assert set(found["by_domain"]) == {"first", "second"}
    assert found["asked"] == 2 * 4 * 16
    assert min(found["by_domain"].values()) < found["bits_per_byte"] < max(found["by_domain"].values())
    batch = problem.text.train.batch_at(0, batch=4, length=16, seed=0, carry=False)
    assert batch.inputs_BT.shape == (4, 16)
