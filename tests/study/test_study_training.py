"""One run: the same numbers every time, the steps that were asked for, and a failure where there is no number."""

import json
import math
from dataclasses import replace

import pytest
import torch
from small_studies import Quiet, training

from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.summary import parameters
from exlstm.study import FORMAL, Lesson, stack
from exlstm.study.problems import RealProblem, TokenProblem, problem_of
from exlstm.study.training import TrainingLoop
from exlstm.train.optimizer import decay_groups

LEARNED = stack((SLSTMConfig(heads=1, conv_width=0, recurrence="learned", recurrent_init="uniform"),), width=8)


def numbers(run):
    """All that a run gives but the time it took, after a journey through JSON as strict readers take it."""
    row = run.execute(Quiet())
    plain = json.loads(json.dumps(row, allow_nan=False))
    assert plain == row
    assert row["seconds"] >= 0
    return {key: value for key, value in plain.items() if key != "seconds"}


@pytest.fixture(scope="module")
def once():
    return numbers(training())


def test_a_run_gives_the_same_numbers_again(once):
    torch.manual_seed(123)  # what was drawn before is of no importance
    assert numbers(training()) == once


def test_another_seed_gives_other_numbers(once):
    found = numbers(training(seed=1))
    assert found["metrics"]["loss"] != once["metrics"]["loss"]
    same = ("parameters", "state_bytes", "steps", "recurrent_nonzeros")
    assert [found[key] for key in same] == [once[key] for key in same]


def test_a_row_says_what_ran(once):
    model = problem_of(training().lessons).build(training().architecture)
    assert once["parameters"] == parameters(model)
    assert once["state_bytes"] == sum(mixer.state_bytes(20) for mixer in model.mixers) > 0
    assert once["steps"] == 6
    assert once["flops"] > 0
    assert [test["high"] for test in once["metrics"]["tests"]] == [20, 12]
    assert [point["step"] for point in once["curve"]] == [2, 4, 6]
    assert (once["metrics"]["loss"], once["metrics"]["validation"]) == (
        once["curve"][-1]["loss"],
        once["curve"][-1]["validation"],
    )
    assert all(0 < point["loss"] < 3 for point in once["curve"])


@pytest.mark.parametrize(("steps", "validations", "at"), [(7, 3, [3, 5, 7]), (3, 10, [1, 2, 3]), (5, 1, [5])])
def test_validations_are_spread_and_the_last_is_at_the_end(steps, validations, at):
    quiet = Quiet()
    row = training(steps=steps, validations=validations, seed=3).execute(quiet)
    assert [point["step"] for point in row["curve"]] == at
    assert [fraction for fraction, _ in quiet.told] == pytest.approx([step / steps for step in at])
    assert quiet.told[-1][1] == f"loss {row['metrics']['loss']:.3f}, score {row['metrics']['validation']:.2f}"


