"""Tokenizers in files that AutoTokenizer of transformers reads, with the same ids for the same text.

Writing them needs the `tokenizers` library only.
"""

import json
from pathlib import Path
from typing import Any

from exlstm.data.tokenizer import (
    BOUNDARY_NAMES,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    byte_characters,
    lossless_description,
)
from exlstm.nn.fields import json_value
from exlstm.runtime.files import write_atomically

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, *, begin_with_boundary: bool = True) -> None:
    """Writes `tokenizer` into `folder` for AutoTokenizer: tokenizer.json and tokenizer_config.json.

    The boundary is its bos, eos and padding token. It begins every text, as in training, unless `begin_with_boundary`
    is False or the text is encoded with add_special_tokens=False. Text that looks like a special token is text.
    generation_config.json gets the boundary too, so that `generate` stops at the end of a document; its other settings
    stay. Texts of more than 262,144 characters, which exlstm cuts at line ends before it encodes them, may get other
    ids at the cuts. Raises ValueError for a tokenizer that these files cannot hold, and for a folder with a
    tokenizer.json in exlstm's own form. Raises OSError when the disk is full; no file is half-written.
    """
    place = Path(folder)
    if _is_ours(place / "tokenizer.json"):
        raise ValueError(
            f"{place / 'tokenizer.json'} is in exlstm's own form and would be lost; choose another folder."
        )
    description, name = _with_boundary(tokenizer, begin_with_boundary)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,
        "eos_token": name,
        "pad_token": name,
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.boundary)
    generation = _read(place / "generation_config.json") or {"_from_model_config": False}
    place.mkdir(parents=True, exist_ok=True)
    for file, content in zip(FILES, (description, settings, {**generation, **ids}), strict=True):
        write_atomically(place / file, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=False)


def _with_boundary(tokenizer: Tokenizer, begin_with_boundary: bool) -> tuple[dict[str, Any], str]:
    """The description for the `tokenizers` library, and the name of the boundary in it."""
    from tokenizers import AddedToken, processors
    from tokenizers import Tokenizer as Library

    if isinstance(tokenizer, ByteTokenizer):
        library = _bytes()
    elif isinstance(tokenizer, BPETokenizer):
        library = Library.from_str(json.dumps(lossless_description(tokenizer.to_json()["tokenizers"])))
    else:
        raise ValueError(
            f"a {type(tokenizer).__name__} has no form for transformers; pass one that exlstm trained or read."
        )
    boundary = tokenizer.boundary
    name = library.id_to_token(boundary)
    if name is None:
        free = [name for name in (*BOUNDARY_NAMES, f"<|boundary-{boundary}|>") if library.token_to_id(name) is None]
        name = free[0]
    library.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    if library.token_to_id(name) != boundary:
        raise ValueError(
            f"the boundary is token {boundary}, and a tokenizer.json would make it {library.token_to_id(name)}; "
            "use a tokenizer whose boundary follows its last token."
        )
    if begin_with_boundary:
        library.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A $B", special_tokens=[(name, boundary)]
        )
    description: dict[str, Any] = json.loads(library.to_str())
    return description, name


def _bytes() -> Any:
    """Byte-level BPE without merges: each byte is its own id."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    library = Library(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library


def _is_ours(file: Path) -> bool:
    return "kind" in _read(file)


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none."""
    try:
        data = json_value(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
