"""The study: questions of the paper as short files (study/*.py), and the machine that answers them.

What study files use is here; see `exlstm.study.contract` for what such a file is.
"""

from exlstm.study import figures
from exlstm.study.aggregate import Cell, Results
from exlstm.study.models import (
    FORMAL,
    body_parameters,
    builders,
    compared_models,
    stack,
    with_parameters,
    with_state_bytes,
    xlstm,
)
from exlstm.study.problems import Lesson
from exlstm.study.report_items import Claim, Picture, ReportTable
from exlstm.study.training import QUICK, Training

__all__ = [
    "FORMAL",
    "QUICK",
    "Cell",
    "Claim",
    "Lesson",
    "Picture",
    "ReportTable",
    "Results",
    "Training",
    "body_parameters",
    "builders",
    "compared_models",
    "figures",
    "stack",
    "with_parameters",
    "with_state_bytes",
    "xlstm",
]
