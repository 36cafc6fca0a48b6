"""Studies: questions of the paper as short files (study/*.py), run and reported by this package.

The names here are for study files; `exlstm.study.contract` says how such a file is written.
"""

from exlstm.study import figures
from exlstm.study.aggregate import Cell, Results
from exlstm.study.models import (
    FORMAL,
    body_parameters,
    builders,
    compared_models,
    narrow_rivals,
    rival_names,
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
    "narrow_rivals",
    "rival_names",
    "stack",
    "with_parameters",
    "with_state_bytes",
    "xlstm",
]
