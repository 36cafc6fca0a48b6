"""Files of snapshots (safetensors): a conversation of any length in a file of constant size."""

import os
from mmap import ACCESS_READ, mmap
from pathlib import Path

from safetensors import SafetensorError, safe_open

from exlstm.models.lm import LM
from exlstm.models.states.content import (
    KIND,
    StateMismatch,
    expected_state_bytes,
    parsed,
    state_from_bytes,
    state_to_bytes,
)
from exlstm.models.states.snapshot import Snapshot
from exlstm.runtime.files import write_atomically

__all__ = [
    "StateMismatch",
    "check_place",
    "expected_state_bytes",
    "load_state",
    "save_state",
    "state_from_bytes",
    "state_to_bytes",
]


def save_state(snapshot: Snapshot, file: str | os.PathLike[str], *, tokenizer_digest: str | None = None) -> None:
    """Writes a snapshot without rounding, and the fingerprint of its weights; replaces a state in that file.

    tokenizer_digest: of the tokenizer of its tokens, for `load_state` to compare.
    Raises ValueError if the model's weights have changed since the prompt was read, which leaves their fingerprint
    unknown; for a folder, a file that is no state, and a missing folder. Raises OSError when the disk is full, and
    leaves the file as it was.
    """
    file = Path(file)
    check_place(file)
    write_atomically(file, state_to_bytes(snapshot, tokenizer_digest=tokenizer_digest))


def check_place(file: str | os.PathLike[str]) -> None:
    """ValueError where no state can be written, to be raised before the work. Other files than states stay."""
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file.")
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder {file.parent} for {file.name}; make it first, or name another.")
    if file.exists() and not (file.is_file() and (file.stat().st_size == 0 or _is_state(file))):
        raise ValueError(f"{file} is there and is no state, so it is not replaced; name another file.")


def _is_state(file: Path) -> bool:
    """True for a state of any version."""
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("kind") == KIND
    except SafetensorError:
        return False


def load_state(file: str | os.PathLike[str], model: LM, *, tokenizer_digest: str | None = None) -> Snapshot:
    """The snapshot in `file`, without rounding but of denormal numbers, which become zero, on the model's device.

    tokenizer_digest: refuses a state that names another. Raises ValueError for a missing or damaged file, for one that
    is no state, and for a state of another model.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}; name one that save_state wrote.")
    # of a large file that is no state, only the beginning is read
    with file.open("rb") as opened:
        empty = os.fstat(opened.fileno()).st_size == 0
        data = b"" if empty else mmap(opened.fileno(), 0, access=ACCESS_READ)
    return parsed(data, model, str(file), tokenizer_digest=tokenizer_digest)
