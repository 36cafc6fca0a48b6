"""The public names: what `import exlstm` offers. They are here so that the command line starts without torch."""

from exlstm import __version__, mixers, ops
from exlstm.exporting.export import export
from exlstm.infer.engine import Engine
from exlstm.infer.generate import generate, stream
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.quantize import quantize
from exlstm.infer.requests import Completion, Event, Request
from exlstm.infer.sampling import SamplingConfig
from exlstm.infer.step_loop import StepLoop
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.mixers.state import detach, rows
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.any_model import load, save
from exlstm.models.checkpoints.saving import convert
from exlstm.models.encoder import XLSTM, EncoderConfig, lengths_of
from exlstm.models.explain import explain
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern, xlstm_pattern
from exlstm.models.presets import PRESETS, preset
from exlstm.models.states.file import load_state, save_state
from exlstm.models.states.flat import flat_state, unflat_state
from exlstm.models.states.snapshot import Snapshot
from exlstm.models.vision import VisionConfig, VisionXLSTM
from exlstm.rnn import LSTM, MLSTM, SLSTM, LSTMCell, MLSTMCell, SLSTMCell, replace_lstm, warm_up
from exlstm.runtime.allocator import keep_freed_memory

__all__ = [
    "LM",
    "LSTM",
    "MIXERS",
    "MLSTM",
    "PRESETS",
    "SLSTM",
    "XLSTM",
    "AttentionConfig",
    "BlockConfig",
    "Completion",
    "EncoderConfig",
    "Engine",
    "Event",
    "LMConfig",
    "LSTMCell",
    "LSTMConfig",
    "MLPConfig",
    "MLSTMCell",
    "MLSTMConfig",
    "MLSTMLargeConfig",
    "PrefixCache",
    "Request",
    "SLSTMCell",
    "SLSTMConfig",
    "SamplingConfig",
    "Snapshot",
    "StepLoop",
    "TokenLoop",
    "VisionConfig",
    "VisionXLSTM",
    "__version__",
    "convert",
    "detach",
    "explain",
    "export",
    "flat_state",
    "generate",
    "keep_freed_memory",
    "lengths_of",
    "lm_from_pattern",
    "load",
    "load_state",
    "mixers",
    "ops",
    "preset",
    "quantize",
    "replace_lstm",
    "rows",
    "save",
    "save_state",
    "stream",
    "unflat_state",
    "warm_up",
    "xlstm_pattern",
]
