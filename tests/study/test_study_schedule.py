"""Which run comes when: a setting's seeds follow its own rates, and wait for nobody else's."""

from small_studies import count_study

from exlstm.study.aggregate import reported
from exlstm.study.contract import run_id, with_seed
from exlstm.study.schedule import Schedule

PLANNED = count_study().planned("small")
ONE, TWO = [run_id(run) for run in PLANNED[:2]], [run_id(run) for run in PLANNED[2:4]]


def row(run, validation=0.0, status="done"):
    return {"id": run_id(run), "status": status, "metrics": {"validation": validation, "tests": []}}


def seeds_of(run):
    return [run_id(each) for each in reported(run, 2, 2)]


def test_seeds_begin_while_the_rates_of_others_are_under_way():
    rows = {}
    schedule = Schedule(PLANNED[:4], rows, 2)
    asked = iter(schedule)
    assert [next(asked) for _ in range(4)] == [ONE[0], TWO[0], ONE[1], TWO[1]]
    assert schedule.total == 8
    assert next(asked) is None  # nothing, as long as none of them has ended
    for run, validation in zip(PLANNED[:2], (0.9, 0.1), strict=True):
        rows[run_id(run)] = row(run, validation)
        schedule.ended(run_id(run))
    assert [next(asked) for _ in range(3)] == [*seeds_of(PLANNED[0]), None]
    for run, validation in zip(PLANNED[2:4], (0.1, 0.9), strict=True):
        rows[run_id(run)] = row(run, validation)
        schedule.ended(run_id(run))
    assert list(asked) == seeds_of(PLANNED[3])
    assert schedule.total == len(schedule.runs) == 8


def test_a_rate_that_failed_is_tried_again_before_one_is_chosen():
    rows = {ONE[0]: row(PLANNED[0], 0.1), ONE[1]: row(PLANNED[1], status="failed")}
    schedule = Schedule(PLANNED[:2], rows, 2)
    asked = iter(schedule)
    assert [next(asked), next(asked)] == [ONE[1], None]
    rows[ONE[1]] = row(PLANNED[1], 0.9)
    schedule.ended(ONE[1])
    assert list(asked) == seeds_of(PLANNED[1])


def test_where_all_rates_fail_nothing_follows():
    rows = {}
    schedule = Schedule(PLANNED[:2], rows, 2)
    asked = iter(schedule)
    for name, run in zip((next(asked), next(asked)), PLANNED[:2], strict=True):
        rows[name] = row(run, status="failed")
        schedule.ended(name)
    assert list(asked) == []
    assert [run_id(run) for run in schedule.wanted()] == ONE


def test_what_is_done_is_left_out():
    rows = {run_id(run): row(run, 0.5) for run in PLANNED[:2]}
    rows[run_id(with_seed(PLANNED[0], 1))] = row(with_seed(PLANNED[0], 1))
    schedule = Schedule(PLANNED[:2], rows, 2)
    assert list(schedule) == [run_id(with_seed(PLANNED[0], 2))]
    assert schedule.total == 1
    assert len(schedule.wanted()) == 4
