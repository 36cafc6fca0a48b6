"""Floor 3: one file per sequence mixer. The names in MIXERS are for saved configs; code imports the classes."""

from exlstm.mixers.abc import ABCConfig
from exlstm.mixers.assoc_lstm import AssocLSTMConfig
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.based import BasedConfig
from exlstm.mixers.bigs import BiGSConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.deltanet import DeltaNetConfig
from exlstm.mixers.elman import ElmanConfig
from exlstm.mixers.gated_deltanet import GatedDeltaNetConfig
from exlstm.mixers.gla import GLAConfig
from exlstm.mixers.gru import GRUConfig
from exlstm.mixers.gsa import GSAConfig
from exlstm.mixers.gss import GSSConfig
from exlstm.mixers.h3 import H3Config
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.hgrn2 import HGRN2Config
from exlstm.mixers.hyena import HyenaConfig
from exlstm.mixers.linear_attention import LinearAttentionConfig
from exlstm.mixers.linformer import LinformerConfig
from exlstm.mixers.lru import LRUConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mamba import MambaConfig
from exlstm.mixers.mamba2 import Mamba2Config
from exlstm.mixers.mamba3 import Mamba3Config
from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.mixers.mega import MegaConfig
from exlstm.mixers.mingru import MinGRUConfig
from exlstm.mixers.minlstm import MinLSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.mult_lstm import MultLSTMConfig
from exlstm.mixers.performer import PerformerConfig
from exlstm.mixers.retention import RetentionConfig
from exlstm.mixers.rglru import RGLRUConfig
from exlstm.mixers.rwkv4 import RWKV4Config
from exlstm.mixers.rwkv5 import RWKV5Config
from exlstm.mixers.rwkv6 import RWKV6Config
from exlstm.mixers.rwkv7 import RWKV7Config
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.s4d import S4DConfig
from exlstm.mixers.s5 import S5Config
from exlstm.mixers.slstm import SLSTMConfig

MIXERS: dict[str, type[MixerConfig]] = {
    # xLSTM, attention and recurrent nets
    "mlstm": MLSTMConfig,
    "mlstm_large": MLSTMLargeConfig,
    "slstm": SLSTMConfig,
    "attention": AttentionConfig,
    "lstm": LSTMConfig,
    "gru": GRUConfig,
    "elman": ElmanConfig,
    "mult_lstm": MultLSTMConfig,
    "assoc_lstm": AssocLSTMConfig,
    "matrix_rnn": MatrixRNNConfig,
    # linear recurrences and state spaces
    "hgrn": HGRNConfig,
    "mingru": MinGRUConfig,
    "minlstm": MinLSTMConfig,
    "rglru": RGLRUConfig,
    "lru": LRUConfig,
    "s5": S5Config,
    "s4d": S4DConfig,
    "gss": GSSConfig,
    "bigs": BiGSConfig,
    "h3": H3Config,
    "hyena": HyenaConfig,
    "mega": MegaConfig,
    "mamba": MambaConfig,
    # linear attention
    "linear_attention": LinearAttentionConfig,
    "performer": PerformerConfig,
    "based": BasedConfig,
    "retention": RetentionConfig,
    "mamba2": Mamba2Config,
    "mamba3": Mamba3Config,
    "gla": GLAConfig,
    "hgrn2": HGRN2Config,
    "rwkv4": RWKV4Config,
    "rwkv5": RWKV5Config,
    "rwkv6": RWKV6Config,
    "rwkv7": RWKV7Config,
    "rwkv_channel": RWKVChannelConfig,
    "deltanet": DeltaNetConfig,
    "gated_deltanet": GatedDeltaNetConfig,
    # softmax over slots
    "abc": ABCConfig,
    "gsa": GSAConfig,
    "linformer": LinformerConfig,
}