def test_steps_are_those_of_a_plain_loop():
    run = training(steps=8, validations=2, seed=2, clip=0.05, weight_decay=0.3)
    found = run.execute(Quiet())["curve"]
    problem = problem_of(run.lessons)
    torch.manual_seed(2)
    model = problem.build(run.architecture)
    weights = dict(model.named_parameters())
    groups = [
        {"params": [weights[name] for name in names], "weight_decay": decay}
        for names, decay in zip(decay_groups(model), (0.3, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    losses = []
    for step in range(8):
        past = step / 8
        rate = (
            0.01 + 0.99 * past / 0.1 if past < 0.1 else 0.01 + 0.99 * (1 + math.cos(math.pi * (past - 0.1) / 0.9)) / 2
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate
        optimizer.zero_grad()
        loss, _ = problem.loss(model, step, seed=2, rows=4, device=torch.device("cpu"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        losses.append(loss.item())
    assert [point["loss"] for point in found] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-5)


def test_enough_is_enough_when_seen_twice_in_a_row(monkeypatch):
    run, scores = training(steps=12, validations=6, enough=0.9), [0.95, 0.1, 0.9, 0.95, 0.99, 0.99]
    left = iter(scores)
    monkeypatch.setattr(TrainingLoop, "validate", lambda self: next(left))
    row = run.execute(Quiet())
    assert [point["validation"] for point in row["curve"]] == scores[:4]
    assert row["steps"] == 8
    left = iter(scores)
    assert replace(run, enough=None).execute(Quiet())["steps"] == 12


@pytest.mark.parametrize(("lr", "what"), [(1e30, "loss|sum of weights"), (1e38, "loss|sum of weights")])
def test_a_run_that_diverges_says_so(lr, what):
    with pytest.raises(
        ValueError, match=rf"^the ({what}) is (nan|-?inf) at step \d; lower the learning rate 1e\+3\d\.$"
    ):
        training(lr=lr, clip=1e30, warmup=0.0, validations=2).execute(Quiet())


def test_a_last_step_that_diverges_is_seen(monkeypatch):
    step = TrainingLoop.take_step

    def spoil(self, number):
        loss = step(self, number)
        if number == 5:
            with torch.no_grad():
                self.model.head.weight[0, 0] = math.nan
        return loss

    monkeypatch.setattr(TrainingLoop, "take_step", spoil)
    with pytest.raises(ValueError, match=r"^the sum of weights is nan at step 6; lower the learning rate 0.01\.$"):
        training().execute(Quiet())


def test_connections_cost_a_learned_graph_only():
    lesson = (Lesson(task="parity", train=(3, 12), test=((3, 12),)),)
    learned = training(architecture=LEARNED, lessons=lesson, lr=0.5, warmup=0.0, steps=10)
    free, dear = numbers(learned), numbers(replace(learned, graph_cost=1.0))
    assert free["recurrent_nonzeros"] > 0
    assert dear["recurrent_nonzeros"] == 0
    assert free == numbers(learned)  # its noise too is of the seed
    slstm = replace(LEARNED.blocks[0], mixer=replace(LEARNED.blocks[0].mixer, recurrence="block"))
    dense = training(architecture=replace(LEARNED, blocks=(slstm,)), lessons=lesson)
    assert numbers(dense) == numbers(replace(dense, graph_cost=1.0))


def test_rows_and_modes(monkeypatch):
    """Training rows are new at every step and the run's seed's; scores are on the same rows, in evaluation mode."""
    seen, modes, batch, score, loss = [], [], TokenProblem.batch, TokenProblem.score, TokenProblem.loss

    def spy_batch(self, lesson, split, low, high, *, seed, first, rows, dense):
        seen.append((split, low, high, seed, first, rows, dense))
        return batch(self, lesson, split, low, high, seed=seed, first=first, rows=rows, dense=dense)

    def spy_score(self, model, *rest):
        modes.append(("score", model.training, torch.is_grad_enabled()))
        return score(self, model, *rest)

    def spy_loss(self, model, *rest, **how):
        modes.append(("loss", model.training, torch.is_grad_enabled()))
        return loss(self, model, *rest, **how)

    monkeypatch.setattr(TokenProblem, "batch", spy_batch)
    monkeypatch.setattr(TokenProblem, "score", spy_score)
    monkeypatch.setattr(TokenProblem, "loss", spy_loss)
    lesson = replace(training().lessons[0], dense=True)
    for architecture in (training().architecture, stack((MLSTMConfig(heads=1),), width=8)):
        seen.clear()
        training(seed=7, architecture=architecture, lessons=(lesson,), validation_rows=70).execute(Quiet())
        train = [(("train", 3, 12, 7, 4 * step, 4, True)) for step in range(6)]
        assert [found for found in seen if found[0] == "train"] == train
        validations = [("validation", 12, 20, 0, 0, 64, False), ("validation", 12, 20, 0, 64, 6, False)]
        assert [found for found in seen if found[0] == "validation"] == validations * 3
        tests = [("test", 12, 20, 0, 0, 16, False), ("test", 3, 12, 0, 0, 16, False)]
        assert [found for found in seen if found[0] == "test"] == tests
    assert set(modes) == {("score", False, False), ("loss", True, True)}


def test_several_lessons_take_turns_and_are_all_tested():
    lessons = (
        Lesson(task="parity", train=(3, 9), test=((3, 9),)),
        Lesson(task="recall_4_of_512", train=(64, 64), test=((64, 64), (72, 72))),
    )
    run = training(lessons=lessons, steps=4)
    row = numbers(run)
    assert run.facets() == {"model": "lstm", "task": "parity+recall_4_of_512"}
    assert [test["task"] for test in row["metrics"]["tests"]] == ["parity", "recall_4_of_512", "recall_4_of_512"]
    assert row["flops"] > 0


def test_validation_is_the_mean_over_lessons(monkeypatch):
    lessons = (
        Lesson(task="parity", train=(3, 9), test=((3, 9), (9, 12))),
        Lesson(task="even_pairs", train=(3, 9), test=((3, 9),)),
    )
    asked = []

    def score(self, model, lesson, part, split, rows):
        asked.append((lesson, part, split, rows))
        return {"task": self.tasks[lesson].name, "high": 9, "score": (0.25, 0.75)[lesson]}

    monkeypatch.setattr(TokenProblem, "score", score)
    row = training(lessons=lessons, steps=2, validations=1).execute(Quiet())
    assert row["metrics"]["validation"] == 0.5
    assert asked == [
        (0, 0, "validation", 8),
        (1, 0, "validation", 8),
        *((*x, "test", 16) for x in ((0, 0), (0, 1), (1, 0))),
    ]


def test_real_numbers_train_too():
    lesson = Lesson(task="nearest_neighbours", train=(4, 9), test=((6, 12),))
    run = training(lessons=(lesson,), steps=30, lr=3e-2, validations=2, batch=16)
    first, last = numbers(run)["curve"]
    assert last["loss"] < first["loss"]
    assert isinstance(problem_of(run.lessons), RealProblem)


def test_precision_is_that_which_is_asked_for():
    assert numbers(training(dtype="bfloat16"))["curve"] != numbers(training())["curve"]


def test_facets_have_what_is_varied():
    assert training(varied=(("R", "none"),)).facets() == {"model": "lstm", "task": "parity", "R": "none"}


@pytest.mark.slow
def test_parity_takes_memory_mixing():
    """The claim that all studies stand on, at its smallest: an sLSTM learns parity in a moment, an mLSTM does not."""
    lesson = Lesson(task="parity", train=(3, 40), test=((40, 100),), dense=True)
    how = {"lessons": (lesson,), "steps": 400, "batch": 32, "enough": 0.999, "validations": 8}
    how |= {"validation_rows": 64, "test_rows": 64}
    slstm = training(architecture=stack((SLSTMConfig(heads=1, **FORMAL),), width=32), **how).execute(Quiet())
    mlstm = training(architecture=stack((MLSTMConfig(heads=1),), width=32), **{**how, "steps": slstm["steps"]})
    assert slstm["metrics"]["tests"][0]["score"] >= 0.99
    row = mlstm.execute(Quiet())
    assert row["metrics"]["tests"][0]["score"] < 0.2
