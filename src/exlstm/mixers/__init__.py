"""Floor 3: one file per sequence mixer. The names in MIXERS are for saved configs; code imports the classes."""

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mamba import MambaConfig
from exlstm.mixers.mingru import MinGRUConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "mlstm": MLSTMConfig,
    "mlstm_large": MLSTMLargeConfig,
    "slstm": SLSTMConfig,
    "attention": AttentionConfig,
    "lstm": LSTMConfig,
    "hgrn": HGRNConfig,
    "mingru": MinGRUConfig,
    "mamba": MambaConfig,
}
