"""The tokenizer of a model on disk."""

from exlstm.data.tokenizer import Tokenizer, tokenizer_from_spec
from exlstm.models.locate import TOKENIZER, ModelOnDisk


def tokenizer_of(model: ModelOnDisk, spec: str | None = None) -> Tokenizer:
    """The model's own, or the one that `tokenizer_from_spec` makes of `spec`. ValueError where there is none."""
    if spec is None and not model.tokenizer_file.is_file():
        raise ValueError(f"{model.weights} has no {TOKENIZER} beside it; name a file, or the tokenizer 'bytes'.")
    return tokenizer_from_spec(str(model.tokenizer_file) if spec is None else spec, [])
