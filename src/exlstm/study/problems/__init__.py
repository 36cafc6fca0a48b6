"""Problems of the studies: tasks of tokens, the paper's search in real numbers, rows with a class, and text."""

from exlstm.data.long_range import CLASS_TASKS
from exlstm.study.problems.classes import ClassProblem
from exlstm.study.problems.contract import REAL, Lesson, Problem, ranges
from exlstm.study.problems.models import Classifier, Model, Regressor
from exlstm.study.problems.real import RealProblem
from exlstm.study.problems.text import TextProblem
from exlstm.study.problems.tokens import TokenProblem
from exlstm.study.texts import is_text

__all__ = [
    "ClassProblem",
    "Classifier",
    "Lesson",
    "Model",
    "Problem",
    "RealProblem",
    "Regressor",
    "TextProblem",
    "TokenProblem",
    "problem_of",
    "ranges",
]


def problem_of(lessons: tuple[Lesson, ...]) -> Problem:
    """The problem of these lessons. ValueError if they cannot be learned together."""
    alone = [lesson.task for lesson in lessons if lesson.task in {REAL, *CLASS_TASKS} or is_text(lesson.task)]
    if not alone:
        return TokenProblem(lessons)
    if len(lessons) != 1:
        raise ValueError(f"{alone[0]} cannot be learned beside another task; give it alone.")
    if alone[0] in CLASS_TASKS:
        return ClassProblem(lessons)
    return RealProblem(lessons) if alone[0] == REAL else TextProblem(lessons)
