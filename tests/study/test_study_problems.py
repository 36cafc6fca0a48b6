"""What is learned and how it is scored: every number against a slow, plain computation of it."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from exlstm.data.packing import IGNORE
from exlstm.data.tasks import TASKS, nearest_neighbours, task_batch
from exlstm.data.tasks.scores import LengthScore
from exlstm.mixers.attention import AttentionConfig
from exlstm.study import Lesson, stack
from exlstm.study.problems import RealProblem, Regressor, TokenProblem, problem_of, ranges
from exlstm.study.problems.tokens import _token_scores

CPU = torch.device("cpu")
PARITY = Lesson(task="parity", train=(3, 12), test=((12, 20), (3, 12)))
REVERSE = Lesson(task="reverse_string", train=(5, 13), test=((7, 21),))
CYCLE = Lesson(task="cycle_navigation", train=(4, 9), test=((5, 9),), dense=True)
NEAREST = Lesson(task="nearest_neighbours", train=(4, 9), test=((6, 12),))
TINY = stack((AttentionConfig(heads=1),), width=8)


def model_of(problem):
    torch.manual_seed(3)
    model = problem.build(TINY)
    with torch.no_grad():
        for weight in model.parameters():  # small weights would answer the same everywhere
            weight += 0.3 * torch.randn_like(weight)
    return model.eval()


def plain_rows(lesson, split, first, count, low, high, *, seed, dense=False):
    """(inputs, targets) of single rows without padding, tokens of the task itself."""
    for index in range(first, first + count):
        batch = task_batch(TASKS[lesson.task], seed=seed, split=split, first=index, size=1, min_length=low,
                           max_length=high, dense=dense)  # fmt: skip
        yield batch.inputs_BT[0].tolist(), batch.targets_BT[0].tolist()


def moved(tokens, offset):
    return [token + offset if token > 0 else token for token in tokens]


# ---------------------------------------------------------------------------------------------------------- lessons


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"task": "party", "test": ((3, 9),)}, r"there is no task 'party'; use one of .*parity.*\."),
        ({"task": "parity", "test": ()}, r"the lesson parity is tested on no lengths; .*\."),
    ],
)  # fmt: skip
def test_a_wrong_lesson_is_refused(what, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        Lesson(train=(3, 9), **what)


def test_lessons_that_cannot_be_together_are_refused():
    with pytest.raises(
        ValueError, match=r"^nearest_neighbours cannot be learned beside another task; give it alone\.$"
    ):
        problem_of((PARITY, NEAREST))
    with pytest.raises(ValueError, match=r"^there are no lessons; give at least one\.$"):
        problem_of(())
    assert isinstance(problem_of((NEAREST,)), RealProblem)
    assert isinstance(problem_of((PARITY, CYCLE)), TokenProblem)


def test_ranges_are_numbered():
    assert list(ranges(PARITY)) == [(0, 12, 20), (1, 3, 12)]


# ----------------------------------------------------------------------------------------------------------- tokens


def test_tasks_keep_apart_and_padding_stays():
    problem = TokenProblem((PARITY, REVERSE, CYCLE))
    assert problem.vocab_size == 1 + sum(
        TASKS[x].vocab_size - 1 for x in ("parity", "reverse_string", "cycle_navigation")
    )
    assert problem.build(TINY).config.vocab_size == problem.vocab_size
    seen = []
    for number, lesson in enumerate(problem.lessons):
        batch = problem.batch(number, "train", *lesson.train, seed=5, first=7, rows=40, dense=lesson.dense)
        plain = task_batch(TASKS[lesson.task], seed=5, split="train", first=7, size=40, min_length=lesson.train[0],
                           max_length=lesson.train[1], dense=lesson.dense)  # fmt: skip
        shift = sum(TASKS[x.task].vocab_size - 1 for x in problem.lessons[:number])
        assert batch.inputs_BT.tolist() == [moved(row, shift) for row in plain.inputs_BT.tolist()]
        assert batch.targets_BT.tolist() == [moved(row, shift) for row in plain.targets_BT.tolist()]
        assert torch.equal((batch.targets_BT == IGNORE), (plain.targets_BT == IGNORE))
        seen.append({*batch.inputs_BT.flatten().tolist(), *batch.targets_BT.flatten().tolist()} - {0, IGNORE})
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert max(max(tokens) for tokens in seen) == problem.vocab_size - 1
    assert min(seen[0]) == 1


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_loss_is_the_cross_entropy_of_what_is_asked(step):
    problem = TokenProblem((PARITY, REVERSE, CYCLE))
    model = model_of(problem)
    loss, tokens = problem.loss(model, step, seed=4, rows=6, device=CPU)
    lesson, turn = problem.lessons[step % 3], step // 3
    total, asked, longest = 0.0, 0, 0
    rows = list(plain_rows(lesson, "train", turn * 6, 6, *lesson.train, seed=4, dense=lesson.dense))
    for inputs, targets in rows:
        logits_BTC, _ = model(torch.tensor([moved(inputs, problem.offsets[step % 3])]))
        logs = torch.log_softmax(logits_BTC[0].detach().double(), -1)
        longest = max(longest, len(inputs))
        for at, target in enumerate(moved(targets, problem.offsets[step % 3])):
            if target != IGNORE:
                total, asked = total - float(logs[at, target]), asked + 1
    assert float(loss.detach()) == pytest.approx(total / asked, rel=1e-5)
    assert tokens == 6 * longest


def test_answers_stand_only_where_they_are_asked_for():
    problem = TokenProblem((PARITY, REVERSE))
    model = model_of(problem)
    batch = problem.batch(1, "test", 7, 21, seed=0, first=0, rows=12, dense=False)
    answers_BT = problem.answers(model, batch)
    assert torch.equal(answers_BT == IGNORE, batch.targets_BT == IGNORE)
    logits_BTC, _ = model(batch.inputs_BT)
    asked_BT = batch.targets_BT != IGNORE
    assert torch.equal(answers_BT[asked_BT], logits_BTC.argmax(-1)[asked_BT])


@pytest.mark.parametrize(("number", "part"), [(0, 0), (0, 1), (1, 0)])
@torch.no_grad()
def test_scores_are_those_of_rows_one_by_one(number, part):
    problem = TokenProblem((PARITY, REVERSE))
    model, lesson, rows = model_of(problem), problem.lessons[number], 150  # not a multiple of the batch of scoring
    low, high = lesson.test[part]
    found = problem.score(model, number, part, "test", rows)
    right, asked, whole = 0, 0, 0
    answers, by_length = Counter(), {}
    for inputs, targets in plain_rows(lesson, "test", 0, rows, low, high, seed=0):
        logits_BTC, _ = model(torch.tensor([moved(inputs, problem.offsets[number])]))
        targets = moved(targets, problem.offsets[number])
        hits = [int(logits_BTC[0, at].argmax()) == target for at, target in enumerate(targets) if target != IGNORE]
        answers.update(target for target in targets if target != IGNORE)
        right, asked, whole = right + sum(hits), asked + len(hits), whole + all(hits)
        by_length.setdefault(len(inputs) + 1, []).extend(hits)
    chance = TASKS[lesson.task].chance
    guess = answers.most_common(1)[0][1] / asked
    assert found["asked"] == asked
    assert found["accuracy"] == pytest.approx(right / asked)
    assert found["score"] == pytest.approx((right / asked - chance) / (1 - chance))
    assert found["rows_right"] == pytest.approx(whole / rows)
    assert found["best_constant"] == pytest.approx(guess)
    assert (found["task"], found["low"], found["high"], found["chance"]) == (lesson.task, low, high, chance)
    bound = max(guess, chance)
    assert found["at_chance"] == (right / asked <= bound + 3 * math.sqrt(bound * (1 - bound) / asked))
    covered = [length for low, high, _ in found["by_length"] for length in range(low, high + 1)]
    assert len(set(covered)) == len(covered)
    assert set(by_length) <= set(covered)
    assert {*covered} <= {*range(low, high + 1)}
    for first, last, accuracy in found["by_length"]:
        hits = [hit for length in range(first, last + 1) for hit in by_length.get(length, [])]
        assert accuracy == pytest.approx(sum(hits) / len(hits))


@pytest.mark.parametrize(
    ("kind", "score", "at_chance"), [("right", 1.0, False), ("wrong", -1.0, True), ("one", 0.0, True)]
)
def test_scores_of_an_oracle_a_liar_and_a_guesser(monkeypatch, kind, score, at_chance):
    problem = TokenProblem((PARITY,))

    def answers(model, batch):
        known = {"right": batch.targets_BT, "wrong": 3 - batch.targets_BT, "one": torch.ones_like(batch.targets_BT)}
        return known[kind].where(batch.targets_BT != IGNORE, IGNORE)

    monkeypatch.setattr(problem, "answers", answers)
    found = problem.score(model_of(problem), 0, 0, "test", 400)
    assert found["score"] == pytest.approx(score, abs=0.1 if kind == "one" else 1e-12)
    assert found["at_chance"] is at_chance
    assert found["rows_right"] == pytest.approx((found["score"] + 1) / 2)


@pytest.mark.parametrize(("errors", "at_chance"), [(2.9, True), (3.1, False)])
def test_luck_ends_three_standard_errors_above_the_best_constant(errors, at_chance):
    asked, floor = 10_000, 0.6
    right = round(asked * (floor + errors * math.sqrt(floor * (1 - floor) / asked)))
    for chance, guess in ((0.6, 0.2), (0.2, 0.6)):
        found = _token_scores([LengthScore(3, 9, asked, right, 100, 0)], chance, guess)
        assert found["at_chance"] is at_chance


def test_splits_have_no_row_in_common():
    problem = TokenProblem((Lesson(task="parity", train=(40, 40), test=((40, 40),)),))
    found = []
    for split in ("train", "validation", "test"):
        batch = problem.batch(0, split, 40, 40, seed=0, first=0, rows=64, dense=False)
        found += [tuple(row) for row in batch.inputs_BT.tolist()]
    assert len(set(found)) == len(found) == 3 * 64


# ----------------------------------------------------------------------------------------------------- real numbers


class Stand(nn.Module):
    """Gives the answers of a function of one row's inputs."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(1)), answer

    def forward(self, x_BTD):
        return torch.tensor([self.answer(row) for row in x_BTD.tolist()])


