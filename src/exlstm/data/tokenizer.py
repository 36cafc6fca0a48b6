"""Tokenizers: bytes, a byte-level BPE trained on the text, or a `tokenizer.json` of the `tokenizers` library.

Every token is a fixed string of bytes, so decoding is concatenation and `decode(encode(x)) == x`. One more token, the
boundary, starts every document; no text encodes to it, and it decodes to nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exlstm.data.progress import UNIT, ProgressLine
from exlstm.nn.fields import json_value

if TYPE_CHECKING:
    import tokenizers

# Pieces for BPE, chosen on Python source (4096 tokens: 3.72 bytes per token; GPT-2's pieces 3.58, GPT-4's 3.61): a word
# with the one character before it, up to three digits, punctuation with the line end and indentation that
# follow, blank lines with the indentation after them, other white space.
BPE_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*|\s+"
# The boundary of a foreign tokenizer: the first of these that it has, else a new token behind its last.
BOUNDARY_NAMES = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]")
# Characters in one call of the tokenizers library: bounds its memory, about 100 bytes per token.
GROUP_CHARS = 1 << 22
# Longer documents are cut at line ends before they are encoded, so that one document can use every core.
PIECE_CHARS = 1 << 18
# The largest vocabulary that is trained: the library reserves memory for all tokens at once.
MAX_TRAINED_TOKENS = 1 << 20
# Text on which a foreign tokenizer must be lossless.
SAMPLE_BYTES = 1 << 18


class Tokenizer(Protocol):
    """The interface of all tokenizers. Ids lie in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def boundary(self) -> int:
        """The id that starts every document."""

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of each token, [vocab_size]; 0 for the boundary. Summed over the ids of a text they are its bytes."""

    def encode(self, data: bytes) -> list[int]:
        """The ids of a text, without the boundary."""

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        """`encode` for many texts, one array each, in bounded memory and on all cores."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """The text of ids; a boundary is the empty text. Raises ValueError for an id outside the vocabulary."""

    def to_json(self) -> dict[str, Any]:
        """JSON data from which `tokenizer_from_json` makes the same tokenizer."""


class ByteTokenizer:
    """Every byte is its own id; the boundary is 256."""

    vocab_size = 257
    boundary = 256

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        lengths[self.boundary] = 0
        return lengths

    def encode(self, data: bytes) -> list[int]:
        return list(data)

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        for data in documents:
            yield np.frombuffer(data, dtype=np.uint8)

    def decode(self, ids: Iterable[int]) -> bytes:
        checked = [_in_vocabulary(token, self.vocab_size) for token in ids]
        return bytes(token for token in checked if token != self.boundary)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bytes"}


MAX_VOCABULARY = 1 << 24  # a table has an entry for each token


class BPETokenizer:
    """A tokenizer of the `tokenizers` library, used byte for byte.

    `description` is its JSON (the content of a `tokenizer.json`) and `boundary` the id that starts documents.
    The library encodes UTF-8 text. Every other byte becomes the token of that byte, where the tokenizer has them
    (byte-level BPE, byte fallback). Prefixes at the start of a text and Unicode normalization are switched off, and
    text that looks like a special token is encoded as text. One loss remains: SentencePiece takes U+2581 for a space.

    Raises ValueError for a description that the library cannot read, and for undecodable bytes without such tokens.
    """

    def __init__(self, description: Mapping[str, Any], boundary: int) -> None:
        from tokenizers import Tokenizer as Library

        if type(boundary) is not int or not 0 <= boundary < MAX_VOCABULARY:
            raise ValueError(f"the boundary is {boundary!r}; it must be a token, from 0 to {MAX_VOCABULARY - 1}.")
        self._description = dict(description)
        try:
            library: tokenizers.Tokenizer = Library.from_str(json.dumps(lossless_description(self._description)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"the tokenizers library cannot read this tokenizer ({error}); save it again or name another."
            ) from error
        # special tokens that stand in a text are text
        library.encode_special_tokens = True
        self._library = library
        self._boundary = boundary
        self._spelling = _spelling(self._description, library, boundary)
        self._byte_ids = _byte_ids(self._description, library)

    @property
    def vocab_size(self) -> int:
        return len(self._spelling)

    @property
    def boundary(self) -> int:
        return self._boundary

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        return np.array([len(spelling) for spelling in self._spelling], dtype=np.int64)

    def encode(self, data: bytes) -> list[int]:
        (ids,) = self.encode_documents([data])
        result: list[int] = ids.tolist()
        return result

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[NDArray[np.integer[Any]]]:
        parts: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        progress = ProgressLine("encoding the text")
        for group in _groups(documents):
            texts = [piece for piece in group if isinstance(piece, str)]
            encoded = iter(self._library.encode_batch_fast(texts, add_special_tokens=False))
            for piece in group:
                if piece is None:
                    yield np.concatenate(parts)
                    parts = [np.empty(0, np.uint32)]
                elif isinstance(piece, str):
                    parts.append(np.array(next(encoded).ids, dtype=np.uint32))
                else:
                    parts.append(self._single_bytes(piece))
            progress.add(sum(len(piece) for piece in group if piece is not None))

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._spelling[_in_vocabulary(token, self.vocab_size)] for token in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "boundary": self._boundary, "tokenizers": self._description}

    def _single_bytes(self, data: bytes) -> NDArray[np.uint32]:
        if self._byte_ids is None:
            raise ValueError(
                f"the bytes {data[:8]!r} are not UTF-8 and this tokenizer has no tokens for single bytes; "
                'convert the text, or use the tokenizer "bytes" or "bpe:4096".'
            )
        return self._byte_ids[np.frombuffer(data, dtype=np.uint8)]


def train_bpe(documents: Sequence[bytes], vocab_size: int) -> BPETokenizer:
    """Trains a byte-level BPE of at most `vocab_size` ids, 256 bytes and the boundary among them.

    Short texts give fewer ids. Undecodable bytes are left out of the training and still encode. Long texts take
    minutes, with progress on stderr. Raises ValueError for a vocab_size below 257 or above MAX_TRAINED_TOKENS.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    if vocab_size < 257:
        raise ValueError(f"a BPE of {vocab_size} tokens cannot hold 256 bytes and the boundary; use 257 or more.")
    if vocab_size > MAX_TRAINED_TOKENS:
        raise ValueError(
            f"a BPE of {vocab_size} tokens is more than any text fills; use {MAX_TRAINED_TOKENS} or fewer."
        )
    library = Library(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(BPE_PIECES), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(_BYTE_CHARACTERS),
        show_progress=False,
    )
    size = sum(map(len, documents))
    progress = ProgressLine(f"training a tokenizer of {vocab_size:,} tokens", size)

    def texts() -> Iterator[str]:
        for data in documents:
            for piece in _pieces(data):
                if isinstance(piece, str):
                    yield piece
                progress.add(len(piece))
        if size > GROUP_CHARS:
            progress.tell(f"all {size / UNIT:,.0f} MB read, merging pairs")

    library.train_from_iterator(texts(), trainer=trainer)
    return BPETokenizer(json.loads(library.to_str()), boundary=library.get_vocab_size())


