"""From rows to what tables say: which rate was chosen, which seeds count, and what is missing."""

from dataclasses import replace

import pytest
from small_studies import COUNT, count_study, row_of, rows_of

from exlstm.study import Cell, Results
from exlstm.study.aggregate import chosen, reported
from exlstm.study.contract import run_id, with_seed

STUDY = count_study()
SINGLE = count_study(COUNT.replace("for lr in (0.1, 0.2)]", "for lr in (0.1,)]"))
LOW, HIGH = STUDY.planned("small")[:2]  # one setting: two rates of the model "one"


def cell_of(pairs, *, seeds=5, study=STUDY):
    return Results(study, "small", rows_of(study, pairs), seeds).cell(model="one")


def seeds_of(run, numbers, **how):
    return [(with_seed(run, number), how) for number in numbers]


TRIED = [(LOW, {"validation": 0.2}), (HIGH, {"validation": 0.7})]


def test_the_best_rate_on_validation_is_chosen():
    group = [LOW, HIGH]
    assert chosen(group, rows_of(STUDY, TRIED)) == HIGH
    # tests have no say, and seed 0 alone decides
    rows = [(LOW, {"validation": 0.9, "score": 0.0}), (HIGH, {"validation": 0.7, "score": 1.0})]
    assert chosen(group, rows_of(STUDY, rows + seeds_of(HIGH, [1, 2], validation=1.0))) == LOW
    assert chosen(group, rows_of(STUDY, [(LOW, {"validation": -3.0}), (HIGH, {"error": "x"})])) == LOW
    assert chosen(group, rows_of(STUDY, TRIED[:1])) is None  # not before all have ended
    assert chosen(group, rows_of(STUDY, [(LOW, {"error": "x"}), (HIGH, {"error": "x"})])) is None
    assert chosen(group, {}) is None
    assert chosen([LOW], {}) == LOW


def test_seed_0_is_reported_only_where_nothing_was_chosen_on_it():
    assert [run.seed for run in reported(LOW, 1, 3)] == [0, 1, 2]
    assert [run.seed for run in reported(LOW, 2, 3)] == [1, 2, 3]
    assert [run.lr for run in reported(HIGH, 2, 3)] == [HIGH.lr] * 3
    assert [run.seed for run in reported(replace(LOW, seed=10), 2, 2)] == [11, 12]


def test_a_cell_has_the_seeds_at_the_chosen_rate():
    scores = {1: 0.2, 2: 0.995, 3: 0.99, 4: 1.0, 5: 0.3}
    rows = [(with_seed(HIGH, seed), {"score": score}) for seed, score in scores.items()]
    cell = cell_of([*TRIED, *rows, *seeds_of(LOW, [1, 2], score=0.0), *seeds_of(HIGH, [6], score=0.0)])
    assert (cell.run, cell.tried, cell.planned, cell.missing) == (HIGH, 2, 5, 0)
    assert cell.facets == {"model": "one", "task": "count"}
    assert cell.scores() == list(scores.values())
    assert cell.median() == 0.99
    assert (cell.solved(), cell.solved(0.995), cell.solved(0.1)) == (3, 2, 5)
    assert cell.median_of("parameters") == 10
    assert cell.text() == "0.99 (3/5)"
    assert cell.status() == "learned"


def test_a_single_rate_counts_seed_0_too():
    run = SINGLE.planned("small")[0]
    cell = cell_of(seeds_of(run, [0, 1, 2], score=1.0), seeds=3, study=SINGLE)
    assert (len(cell.rows), cell.missing, cell.tried) == (3, 0, 1)


@pytest.mark.parametrize(
    ("pairs", "status", "text", "missing", "failed"),
    [
        ([], "not run", "not run", 5, 0),
        (TRIED[:1], "not run", "not run", 5, 0),
        (TRIED, "not run", "not run", 5, 0),
        ([TRIED[0], (HIGH, {"error": "x"})], "not run", "not run", 5, 0),
        ([(LOW, {"error": "x"})], "not run", "not run", 5, 0),  # the other rate may still do
        ([(LOW, {"error": "x"}), (HIGH, {"error": "x"})], "failed", "failed", 0, 2),
        (TRIED + seeds_of(HIGH, [1, 2, 3, 4, 5], error="x"), "failed", "failed", 0, 5),
        (TRIED + seeds_of(HIGH, [1], error="x"), "failed", "failed", 4, 1),
        (TRIED + seeds_of(HIGH, [1], score=0.5), "learned", "0.50 (0/1, 4 not run)", 4, 0),
        (
            TRIED + seeds_of(HIGH, [1, 2], score=1.0) + seeds_of(HIGH, [3], error="x"),
            "learned",
            "1.00 (2/2, 1 failed, 2 not run)",
            2,
            1,
        ),
        (TRIED + seeds_of(HIGH, range(1, 6), score=0.0, at_chance=True), "at chance", "0.00 (0/5, at chance)", 0, 0),
        (
            TRIED + seeds_of(HIGH, [1, 2, 3], score=0.0, at_chance=True) + seeds_of(HIGH, [4, 5], score=1.0),
            "at chance",
            "0.00 (2/5, at chance)",
            0,
            0,
        ),
        (
            TRIED + seeds_of(HIGH, [1, 2], score=0.0, at_chance=True) + seeds_of(HIGH, [3, 4], score=1.0),
            "learned",
            "0.50 (2/4, 1 not run)",
            1,
            0,
        ),
    ],
)
def test_not_run_failed_at_chance_and_learned_are_told_apart(pairs, status, text, missing, failed):
    cell = cell_of(pairs)
    assert (cell.status(), cell.text(), cell.missing, len(cell.failed)) == (status, text, missing, failed)
    assert cell.open == (missing > 0 or failed > 0)
    assert cell.median() is None or status in ("learned", "at chance")


