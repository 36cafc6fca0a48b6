"""Files of the store of states: one for each, with what the store knows of it in the metadata."""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

from exlstm.models.lm import LM
from exlstm.models.states.content import StateMismatch, check_about, header_bytes, state_from_bytes, state_to_bytes
from exlstm.models.states.header import LENGTH_BYTES, read_header
from exlstm.models.states.snapshot import Snapshot
from exlstm.nn.fields import fits, json_value
from exlstm.serve.private_folder import PrivateFolder
from exlstm.serve.state_records import StateInfo

ID = re.compile(r"st_[0-9a-f]{32}")
NOTE = "about"
# fields of a StateInfo that are kept, and their types
KEPT = {
    "id": str,
    "owner": str,
    "parent": str | None,
    "created": float,
    "pinned": bool,
    "exportable": bool,
    "excerpt": str | None,
    "finish_reason": str | None,
}


class StateFiles:
    """The folder of a store. damaged, foreign: files that could not be read, and those of another model."""

    def __init__(self, folder: Path, model: LM, tokenizer_digest: str | None) -> None:
        self.folder, self.model, self.tokenizer_digest = PrivateFolder(folder, ID), model, tokenizer_digest
        self.damaged = self.foreign = 0

    def packed(self, about: StateInfo, snapshot: Snapshot) -> bytes:
        """The content of a state's file."""
        notes = {NOTE: json.dumps({name: getattr(about, name) for name in KEPT})}
        return state_to_bytes(snapshot, tokenizer_digest=self.tokenizer_digest, notes=notes, checksum=True)

    def read(self, state: str) -> Snapshot | None:
        """The snapshot in a file; None if it is missing, a link or damaged. OSError if the disk cannot be read."""
        try:
            data, _ = self.folder.read(state)
            return state_from_bytes(data, self.model, tokenizer_digest=self.tokenizer_digest)
        except FileNotFoundError:
            return None
        except ValueError:
            self.damaged += 1
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self.damaged += 1
            return None

    def found(self) -> Iterator[tuple[StateInfo, int]]:
        """What the files say of the states of this model, and their sizes; counts the others.

        Only headers are read: a damaged tensor shows when the state is asked for.
        """
        self.folder.sweep()
        for name in self.folder.names():
            try:
                yield self._about(name)
            except StateMismatch:
                self.foreign += 1
            except (OSError, ValueError):
                self.damaged += 1

    def _about(self, name: str) -> tuple[StateInfo, int]:
        most = header_bytes(self.model)
        data, size = self.folder.read(name, LENGTH_BYTES + most)
        header = read_header(data, size, most)
        counts = check_about(header.about, self.model, name, self.tokenizer_digest)
        note = json_value(header.about.get(NOTE, "null"))
        if not isinstance(note, dict) or note.keys() != KEPT.keys() or len(counts) != 1:
            raise ValueError(f"{name} is no file of this store.")
        if note["id"] != name or not all(fits(note[field], kind) for field, kind in KEPT.items()):
            raise ValueError(f"{name} holds what this store has not written.")
        about = StateInfo(**note, tokens=counts[0], bytes=size - header.start, expires=None, where="disk", children=0)
        return about, size
