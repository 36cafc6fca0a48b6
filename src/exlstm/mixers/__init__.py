"""Floor 3: one file per sequence mixer. The names in MIXERS are for saved configs; code imports the classes."""

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.based import BasedConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.linear_attention import LinearAttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mamba2 import Mamba2Config
from exlstm.mixers.mamba3 import Mamba3Config
from exlstm.mixers.mingru import MinGRUConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.performer import PerformerConfig
from exlstm.mixers.retention import RetentionConfig
from exlstm.mixers.slstm import SLSTMConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "mlstm": MLSTMConfig,
    "mlstm_large": MLSTMLargeConfig,
    "slstm": SLSTMConfig,
    "attention": AttentionConfig,
    "lstm": LSTMConfig,
    "hgrn": HGRNConfig,
    "mingru": MinGRUConfig,
    "linear_attention": LinearAttentionConfig,
    "performer": PerformerConfig,
    "based": BasedConfig,
    "retention": RetentionConfig,
    "mamba2": Mamba2Config,
    "mamba3": Mamba3Config,
}
