"""Layouts of transformers' own models, one file each. All are called "huggingface": the model tells which."""

from exlstm.models.checkpoints.large import HUGGINGFACE as XLSTM
from exlstm.models.checkpoints.layout import Layout
from exlstm.models.checkpoints.transformers.gpt2 import GPT2
from exlstm.models.checkpoints.transformers.llama import LLAMA
from exlstm.models.checkpoints.transformers.mamba import MAMBA
from exlstm.models.checkpoints.transformers.mamba2 import MAMBA2
from exlstm.models.checkpoints.transformers.recurrent_gemma import RECURRENT_GEMMA
from exlstm.models.checkpoints.transformers.rwkv import RWKV

TRANSFORMERS: tuple[Layout, ...] = (XLSTM, LLAMA, GPT2, MAMBA, MAMBA2, RWKV, RECURRENT_GEMMA)
