"""Layouts of transformers' own models, one file each. All are called "huggingface": the model tells which."""

from exlstm.models.checkpoints.large import HUGGINGFACE as XLSTM
from exlstm.models.checkpoints.layout import Layout
from exlstm.models.checkpoints.transformers.gpt2 import GPT2
from exlstm.models.checkpoints.transformers.llama import LLAMA

TRANSFORMERS: tuple[Layout, ...] = (XLSTM, LLAMA, GPT2)
