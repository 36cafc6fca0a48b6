"""exlstm: xLSTM layers, language models, and what it takes to train and run them.

    import exlstm
    model = exlstm.LM(exlstm.preset("laptop-small"))
    logits_BTC, state = model(tokens_BT)

Importing does no work: no device is touched, and kernels compile when they first run.
"""

from exlstm import mixers, ops
from exlstm.infer.quantize import quantize
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import detach, rows
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.explain import explain
from exlstm.models.lm import LM, BlockConfig, LMConfig, MLPConfig
from exlstm.models.pattern import lm_from_pattern, xlstm_pattern
from exlstm.models.presets import PRESETS, preset
from exlstm.models.saving import load, save

__version__ = "0.1.0"
__all__ = [
    "LM",
    "MIXERS",
    "PRESETS",
    "AttentionConfig",
    "BlockConfig",
    "LMConfig",
    "LSTMConfig",
    "MLPConfig",
    "MLSTMConfig",
    "MLSTMLargeConfig",
    "SLSTMConfig",
    "TokenLoop",
    "__version__",
    "detach",
    "explain",
    "lm_from_pattern",
    "load",
    "mixers",
    "ops",
    "preset",
    "quantize",
    "rows",
    "save",
    "xlstm_pattern",
]