def test_more_rates_than_seeds_may_fail():
    study = count_study(COUNT.replace("for lr in (0.1, 0.2)]", "for lr in (0.1, 0.2, 0.3)]"))
    rows = [(run, {"error": "x"}) for run in study.planned("small")[:3]]
    cell = Results(study, "small", rows_of(study, rows), 1).cell(model="one")
    assert (cell.missing, cell.text()) == (0, "failed")


def test_other_numbers_and_other_tests():
    row = row_of(STUDY, with_seed(HIGH, 1))
    row["metrics"]["tests"].append({"score": 0.25, "accuracy": 0.75, "at_chance": True})
    rows = {**rows_of(STUDY, TRIED), row["id"]: row}
    cell = Results(STUDY, "small", rows, 1).cell(model="one")
    assert (cell.median(1), cell.median(1, "accuracy"), cell.status(0), cell.status(1)) == (
        0.25,
        0.75,
        "learned",
        "at chance",
    )
    assert cell.text(1) == "0.25 (0/1, at chance)"
    assert cell.text(1, least=0.2) == "0.25 (1/1, at chance)"
    assert cell.tests(1) == [row["metrics"]["tests"][1]]


def test_results_know_their_settings():
    results = Results(STUDY, "small", rows_of(STUDY, TRIED), 5)
    assert [cell.facets["model"] for cell in results.cells()] == ["one", "two", "bad"]
    assert [cell.facets["model"] for cell in results.cells(lambda facets: facets["model"] != "two")] == ["one", "bad"]
    assert results.values("model") == ["one", "two", "bad"]
    assert results.values("width") == []
    assert isinstance(results.cell(model="two", task="count"), Cell)
    with pytest.raises(AssertionError, match=r"^0 settings have \{'model': 'ten'\}"):
        results.cell(model="ten")
    with pytest.raises(AssertionError, match=r"^3 settings have \{'task': 'count'\}"):
        results.cell(task="count")
    with pytest.raises(AssertionError, match="0 settings have"):
        results.cell(width="3")


def test_costs_are_medians_of_models_that_ran():
    rows = rows_of(STUDY, TRIED + seeds_of(HIGH, range(1, 4)))
    for number, row in enumerate(rows.values()):
        row["parameters"], row["seconds"] = 1000 + number, 10.0
    results = Results(STUDY, "small", rows, 3)
    assert results.costs().rows == [("one", "1,003", "20", "1,000", "10")]
    assert results.costs(task="other").rows == []
    assert results.costs("task", model="one").rows == [("count", "1,003", "20", "1,000", "10")]
    assert results.costs("task", model="one").title == "What a run costs, model one"
    assert results.costs("task", model="two").rows == []


def test_rows_of_other_runs_are_nobodys():
    stale = row_of(STUDY, replace(HIGH, lr=7.0))
    cell = Results(STUDY, "small", {stale["id"]: stale}, 5).cell(model="one")
    assert cell.status() == "not run"
    assert run_id(HIGH) != stale["id"]


def test_a_number_of_a_test_has_its_range_and_says_what_is_missing():
    study = count_study()
    rows = {run_id(run): row_of(study, run, validation=run.lr) for run in study.planned("small")}
    cell = Results(study, "small", rows, 2).cells()[0]
    assert cell.spread("score") == "not run"
    best = cell.run
    rows |= {run_id(with_seed(best, seed)): row_of(study, with_seed(best, seed), score=seed / 4) for seed in (1, 3)}
    cell = Results(study, "small", rows, 2).cells()[0]
    assert cell.spread("score") == "0.250 (0.250 to 0.250, 1 of 2 seeds)"
    cell = Results(study, "small", rows, 1).cells()[0]
    assert cell.spread("score", form=".1f") == "0.2 (0.2 to 0.2, 1 seed)"
    rows[run_id(with_seed(best, 2))] = row_of(study, with_seed(best, 2), score=0.75)
    assert Results(study, "small", rows, 2).cells()[0].spread("score") == "0.500 (0.250 to 0.750, 2 seeds)"
    assert len(Results(study, "small", rows, 2).ended()) == 6 + 2  # seed 3 is not asked for
