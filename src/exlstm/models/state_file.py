"""A snapshot in a file (safetensors): a conversation of any length in a file of constant size.
 A reader
sees a whole file or none.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from exlstm.mixers.contract import State, check_state
from exlstm.models.fingerprint import weights_of
from exlstm.models.lm import LM
from exlstm.models.snapshot import Snapshot
from exlstm.nn.fields import json_value
from exlstm.runtime.files import write_atomically

KIND, VERSION = "exlstm-state", "1"


def save_state(snapshot: Snapshot, file: str | os.PathLike[str]) -> None:
    """Writes a snapshot, every number exactly as it is, and whose it is; replaces a state that was there.

    Raises ValueError if the model's weights have changed since the prompt was read (nobody could say then whose state
    it is), for a folder, for a file that holds anything else, and for one in a folder that is not there. Raises
    OSError, leaving a file that was there before as it was, when the disk is full.
    """
    file = Path(file)
    check_place(file)
    owner = snapshot.weights.fingerprint()
    if owner is None:
        raise ValueError("the model's weights have changed since the prompt was read; read it again and save that.")
    tensors = dict(_named("state", snapshot.state)) | {"logits_BC": snapshot.logits_BC, "seen_BC": snapshot.seen_BC}
    # copied, for tensors that share memory are not stored
    stored = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    counts = json.dumps(snapshot.counts)
    data = save(stored, metadata={"kind": KIND, "version": VERSION, "fingerprint": owner, "counts": counts})
    write_atomically(file, data)


def check_place(file: str | os.PathLike[str]) -> None:
    """ValueError where no state can be written: told before the work whose result it is for.

    Nothing but another state, or an empty file, is replaced.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file.")
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder {file.parent} for {file.name}; make it first, or name another.")
    if file.exists() and not (file.is_file() and (file.stat().st_size == 0 or _is_state(file))):
        raise ValueError(f"{file} is there and is no state, so it is not replaced; name another file.")


def _is_state(file: Path) -> bool:
    """Of whatever version."""
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("kind") == KIND
    except SafetensorError:
        return False


def load_state(file: str | os.PathLike[str], model: LM) -> Snapshot:
    """The snapshot in `file`, on the model's device, with the numbers that were saved.

    Raises ValueError for a file that is missing, cut off or something else, and for a state of another model.
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
            # copied, for a mapped file is not aligned as new memory is, and other alignment gives other last bits
            found = {name: opened.get_tensor(name).clone().to(device) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} cannot be read ({error}); it is cut off, or no file that save_state wrote."
        ) from error
    try:
        counts = tuple(json_value(about["counts"]))
        expected = model.shapes(len(counts))
        state = _rebuilt("state", expected, found)
        for index, (given, wanted) in enumerate(zip(state, expected, strict=True)):
            check_state(given, wanted, f"block {index}")
        rest = {name: found[name] for name in ("logits_BC", "seen_BC")}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} does not hold the state that this model needs ({error}); save it again.") from error
    return Snapshot(state=state, counts=counts, weights=weights, **rest)


def _named(name: str, state: State) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state, named by its way there: state.0.cell.c_BHKV."""
    if isinstance(state, Tensor):
        yield name, state
        return
    for part, inner in zip(_parts(state), state, strict=True):
        yield from _named(f"{name}.{part}", inner)


def _rebuilt(name: str, like: State, found: dict[str, Tensor]) -> Any:
    """The inverse, for a state of the structure of `like`."""
    if isinstance(like, Tensor):
        return found[name]
    parts = [_rebuilt(f"{name}.{part}", inner, found) for part, inner in zip(_parts(like), like, strict=True)]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _parts(state: State) -> tuple[str, ...]:
    return getattr(state, "_fields", None) or tuple(map(str, range(len(state))))
