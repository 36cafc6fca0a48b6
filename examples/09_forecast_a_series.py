"""One forecaster learns all columns of a table, and draws a fan chart of what follows each.

python examples/09_forecast_a_series.py [table.csv picture.png]
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from exlstm.data.series import SeriesTable, read_table
from exlstm.models.forecaster import Forecaster, forecaster_from_pattern

SEASON, CONTEXT, HORIZON, STEPS = 24, 96, 24, 60


def made_table() -> SeriesTable:
    """Two columns of hours with a day in them: one in noise, one that grows, with missing values."""
    random, t = np.random.default_rng(0), np.arange(480)
    load = 5 + np.sin(2 * np.pi * t / 24) + 0.2 * random.standard_normal(480)
    heat = 0.01 * t + np.cos(2 * np.pi * t / 24) ** 3 + 0.1 * random.standard_normal(480)
    heat[::50] = np.nan
    return SeriesTable(names=("load", "heat"), values_TC=np.stack([load, heat], axis=1))


table = read_table(sys.argv[1]) if len(sys.argv) > 1 else made_table()
series_BT = torch.tensor(table.values_TC.T)  # a column is a row of the batch; NaN is a missing point
known_BT, future_BP = series_BT[:, :-HORIZON], series_BT[:, -HORIZON:]

torch.manual_seed(0)
model = Forecaster(forecaster_from_pattern("ms", width=32, heads=2, patch=8, season=SEASON))
windows_NE = known_BT.unfold(1, CONTEXT + HORIZON, 1).flatten(0, 1)  # of all columns
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(STEPS):
    optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
    model.loss(windows_NE[torch.randint(len(windows_NE), (32,))], CONTEXT).backward()
    optimizer.step()
    optimizer.zero_grad()

with torch.no_grad():
    quantiles_BPQ = model.eval()(known_BT[:, -CONTEXT:], HORIZON)
picture, figure = io.BytesIO(), Figure(figsize=(8, 2.5 * len(table.names)), layout="constrained")
for row, axes in enumerate(figure.subplots(len(table.names), squeeze=False)[:, 0]):
    past_T, future_P, quantiles_PQ = known_BT[row], future_BP[row], quantiles_BPQ[row]
    error, naive = (float((x - future_P).abs().nanmean()) for x in (quantiles_PQ[:, 4], past_T[-HORIZON:]))
    print(f"{table.names[row]}: error {error:.3f}, that of the season before {naive:.3f}")
    axes.plot(range(-CONTEXT, 0), past_T[-CONTEXT:], color="grey", label=table.names[row])
    axes.plot(future_P, color="black", lw=1, label="what came")
    for low in range(4):  # a band for each pair of quantiles
        axes.fill_between(range(HORIZON), quantiles_PQ[:, low], quantiles_PQ[:, 8 - low], alpha=0.2, color="C0", lw=0)
    axes.legend(loc="upper left")
figure.savefig(picture)
if len(sys.argv) > 2:
    Path(sys.argv[2]).write_bytes(picture.getvalue())
