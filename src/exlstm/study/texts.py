"""Texts of language studies, which every machine has that has exlstm: nothing is downloaded.

    code      source text of Python's standard library without its tests, 12 MB
    english   documentation strings of the standard library, torch, numpy and sympy, 12 MB of technical prose
    mixed     both, as two domains
    email     one package of the standard library, 0.4 MB, for runs of seconds

A name such as "mixed/1024" is a text in so many tokens of a BPE, which is trained on its training part. Documents are
whole and in one part (see `exlstm.data.text.split_documents`). Versions of these packages are part of every result.
"""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exlstm.data.mixture import Mixture
from exlstm.data.packing import TokenStream, pack
from exlstm.data.text import Document, Split, documents, fingerprint, source_code, split_documents
from exlstm.data.tokenizer import Tokenizer, train_bpe

_LONG = 200  # characters of a documentation string that is prose, not a label
_PACKAGES = ("torch", "numpy", "sympy")  # exlstm needs all of them


def _english() -> list[Document]:
    roots = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    for name in _PACKAGES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        roots[name] = Path(found.origin).parent
    named = ((name, path, root) for name, root in roots.items() for path in sorted(root.rglob("*.py")))
    texts = (
        (f"{name}/{path.relative_to(root).as_posix()}", documentation(path.read_bytes()))
        for name, path, root in named
        if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts)
    )
    return [Document(name, text) for name, text in texts if text]


def _email() -> list[Document]:
    return documents(Path(sysconfig.get_path("stdlib"), "email"))


TEXTS: Mapping[str, Mapping[str, Callable[[], list[Document]]]] = {
    "code": {"code": source_code},
    "english": {"english": _english},
    "mixed": {"code": source_code, "english": _english},
    "email": {"email": _email},
}


def documentation(source: bytes) -> bytes:
    """The long documentation strings of a Python file, one behind the other; empty for a file that is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return b""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
    return "\n\n".join(text for text in found if len(text) >= _LONG).encode("utf-8", "replace")


def is_text(task: str) -> bool:
    """True for the name of a text with a vocabulary, such as "mixed/1024"."""
    name, _, size = task.partition("/")
    return name in TEXTS and size.isdecimal()


@dataclass(frozen=True, kw_only=True)
class StudyText:
    """A text in tokens. domains: the validation and the test part by kind of text. train: all kinds, by their size."""

    tokenizer: Tokenizer
    train: Mixture
    domains: Mapping[str, Mapping[str, TokenStream]]  # "validation" and "test", then by domain
    sha256: str

    @cached_property
    def counts_C(self) -> NDArray[np.int64]:
        """How often every token occurs in the training part, [vocab_size]."""
        size = self.tokenizer.vocab_size
        return sum((np.bincount(stream.tokens, minlength=size) for stream in self.train.streams), np.zeros(size, int))


@lru_cache(maxsize=2)  # a worker of a study trains many models on one text
def study_text(task: str) -> StudyText:
    """The text of this name, read and encoded: half a minute for the largest."""
    name, _, size = task.partition("/")
    found = {domain: read() for domain, read in TEXTS[name].items()}
    splits = {domain: split_documents(docs) for domain, docs in found.items()}
    tokenizer = train_bpe(list(_training(splits)), int(size))
    streams = tuple(pack(split.train, tokenizer) for split in splits.values())
    total = sum(map(len, streams))
    parts = {"validation": "val", "test": "test"}
    return StudyText(
        tokenizer=tokenizer,
        train=Mixture(streams, tuple(len(stream) / total for stream in streams)),
        domains={
            part: {domain: pack(getattr(split, field), tokenizer) for domain, split in splits.items()}
            for part, field in parts.items()
        },
        sha256=hashlib.sha256("".join(map(fingerprint, found.values())).encode()).hexdigest(),
    )


def _training(splits: Mapping[str, Split]) -> Iterator[bytes]:
    for split in splits.values():
        yield from (document.data for document in split.train)
