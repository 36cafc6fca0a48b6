"""Floor 3: one file per sequence mixer. The names in MIXERS are for saved configs; code imports the classes."""

from exlstm.mixers.assoc_lstm import AssocLSTMConfig
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.elman import ElmanConfig
from exlstm.mixers.gru import GRUConfig
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.mixers.mingru import MinGRUConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.mult_lstm import MultLSTMConfig
from exlstm.mixers.slstm import SLSTMConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "mlstm": MLSTMConfig,
    "mlstm_large": MLSTMLargeConfig,
    "slstm": SLSTMConfig,
    "attention": AttentionConfig,
    "lstm": LSTMConfig,
    "hgrn": HGRNConfig,
    "mingru": MinGRUConfig,
    "gru": GRUConfig,
    "elman": ElmanConfig,
    "mult_lstm": MultLSTMConfig,
    "assoc_lstm": AssocLSTMConfig,
    "matrix_rnn": MatrixRNNConfig,
}