def nearest_so_far(row):
    """The value that came with the vector at the smallest angle to the first, step by step."""
    answers, best, value = [0.0], -2.0, 0.0
    for x, y, own in row[1:]:
        like = x * row[0][0] + y * row[0][1]
        if like > best and (x, y) != (0.0, 0.0):
            best, value = like, own
        answers.append(value)
    return answers


def test_real_scores_of_an_oracle_and_of_the_mean():
    problem = RealProblem((NEAREST,))
    found = problem.score(Stand(nearest_so_far), 0, 0, "test", 100)
    assert found["score"] == pytest.approx(1, abs=1e-4)
    assert found["squared_error"] == pytest.approx(0, abs=1e-5)
    assert not found["at_chance"]
    targets = []
    for index in range(100):
        row = nearest_neighbours(seed=0, split="test", first=index, size=1, min_length=6, max_length=12)
        targets += row.targets_BT[0, 1:].tolist()
    mean = sum(targets) / len(targets)
    assert found["asked"] == len(targets)
    found = problem.score(Stand(lambda row: [mean] * len(row)), 0, 0, "test", 100)
    assert found["score"] == pytest.approx(0, abs=1e-5)
    assert found["squared_error"] == pytest.approx(sum((x - mean) ** 2 for x in targets) / len(targets), rel=1e-4)
    assert found["at_chance"]
    assert problem.score(Stand(lambda row: [0.0] * len(row)), 0, 0, "test", 100)["score"] < -1


