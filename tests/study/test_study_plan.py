"""Plans: what they say is what the runs cost, and every paper size can be planned."""

from pathlib import Path

import pytest
from small_studies import COUNT, Quiet, count_study, training

from exlstm.study import Lesson
from exlstm.study.contract import find_study, load_study, studies
from exlstm.study.plan import PlannedCost, plan, table, training_cost

FOLDER = Path(__file__).parents[2] / "study"
NESTED = Lesson(task="listops_small", train=(12, 12), test=((12, 12),), both_ways=True)
TEXT = Lesson(task="email/300", train=(16, 16), test=((16, 16),))


@pytest.mark.parametrize("lesson", [TEXT, NESTED], ids=["text", "classes"])
def test_a_plan_is_what_the_run_costs(lesson):
    run = training(lessons=(lesson,))
    count, flops = training_cost(run)
    row = run.execute(Quiet())
    assert count == row["parameters"]
    assert flops >= row["flops"] > 0.9 * flops  # of listops a row may be shorter


SOURCE = '''"""A question?

Expected: yes. Paper: none.
"""

from exlstm.mixers.lstm import LSTMConfig
from exlstm.study import Lesson, Training, stack
from exlstm.study.timing import Timing


def runs(size):
    lesson = Lesson(task="email/300", train=(16, 16), test=((16, 16),))
    models = [stack((LSTMConfig(),), width=width) for width in (8, 16)]
    trainings = [
        Training(model="lstm", architecture=model, lessons=(lesson,), lr=lr, steps=3, batch=2)
        for model in models for lr in (0.1, 0.2)
    ]
    clock = Timing(model="lstm", architecture=models[0], vocabulary=300, batch=2, length=8)
    return [*trainings, clock]


def report(results):
    return []
'''


def test_rates_and_seeds_count_and_what_is_no_training_is_counted_apart():
    study = load_study("costs", SOURCE)
    (cost,), others = plan(study, "small", 5)
    assert others == 5
    each = [training_cost(run) for run in study.planned("small") if hasattr(run, "steps")]
    assert (cost.model, cost.runs) == ("lstm", 2 * (2 + 5))
    assert (cost.smallest, cost.largest) == (each[0][0], each[2][0])
    assert cost.flops == pytest.approx(7 * (each[0][1] + each[2][1]))
    assert plan(count_study(COUNT), "small", 2) == ([], 12)


def test_the_table_has_hours_at_the_rate():
    costs = [PlannedCost(model="a", smallest=10, largest=10, runs=3, flops=3.6e15),
             PlannedCost(model="b", smallest=10, largest=2000, runs=1, flops=7.2e15)]  # fmt: skip
    text = table(costs, 2, tflops=1.0)
    assert "a      10           3     3.60e+15  1.00\n" in text
    assert "b      10 to 2,000  1     7.20e+15  2.00\n" in text
    assert text.endswith("4 trainings, 1.08e+16 FLOPs, 3.0 hours of one device at 1 TFLOP/s; 2 other runs")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "scaling" else pytest.mark.slow) for name in studies(FOLDER)]
)
def test_every_study_can_be_planned_at_the_papers_size(name):
    costs, others = plan(find_study(name, FOLDER), "paper", 3)
    assert costs or others
    assert all(cost.flops > 0 for cost in costs)
