"""Forecasting of one series: networks between the same embedding and the same head, and methods without a network.

`series` has the series and their tasks, `networks` the networks, `runs` the runs of studies, `ett` those on ETT.
Methods without a network are those of `exlstm.forecast`.
"""

from exlstm.study.forecasting.ett import ETTRun
from exlstm.study.forecasting.networks import NETWORKS, build_network
from exlstm.study.forecasting.runs import BASELINES, BaselineRun, NetworkRun
from exlstm.study.forecasting.series import TASKS, SeriesTask, task_of

__all__ = [
    "BASELINES",
    "NETWORKS",
    "TASKS",
    "BaselineRun",
    "ETTRun",
    "NetworkRun",
    "SeriesTask",
    "build_network",
    "task_of",
]