def test_real_loss_is_the_mean_square_over_all_steps_but_the_first():
    problem = RealProblem((NEAREST,))
    loss, steps = problem.loss(Stand(lambda row: [0.25] * len(row)), 2, seed=9, rows=5, device=CPU)
    targets, longest = [], 0
    for index in range(10, 15):
        row = nearest_neighbours(seed=9, split="train", first=index, size=1, min_length=4, max_length=9)
        targets += row.targets_BT[0, 1:].tolist()
        longest = max(longest, row.targets_BT.shape[1])
    assert float(loss) == pytest.approx(sum((x - 0.25) ** 2 for x in targets) / len(targets), rel=1e-5)
    assert steps == 5 * longest


def test_a_regressor_is_the_blocks_between_two_linear_maps():
    torch.manual_seed(0)
    model = Regressor(stack((AttentionConfig(heads=1),) * 2, width=8), 3)
    assert len(model.mixers) == 2
    assert model.embed.weight.abs().sum() > 0
    x_BTD = torch.randn(2, 5, 3)
    y_BT = model(x_BTD)
    assert y_BT.shape == (2, 5)
    # causal, rows independent
    other_BTD = x_BTD.clone()
    other_BTD[0, 3:] += 1
    changed = (model(other_BTD) - y_BT).abs() > 1e-6
    assert changed.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    before = x_BTD @ model.embed.weight.T + model.embed.bias
    for block in model.blocks:
        before, _ = block(before)
    assert torch.allclose(y_BT, (model.norm(before) @ model.head.weight.T + model.head.bias)[..., 0], atol=1e-6)
