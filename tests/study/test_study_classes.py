"""Classifiers: padding changes nothing, both ways are both ways, and accuracy is counted."""

import pytest
import torch

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.models.summary import flops_per_token, parameters
from exlstm.study import Lesson, stack
from exlstm.study.problems import Classifier, ClassProblem, problem_of
from exlstm.study.problems.models import backwards

CPU = torch.device("cpu")
TINY = stack((MLSTMConfig(heads=2, up_multiple=8), AttentionConfig(heads=2)), width=8)


def problem(**changes):
    return problem_of((Lesson(**{"task": "listops_small", "train": (6, 20), "test": ((6, 12), (13, 24)), **changes}),))


def classifier(task, seed=0):
    torch.manual_seed(seed)
    model = task.build(TINY).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


def test_rows_backwards():
    tokens_BT = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    assert backwards(tokens_BT, torch.tensor([3, 5])).tolist() == [[3, 2, 1, 0, 0], [8, 7, 6, 5, 4]]


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_row_has_its_class_whatever_is_beside_it(both_ways):
    task = problem(both_ways=both_ways)
    assert isinstance(task, ClassProblem)
    model = classifier(task)
    assert isinstance(model, Classifier)
    tokens_BT, lengths_B, _ = task.batch("test", 6, 24, seed=0, first=0, rows=6)
    with torch.no_grad():
        logits_BC = model(tokens_BT, lengths_B)
        assert logits_BC.shape == (6, 10)
        for row, length in enumerate(lengths_B.tolist()):
            alone_1C = model(tokens_BT[row : row + 1, :length], lengths_B[row : row + 1])
            torch.testing.assert_close(alone_1C[0], logits_BC[row], rtol=1e-4, atol=1e-5)


def test_one_way_and_both_ways_differ_by_a_stack_that_reads_backwards():
    one, two = classifier(problem()), classifier(problem(both_ways=True))
    assert len(two.mixers) == 2 * len(one.mixers)
    assert parameters(two) - parameters(two.head) == 2 * (parameters(one) - parameters(one.head))
    assert flops_per_token(two, "train", 20) > 1.9 * flops_per_token(one, "train", 20)
    tokens_BT, lengths_B, _ = problem().batch("test", 6, 24, seed=0, first=0, rows=6)
    two.stacks[1].load_state_dict(two.stacks[0].state_dict())
    with torch.no_grad():
        forward_BC = two(tokens_BT, lengths_B)
        torch.testing.assert_close(two(backwards(tokens_BT, lengths_B), lengths_B), forward_BC)


def test_the_loss_and_the_score_are_those_of_the_rows():
    task = problem()
    model = classifier(task)
    loss, tokens = task.loss(model, 2, seed=7, rows=5, device=CPU)
    batch = task.batch("train", 6, 20, seed=7, first=10, rows=5)
    logits_BC = model(batch.inputs_BT, batch.lengths_B)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits_BC, batch.classes_B).item())
    assert tokens == batch.inputs_BT.numel()
    with torch.no_grad():
        found = task.score(model, 0, 1, "test", 150)
        rows = task.batch("test", 13, 24, seed=0, first=0, rows=150)
        right = (model(rows.inputs_BT, rows.lengths_B).argmax(-1) == rows.classes_B).sum().item()
    assert found["accuracy"] == right / 150
    assert found["score"] == pytest.approx((right / 150 - 0.1) / 0.9)
    assert (found["low"], found["high"], found["asked"]) == (13, 24, 150)
    assert found["at_chance"] == (right / 150 <= 0.1 + 3 * (0.09 / 150) ** 0.5)


def test_only_rows_with_a_class_are_read_both_ways():
    with pytest.raises(ValueError, match=r"^parity is read from its beginning alone; use both_ways=False\.$"):
        Lesson(task="parity", train=(3, 9), test=((3, 9),), both_ways=True)
    lesson = Lesson(task="digits", train=(64, 64), test=((64, 64),))
    with pytest.raises(ValueError, match="digits cannot be learned beside another task"):
        problem_of((lesson, lesson))
