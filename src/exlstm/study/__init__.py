"""The study: questions of the paper as short files (study/*.py), and the machine that answers them.

What study files use is here; see `exlstm.study.contract` for what such a file is.
"""

from exlstm.study import figures
from exlstm.study.cells import Cell, Results
from exlstm.study.models import (
    FORMAL,
    body_parameters,
    contestants,
    makers,
    stack,
    with_parameters,
    with_state_bytes,
    xlstm,
)
from exlstm.study.parts import Claim, Picture, Table
from exlstm.study.problems import Lesson
from exlstm.study.training import QUICK, Training

__all__ = [
    "FORMAL",
    "QUICK",
    "Cell",
    "Claim",
    "Lesson",
    "Picture",
    "Results",
    "Table",
    "Training",
    "body_parameters",
    "contestants",
    "figures",
    "makers",
    "stack",
    "with_parameters",
    "with_state_bytes",
    "xlstm",
]
