"""The tokenizer of a model on disk, and the digest that tells tokenizers apart."""

import json
from hashlib import sha256

from exlstm.data.tokenizer import Tokenizer, tokenizer_from_spec
from exlstm.models.locate import TOKENIZER, ModelOnDisk


def tokenizer_of(model: ModelOnDisk, spec: str | None = None) -> Tokenizer:
    """The model's own, or the one that `tokenizer_from_spec` makes of `spec`. ValueError where there is none."""
    if spec is None and not model.tokenizer_file.is_file():
        raise ValueError(f"{model.weights} has no {TOKENIZER} beside it; name a file, or the tokenizer 'bytes'.")
    return tokenizer_from_spec(str(model.tokenizer_file) if spec is None else spec, [])


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer in 64 hexadecimal digits, for states: with another one their tokens are another text."""
    return sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()
