"""One step of an LSTM layer on a CPU, with gradients."""

from exlstm.ops.layer.numba.step import StepKernels, one_step
from exlstm.ops.lstm.numba.one_step import step_backward, step_forward
from exlstm.ops.lstm.numba.scan import SAVED

step = one_step(StepKernels("lstm", step_forward, step_backward, SAVED))
