"""exlstm for transformers: importing this module registers the model type `exlstm` with the Auto classes.

    import exlstm.hf
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)  # a folder that exlstm.save wrote

Needs the extra `hf` (transformers).
"""

try:
    import transformers
except ImportError as error:
    raise ImportError(f"exlstm.hf needs transformers ({error}); install it with: pip install 'exlstm[hf]'") from error

from exlstm.data.transformers_tokenizer import save_tokenizer
from exlstm.hf.cache import ExlstmCache
from exlstm.hf.config import ExlstmConfig
from exlstm.hf.model import ExlstmForCausalLM, from_lm

transformers.AutoConfig.register("exlstm", ExlstmConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(ExlstmConfig, ExlstmForCausalLM, exist_ok=True)

__all__ = ["ExlstmCache", "ExlstmConfig", "ExlstmForCausalLM", "from_lm", "save_tokenizer"]
