"""Trained language models beside the results of studies, in results/models, for runs that ask them further.

A model has the id of its training for a name: a folder that `exlstm.load` reads, with its tokenizer where it has one,
and a file with what the training gave, from which a row is made without training again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exlstm.data.tokenizer import Tokenizer
from exlstm.models.checkpoints.loading import load
from exlstm.models.checkpoints.saving import save
from exlstm.models.lm import LM
from exlstm.nn.fields import json_value
from exlstm.runtime.files import write_atomically


@dataclass(frozen=True)
class ModelStore:
    """The models in a folder. keeps: models that are trained now are added."""

    folder: Path
    keeps: bool = False

    def add(self, name: str, model: LM, tokenizer: Tokenizer | None, outcome: dict[str, Any]) -> None:
        """Adds a model under the id of its training, in place of an older one."""
        save(model, self.folder / name, overwrite=True)
        if tokenizer is not None:
            text = json.dumps(tokenizer.to_json())
            write_atomically(self.folder / name / "tokenizer.json", text.encode())
        # last: where it is, everything is
        write_atomically(self._outcome(name), json.dumps(outcome).encode())

    def find(self, name: str, device: str) -> tuple[LM, dict[str, Any]] | None:
        """The model of this training, for inference, and what the training gave; None if it was not kept."""
        if not self._outcome(name).exists():
            return None
        return load(self.folder / name, device=device).eval(), json_value(self._outcome(name).read_bytes())

    def _outcome(self, name: str) -> Path:
        return self.folder / f"{name}.json"