def tokenizer_from_spec(spec: str, documents: Sequence[bytes]) -> Tokenizer:
    """The tokenizer of a spec: "bytes", "bpe:SIZE" (trained on `documents`), or the path of a `tokenizer.json`.

    A `tokenizer.json` may be a run's or one of the `tokenizers` library. The latter must be lossless on the beginning
    of `documents`. Raises ValueError otherwise, and for any other spec.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if re.fullmatch(r"bpe:[0-9]+", spec):
        return train_bpe(documents, int(spec.removeprefix("bpe:")))
    path = Path(spec).expanduser()
    if not spec or not path.is_file():
        raise ValueError(
            f'the tokenizer {spec!r} is unknown; name "bytes", "bpe:4096" (or another size) or a tokenizer.json file.'
        )
    try:
        data = json_value(path.read_bytes())
        foreign = None if "kind" in data else BPETokenizer(data, _foreign_boundary(data))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{spec} is not a usable tokenizer.json ({error!r}); save it again or name another."
        ) from error
    if foreign is None:
        return tokenizer_from_json(data)
    _check_lossless(foreign, documents, spec)
    return foreign


def tokenizer_from_json(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` described. Raises ValueError for any other data."""
    kind = data.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "bpe" and isinstance(data.get("tokenizers"), Mapping) and isinstance(data.get("boundary"), int):
        return BPETokenizer(data["tokenizers"], data["boundary"])
    raise ValueError(f"a tokenizer of kind {kind!r} is unknown or incomplete; this version reads 'bytes' and 'bpe'.")


