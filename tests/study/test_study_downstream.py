"""Tasks made of held-out text, and what a model answers: the harness's numbers are those of a plain computation."""

import itertools
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from small_studies import Quiet

from exlstm.data.tokenizer import tokenizer_from_json
from exlstm.mixers.attention import AttentionConfig
from exlstm.models.checkpoints.loading import load
from exlstm.models.lm import LM
from exlstm.study import Lesson, Training, downstream, stack
from exlstm.study.contract import run_id
from exlstm.study.downstream import LOCAL, PAPER, Downstream, answers, local_task, passages
from exlstm.study.problems import problem_of
from exlstm.study.store import ModelStore
from exlstm.study.texts import study_text
from exlstm.study.training import TrainingLoop

TASK = "email/300"
LESSON = Lesson(task=TASK, train=(32, 32), test=((32, 32),))


@pytest.fixture(scope="module")
def text():
    return study_text(TASK)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return problem_of((LESSON,)).build(stack((AttentionConfig(heads=2),), width=16)).eval()


def rows_of(task, text, folder, questions=30):
    description = local_task(task, text, folder, questions)
    file = Path(description["dataset_kwargs"]["data_files"]["test"])
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_passages_are_of_held_out_documents(text):
    read = text.tokenizer.decode(text.domains["test"]["email"].tokens.tolist()).decode()
    words = " ".join(read.split())
    found = list(itertools.islice(passages(text), 20))
    assert len(found) > 5
    assert all(passage in words for passage in found)


def test_an_ending_is_that_of_its_passage(text, tmp_path):
    every = " | ".join(passages(text))
    rows = rows_of("ending", text, tmp_path)
    assert len(rows) >= 4
    assert len({row["answer"] for row in rows}) > 1
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert row["text"] + row["choices"][row["answer"]] in every
        assert not any(row["text"] + wrong in every for n, wrong in enumerate(row["choices"]) if n != row["answer"])


def test_a_last_word_follows_and_was_read_before(text, tmp_path):
    every = " | ".join(passages(text))
    rows = rows_of("last_word", text, tmp_path)
    assert rows
    for row in rows:
        assert row["text"] + row["answer"] in every
        assert row["answer"][1:] in row["text"].split(" ")
        assert len(row["answer"]) > 5


def test_the_right_order_is_that_of_the_text(text, tmp_path):
    every = " | ".join(passages(text))
    rows = rows_of("order", text, tmp_path)
    assert {row["answer"] for row in rows} == {0, 1}
    for row in rows:
        assert row["choices"][row["answer"]] in every
        assert row["choices"][1 - row["answer"]] not in every


def log_probability(model, tokenizer, words):
    """The logarithm of the probability of a text behind the boundary."""
    ids = torch.tensor([tokenizer.boundary, *tokenizer.encode(words.encode())])
    logits_BTC, _ = model(ids[None, :-1])
    return logits_BTC[0].log_softmax(-1).gather(1, ids[1:, None]).sum().item()


@pytest.mark.slow
def test_a_model_gets_what_its_probabilities_say(text, model, tmp_path, capfd):
    found = answers(model, text, LOCAL, 12)
    assert "requests:" not in capfd.readouterr().err  # bars of several processes would be in one terminal
    assert set(found) == set(LOCAL)
    assert {"acc", "acc_norm"} <= set(found["ending"])
    assert {"acc", "perplexity"} <= set(found["last_word"])
    rows = rows_of("order", text, tmp_path, 12)
    with torch.no_grad():
        scores = [[log_probability(model, text.tokenizer, words) for words in row["choices"]] for row in rows]
    right = sum((b > a) == row["answer"] for (a, b), row in zip(scores, rows, strict=True))
    assert found["order"]["acc"] == pytest.approx(right / len(rows))


@pytest.mark.slow
def test_a_run_trains_and_answers():
    architecture = stack((AttentionConfig(heads=2),), width=16)
    few = {"steps": 2, "batch": 4, "validations": 1, "validation_rows": 8, "test_rows": 8, "questions": 4}
    run = Downstream(model="attention", architecture=architecture, lessons=(LESSON,), lr=1e-3, asked=("order",), **few)
    row = json.loads(json.dumps(run.execute(Quiet()), allow_nan=False))
    assert set(row["metrics"]["downstream"]) == {"order"}
    assert 0 <= row["metrics"]["downstream"]["order"]["acc"] <= 1
    assert row["metrics"]["tests"][0]["bits_per_byte"] > 0


def test_a_model_that_was_kept_is_not_trained_again(tmp_path, monkeypatch):
    """It is asked further, and its row has the numbers of its training."""
    architecture = stack((AttentionConfig(heads=2),), width=16)
    few = {"steps": 2, "batch": 4, "validations": 1, "validation_rows": 8, "test_rows": 8}
    run = Training(model="attention", architecture=architecture, lessons=(LESSON,), lr=1e-3, seed=3, **few)
    store = ModelStore(tmp_path, keeps=True)
    row = run.execute(Quiet(store))
    folder = tmp_path / run_id(run)
    assert load(folder).config.width == 16
    assert tokenizer_from_json(json.loads((folder / "tokenizer.json").read_text())).vocab_size == 300

    asked = []
    monkeypatch.setattr(downstream, "answers", lambda model, *rest: asked.append(model) or {"order": {"acc": 1.0}})
    values = {field.name: getattr(run, field.name) for field in fields(run)}
    further = Downstream(**values, asked=("order",), questions=4)
    monkeypatch.setattr(TrainingLoop, "run", lambda *_: pytest.fail("it is trained again"))
    again = further.execute(Quiet(ModelStore(tmp_path)))
    assert again["metrics"].pop("downstream") == {"order": {"acc": 1.0}}
    assert again == json.loads(json.dumps(row))
    assert isinstance(asked[0], LM)
    assert not asked[0].training
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        replace(further, seed=4).execute(Quiet(ModelStore(tmp_path)))


WET = {"question": "what is wet?", "answerKey": "B", "choices": {"text": ["stone", "water"], "label": ["A", "B"]}}
STUBS = {  # two questions in the form of each data set
    "lambada_openai": [{"text": "a cat and a dog saw the cat"}, {"text": "one two one two one"}],
    "arc_easy": [{"id": "1", **WET}, {"id": "2", **WET}],
}


@pytest.mark.slow
def test_the_papers_tasks_run_by_name_where_their_data_are(text, model, monkeypatch):
    import datasets

    def load(path, name=None, **_):
        rows = STUBS["lambada_openai" if "lambada" in path else "arc_easy"]
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(rows)))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert set(STUBS) < set(PAPER)
    found = answers(model, text, tuple(STUBS), 2)
    assert found["lambada_openai"]["perplexity"] > 1
    assert found["arc_easy"]["acc"] in (0, 0.5, 1)


def test_without_the_harness_it_is_said_how_to_get_it(text, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"^lm-evaluation-harness is not installed .*'exlstm\[eval\]'$"):
        answers(model, text, ("order",), 2)
