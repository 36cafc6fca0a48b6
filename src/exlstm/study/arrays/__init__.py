"""Small nets on arrays: rows of real numbers with a class each, or with numbers to say at every step.

`rows` has the rows, `bodies` and `pictures` the compared nets, `nets` their sizes at equal parameters, `classes` and
`systems` the tasks, `runs` the run of studies.
"""

from exlstm.study.arrays.nets import NETS, ArrayNet, NetShape, NetSize, net_of, size_of
from exlstm.study.arrays.rows import ArrayRows
from exlstm.study.arrays.runs import QUICK_ARRAYS, ArrayRun, array_task
from exlstm.study.arrays.seeds import decided, deviation_of, mean_of, seeds_text

__all__ = [
    "NETS",
    "QUICK_ARRAYS",
    "ArrayNet",
    "ArrayRows",
    "ArrayRun",
    "NetShape",
    "NetSize",
    "array_task",
    "decided",
    "deviation_of",
    "mean_of",
    "net_of",
    "seeds_text",
    "size_of",
]
