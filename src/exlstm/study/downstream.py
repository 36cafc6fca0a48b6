"""Language models that answer tasks of lm-evaluation-harness after their training, as in the paper's Table 3.

Tasks are names that the harness knows, whose data it downloads, or `LOCAL`: three tasks made of the held-out part of
the text that was learned, in the form of published ones.

    ending       which of four endings follows a passage (as HellaSwag)
    last_word    the last word of a passage, in which it has occurred before (as LAMBADA)
    order        which of two halves of a passage comes first (a choice of two)

Needs the extra `eval`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from exlstm.harness import evaluate
from exlstm.models.checkpoints.saving import save
from exlstm.models.lm import LM
from exlstm.study.contract import run_id
from exlstm.study.pool import ProgressReporter
from exlstm.study.problems import Model, Problem, TextProblem
from exlstm.study.texts import StudyText
from exlstm.study.training import Training

LOCAL = ("ending", "last_word", "order")
PAPER = ("lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")  # of Table 3
PALOMA = "paloma"  # a tag of the harness, 16 of the paper's sources
CHANCE = {
    "ending": 0.25,
    "order": 0.5,
    "hellaswag": 0.25,
    "piqa": 0.5,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "winogrande": 0.5,
}
_PASSAGE, _ENDING = 240, 60  # bytes, about
_SHORTEST = 5  # letters of a last word


@dataclass(frozen=True, kw_only=True)
class Downstream(Training):
    """A training on a text whose model then answers tasks. questions: of each task, at most.

    A model that was kept when it was trained is not trained again; the commit of the row is then that of the answers.
    """

    asked: tuple[str, ...] = LOCAL
    questions: int = 200

    def trained(self, problem: Problem, report: ProgressReporter) -> tuple[Model, dict[str, Any]]:
        """The model that was kept, or as any training."""
        kept = None if report.models is None else report.models.find(run_id(self.training()), report.device)
        return super().trained(problem, report) if kept is None else kept

    def further(self, problem: Problem, model: Model) -> dict[str, Any]:
        """Results of the harness by task: {"downstream": {task: {metric: value}}}."""
        assert isinstance(problem, TextProblem)
        assert isinstance(model, LM)
        return {"downstream": answers(model, problem.text, self.asked, self.questions)}


def answers(model: LM, text: StudyText, asked: tuple[str, ...], questions: int) -> dict[str, dict[str, float]]:
    """What a model gets in tasks, by task and metric. ValueError without the harness, or without a task's data."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        save(model, folder)
        (folder / "tokenizer.json").write_text(json.dumps(text.tokenizer.to_json()), encoding="utf-8")
        tasks = [local_task(task, text, folder, questions) if task in LOCAL else task for task in asked]
        return evaluate(name, tasks, limit=questions, device=str(model.embed.weight.device))


def local_task(task: str, text: StudyText, folder: Path, questions: int) -> dict[str, Any]:
    """The harness's description of a task of ours, whose questions are written to a file in the folder."""
    rows = [row for row, _ in zip(_QUESTIONS[task](passages(text)), range(questions), strict=False)]
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    common = {"task": task, **data, "doc_to_text": "{{text}}", "target_delimiter": "", "metadata": {"version": 1.0}}
    if task == "last_word":
        metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
        return {**common, "output_type": "loglikelihood", "doc_to_target": "{{answer}}", "metric_list": metrics}
    metrics = [{"metric": "acc"}, *([{"metric": "acc_norm"}] if task == "ending" else [])]
    choices = {"doc_to_choice": "choices", "doc_to_target": "answer"}
    return {**common, "output_type": "multiple_choice", **choices, "metric_list": metrics}


def passages(text: StudyText) -> Iterator[str]:
    """Paragraphs of held-out documents, long enough for a passage and an ending, in an order of their own."""
    found = []
    for stream in text.domains["test"].values():
        for tokens in np.split(stream.tokens, np.flatnonzero(stream.tokens == stream.boundary)):
            document = text.tokenizer.decode(tokens.tolist()).decode("utf-8", "replace")
            paragraphs = (paragraph.split() for paragraph in document.split("\n\n"))
            # a word that is longer than an ending is no prose, and cannot be cut at a space
            prose = (" ".join(words) for words in paragraphs if words and max(map(len, words)) < _ENDING)
            found += [words for words in prose if len(words) >= _PASSAGE + _ENDING]
    Random(0).shuffle(found)
    yield from found


def _cut(words: str, length: int) -> tuple[str, str]:
    """A text cut at the last space before a length; the space is in the second part."""
    place = words.rfind(" ", 0, length)
    return words[:place], words[place:]


def _endings(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    chance, group = Random(1), []
    for words in texts:
        passage, rest = _cut(words, _PASSAGE)
        group.append((passage, _cut(rest + " ", _ENDING)[0]))
        if len(group) == 4:  # the endings of the others are the wrong ones
            for number, (own, _) in enumerate(group):
                order = chance.sample(range(4), 4)
                yield {"text": own, "choices": [group[other][1] for other in order], "answer": order.index(number)}
            group = []


def _last_words(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    for words in texts:
        parts = words.split(" ")
        seen = set(parts[:8])
        for place in range(8, len(parts)):
            word, before = parts[place], " ".join(parts[:place])
            asked = word.isalpha() and len(word) >= _SHORTEST and word in seen
            if asked and len(before) >= _PASSAGE // 2:
                yield {"text": before, "answer": f" {word}"}
                break
            seen.add(word)


def _orders(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    chance = Random(2)
    for words in texts:
        first, second = _cut(_cut(words, _PASSAGE)[0], _PASSAGE // 2)
        right, wrong = f"{first}{second}", f"{second.strip()} {first}"
        answer = chance.randrange(2)
        yield {"text": "", "choices": [wrong, right] if answer else [right, wrong], "answer": answer}


_QUESTIONS = {"ending": _endings, "last_word": _last_words, "order": _orders}