def byte_characters() -> list[str]:
    """The character of each byte in byte-level vocabularies: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_CHARACTERS = byte_characters()
_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(_BYTE_CHARACTERS)}


def _in_vocabulary(token: int, vocab_size: int) -> int:
    if not 0 <= token < vocab_size:
        raise ValueError(f"token {token} is outside the vocabulary of {vocab_size}; use the model's own tokenizer.")
    return token


def _pieces(data: bytes) -> Iterator[str | bytes]:
    """A text as strings (cut at line ends) and runs of undecodable bytes, in order."""
    # "surrogateescape" maps every byte that is not UTF-8 to one of U+DC80..U+DCFF, which UTF-8 itself never yields
    for number, run in enumerate(re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))):
        if number % 2:
            yield run.encode("ascii", "surrogateescape")
            continue
        start = 0
        while start < len(run):
            stop = start + PIECE_CHARS
            if stop < len(run):
                stop = (run.rfind("\n", start, stop) + 1) or stop
            yield run[start:stop]
            start = stop


def _groups(documents: Iterable[bytes]) -> Iterator[list[str | bytes | None]]:
    """The pieces of all documents, each document closed by None, in lists of bounded size."""
    group: list[str | bytes | None] = []
    size = 0
    for data in documents:
        for piece in _pieces(data):
            group.append(piece)
            size += len(piece)
            if size >= GROUP_CHARS:
                yield group
                group, size = [], 0
        group.append(None)
    yield group


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    return '"type": "ByteLevel"' in json.dumps(description.get("decoder"))


def _spelling(description: Mapping[str, Any], library: "tokenizers.Tokenizer", boundary: int) -> list[bytes]:
    """The bytes of every id; none for the boundary and for ids without a token."""
    byte_level = _is_byte_level(description)
    added = {id_: token.content for id_, token in library.get_added_tokens_decoder().items()}
    vocabulary = library.get_vocab(with_added_tokens=True)
    spelling = [b""] * (max([boundary, *vocabulary.values()]) + 1)
    for token, id_ in vocabulary.items():
        if id_ in added:
            spelling[id_] = added[id_].encode()
        elif byte_level:
            spelling[id_] = bytes(_BYTE_OF_CHARACTER[character] for character in token)
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            spelling[id_] = bytes([int(token[3:5], 16)])
        else:
            # SentencePiece writes a space as U+2581
            spelling[id_] = token.replace("\u2581", " ").encode()
    spelling[boundary] = b""
    return spelling


def _byte_ids(description: Mapping[str, Any], library: "tokenizers.Tokenizer") -> NDArray[np.uint32] | None:
    """The id of each single byte, [256], or None when the tokenizer lacks one."""
    names = _BYTE_CHARACTERS if _is_byte_level(description) else [f"<0x{byte:02X}>" for byte in range(256)]
    ids = [library.token_to_id(name) for name in names]
    return None if None in ids else np.array(ids, dtype=np.uint32)


def lossless_description(description: dict[str, Any]) -> dict[str, Any]:
    """A description without the steps that add to a text, change it, or cut it off."""
    parts = {key: _lossless_part(description.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return {**description, **parts, "post_processor": None, "truncation": None, "padding": None}


def _lossless_part(part: Any) -> Any:
    if part is None or part["type"] in ("Prepend", "NFC"):
        return None
    part = dict(part)
    for key in {"normalizers", "pretokenizers"} & part.keys():
        part[key] = [plain for inner in part[key] if (plain := _lossless_part(inner)) is not None]
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    if "prepend_scheme" in part:
        part["prepend_scheme"] = "never"
    return part


def _foreign_boundary(description: Mapping[str, Any]) -> int:
    added = description.get("added_tokens", ())
    ids: dict[str, int] = {token["content"]: token["id"] for token in added if token["special"]}
    for name in BOUNDARY_NAMES:
        if name in ids:
            return ids[name]
    vocabulary = description["model"]["vocab"]
    # Unigram lists its tokens in order, every other model maps them to ids
    ordinary = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    highest: int = max([*ordinary, *(token["id"] for token in added)], default=-1)
    return highest + 1


def _check_lossless(tokenizer: Tokenizer, documents: Sequence[bytes], spec: str) -> None:
    left = SAMPLE_BYTES
    for document in documents:
        data = document[:left].decode("utf-8", "ignore").encode()
        back = tokenizer.decode(tokenizer.encode(data))
        if back != data:
            same = next((i for i, (a, b) in enumerate(zip(data, back, strict=False)) if a != b), len(back))
            here = slice(same, same + 20)
            raise ValueError(
                f"the tokenizer {spec} turns {data[here]!r} into {back[here]!r}, so bits per byte would mean nothing; "
                'use a lossless one (a byte-level BPE, "bytes" or "bpe:4096").'
            )
        left -= len(data)
        if left <= 0:
            return
