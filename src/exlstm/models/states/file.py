"""Files of snapshots (safetensors): a conversation of any length in a file of constant size."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from exlstm.mixers.state import check_state, named_leaves, with_leaves
from exlstm.models.lm import LM
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.snapshot import Snapshot
from exlstm.nn.fields import json_value
from exlstm.runtime.files import write_atomically

KIND, VERSION = "exlstm-state", "1"


def save_state(snapshot: Snapshot, file: str | os.PathLike[str]) -> None:
    """Writes a snapshot without rounding, and the fingerprint of its weights; replaces a state in that file.

    Raises ValueError if the model's weights have changed since the prompt was read, which leaves their fingerprint
    unknown; for a folder, a file that is no state, and a missing folder. Raises OSError when the disk is full, and
    leaves the file as it was.
    """
    file = Path(file)
    check_place(file)
    owner = snapshot.weights.fingerprint()
    if owner is None:
        raise ValueError("the model's weights have changed since the prompt was read; read it again and save that.")
    tensors = dict(named_leaves(snapshot.state, "state")) | {
        "logits_BC": snapshot.logits_BC,
        "seen_BC": snapshot.seen_BC,
    }
    # safetensors refuses tensors that share memory
    stored = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    counts = json.dumps(snapshot.counts)
    data = save(stored, metadata={"kind": KIND, "version": VERSION, "fingerprint": owner, "counts": counts})
    write_atomically(file, data)


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


def load_state(file: str | os.PathLike[str], model: LM) -> Snapshot:
    """The snapshot in `file`, without rounding, on the model's device.

    Raises ValueError for a missing or damaged file, for one that is no state, and for a state of another model.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}; name one that save_state wrote.")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            about = opened.metadata() or {}
            if about.get("kind") != KIND or about.get("version") != VERSION:
                raise ValueError(
                    f"{file} is not a state of format {VERSION}; name a file that save_state of this version wrote."
                )
            weights = weights_of(model)
            if about.get("fingerprint") != weights.fingerprint():
                raise ValueError(f"{file} holds a state of another model; load the model (and weights) that it is of.")
            device = model.embed.weight.device
            # cloned: a mapped file has another alignment than new memory, which can change last bits
            found = {name: opened.get_tensor(name).clone().to(device) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} cannot be read ({error}); it is cut off, or no file that save_state wrote."
        ) from error
    try:
        counts = tuple(json_value(about["counts"]))
        expected = model.shapes(len(counts))
        state = with_leaves(expected, [found[name] for name, _ in named_leaves(expected, "state")])
        for index, (given, wanted) in enumerate(zip(state, expected, strict=True)):
            check_state(given, wanted, f"block {index}")
        rest = {name: found[name] for name in ("logits_BC", "seen_BC")}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} does not hold the state that this model needs ({error}); save it again.") from error
    return Snapshot(state=state, counts=counts, weights=weights, **rest)
