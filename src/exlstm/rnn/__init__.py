"""Floor 4: xLSTM with the interface of torch.nn.LSTM. `interface` has the call, a file per cell its layer."""

from exlstm.rnn.lstm import LSTM, LSTMCell
from exlstm.rnn.mlstm import MLSTM, MLSTMCell
from exlstm.rnn.slstm import SLSTM, SLSTMCell
from exlstm.rnn.swap import replace_lstm
from exlstm.rnn.warm_up import warm_up

__all__ = ["LSTM", "MLSTM", "SLSTM", "LSTMCell", "MLSTMCell", "SLSTMCell", "replace_lstm", "warm_up"]
