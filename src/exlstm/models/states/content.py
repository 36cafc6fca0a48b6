"""Bytes of snapshots, a safetensors file in memory: for files, for downloads, and for uploads that nobody vouches for.

    data = state_to_bytes(snapshot);  snapshot = state_from_bytes(data, model)

Only ValueError comes of bytes, whatever they are.
"""

import json
from collections.abc import Mapping, Sequence
from zlib import crc32

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, State, leaves, map_state, named_leaves, state_nbytes, with_leaves
from exlstm.models.lm import LM
from exlstm.models.states.batching import CACHES, grows
from exlstm.models.states.checks import check_counting, settle_numbers
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.header import Bytes, StateHeader, TensorPlace, excerpt, read_header, written_header
from exlstm.models.states.snapshot import Snapshot
from exlstm.nn.fields import json_value
from exlstm.ops.arguments import exact_in

KIND, VERSION = "exlstm-state", "1"
HEADER_BYTES = 1 << 16  # most of an upload's header, but for models of so many tensors that they need more
BYTES_PER_TENSOR = 256
MAX_COUNT = 1 << 53
CHUNK = 1 << 20  # bytes that are copied and checked at a time, while they are in the cache


class StateMismatch(ValueError):
    """A state of other weights, or of another tokenizer: whole, but not for this model."""


def state_to_bytes(
    snapshot: Snapshot,
    *,
    dtype: torch.dtype | None = None,
    tokenizer_digest: str | None = None,
    notes: Mapping[str, str] | None = None,
    checksum: bool = False,
) -> bytes:
    """The snapshot and the fingerprint of its weights as bytes that `state_from_bytes` reads.

    dtype: None for every bit; torch.bfloat16 rounds wider numbers, for half the size, and says so in the metadata.
    tokenizer_digest: of the tokenizer of its tokens. notes: more metadata. checksum: a CRC-32 that reading compares.
    Raises ValueError if the weights have changed since the prompt was read, which leaves their fingerprint unknown.
    """
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}; pass None for every bit, or torch.bfloat16.")
    owner = snapshot.weights.fingerprint()
    if owner is None:
        raise ValueError("the model's weights have changed since the prompt was read; read it again and save that.")
    about = {"kind": KIND, "version": VERSION, "fingerprint": owner, "counts": json.dumps(snapshot.counts)}
    about |= {} if dtype is None else {"dtype": "bfloat16"}
    about |= {} if tokenizer_digest is None else {"tokenizer": tokenizer_digest}
    tensors = dict(named_leaves(snapshot.state, "state"))
    tensors |= {"logits_BC": snapshot.logits_BC, "seen_BC": snapshot.seen_BC}
    places, parts, end = {}, [], 0
    # as safetensors orders them, so that each tensor is aligned
    for name, x in sorted(tensors.items(), key=lambda item: (-_stored(item[1], dtype).itemsize, item[0])):
        x = _rounded(x.detach().cpu(), _stored(x, dtype)).contiguous()
        start, end = end, end + x.nbytes
        places[name] = TensorPlace(dtype=x.dtype, shape=tuple(x.shape), start=start, end=end)
        parts.append(_bytes_of(x))
    if checksum:
        about["crc32"] = _checksum(parts)
    return b"".join([written_header({**(notes or {}), **about}, places), *parts])


def state_from_bytes(data: Bytes, model: LM, *, tokenizer_digest: str | None = None) -> Snapshot:
    """The snapshot in `data`, on the model's device, with numbers of the model's precision, denormal ones as zero.

    tokenizer_digest: refuses a state that names another. Raises `StateMismatch` for a state of other weights or another
    tokenizer, and ValueError for what is no state that this model could have made: names, dtypes, shapes, sizes and
    counts must be the model's, and every number finite. The numbers themselves may be anyone's.
    """
    return parsed(data, model, "the state", most=header_bytes(model), tokenizer_digest=tokenizer_digest)


def expected_state_bytes(model: LM, *, dtype: torch.dtype | None = None) -> int | None:
    """Bytes of the tensors of a state of one row, as `state_to_bytes` writes them; None if states grow.

    With `header_bytes` more than these nothing needs to be received.
    """
    if grows(model):
        return None
    tensors = [*leaves(model.shapes(1)), *_vocabulary_tensors(model, 1)]
    return sum(int(x.numel()) * _stored(x, dtype).itemsize for x in tensors)


def header_bytes(model: LM) -> int:
    """Most bytes of the header of an upload."""
    return max(HEADER_BYTES, BYTES_PER_TENSOR * (len(leaves(model.shapes(1))) + 2))


def parsed(
    data: Bytes, model: LM, name: str, *, most: int | None = None, tokenizer_digest: str | None = None
) -> Snapshot:
    """`state_from_bytes` of bytes that error messages call `name`. most: bytes that the header may have."""
    view = memoryview(data).cast("B")
    try:
        header = read_header(view, len(view), most)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read ({error}); it is cut off, or no file that save_state wrote.") from None
    counts = check_about(header.about, model, name, tokenizer_digest)
    try:
        expected = _expected(header, model, counts)
        body = view[header.start :]
        if "crc32" in header.about and header.about["crc32"] != _checksum([body]):
            raise ValueError("its checksum is another")
        tensors = {key: _tensor(key, header.places[key], body).to(x.dtype) for key, x in expected.items()}
        shapes = model.shapes(len(counts))
        state: LMState = with_leaves(shapes, list(tensors.values())[:-2])
        check_counting(state, counts)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} does not hold the state that this model needs ({error}); save it again.") from None
    device = model.embed.weight.device
    return Snapshot(
        state=map_state(lambda x: x.to(device), state),
        counts=counts,
        weights=weights_of(model),
        logits_BC=tensors["logits_BC"].to(device),
        seen_BC=tensors["seen_BC"].to(device),
    )


def check_about(about: Mapping[str, str], model: LM, name: str, tokenizer_digest: str | None) -> tuple[int, ...]:
    """The counts in the metadata of a state. ValueError for what is none of this version; `StateMismatch`."""
    if about.get("kind") != KIND or about.get("version") != VERSION:
        raise ValueError(
            f"{name} is not a state of format {VERSION}; name a file that save_state of this version wrote."
        )
    if about.get("fingerprint") != weights_of(model).fingerprint():
        raise StateMismatch(f"{name} holds a state of another model; load the model (and weights) that it is of.")
    if tokenizer_digest is not None and about.get("tokenizer", tokenizer_digest) != tokenizer_digest:
        raise StateMismatch(f"{name} holds a state of another tokenizer; use the one whose tokens it has read.")
    if (dtype := about.get("dtype")) not in (None, "bfloat16"):
        raise ValueError(
            f"{name} has numbers in the format {excerpt(dtype)}; this version reads exact ones and bfloat16."
        )
    try:
        counts = json_value(about.get("counts", "null"))
    except ValueError:
        counts = None
    if not isinstance(counts, list) or not counts or not all(type(n) is int and 1 <= n <= MAX_COUNT for n in counts):
        raise ValueError(f"{name} does not say how many tokens its rows have read, 1 to 2^53; save it again.")
    return tuple(counts)


def _expected(header: StateHeader, model: LM, counts: Sequence[int]) -> dict[str, Tensor]:
    """Every tensor of such a state by name, on the meta device, logits and seen tokens last.

    ValueError unless the header has these and no others, in a dtype that they hold exactly.
    """
    rows, config, places = len(counts), model.config, header.places
    if config.positions is not None and max(counts) > config.positions:
        raise ValueError(f"a row has read {max(counts):,} tokens, and the model has positions for {config.positions:,}")
    shapes: LMState = model.shapes(rows)
    # caches may have any number of steps, of which their first tensor tells
    every, cached = [name for name, _ in named_leaves(shapes, "state")], _cache_names(shapes, "state")
    sizes = iter([places[name].shape[1] if name in places and len(places[name].shape) > 1 else 0 for name in cached])
    state: LMState = map_state(lambda cache: cache.padded(next(sizes)), shapes, kind=CACHES)
    expected = dict(zip(every, leaves(state), strict=True))
    expected["logits_BC"], expected["seen_BC"] = _vocabulary_tensors(model, rows)
    if missing := sorted(expected.keys() ^ places.keys()):
        raise ValueError(f"{excerpt(missing[0])} is missing or not the model's")
    for name, x in expected.items():
        place = places[name]
        narrower = x.is_floating_point() and exact_in(place.dtype, x.dtype)
        if place.shape != tuple(x.shape) or not (place.dtype is x.dtype or narrower):
            found = f"{name} is {place.dtype} of shape {excerpt(place.shape)}"
            raise ValueError(f"{found}, and not {x.dtype} of {tuple(x.shape)}")
    for part, of_part in zip(model.stateful, state, strict=True):
        # joined rows have steps in between that only others have
        most = rows * part.state_bytes(sum(counts))
        if state_nbytes(of_part) > most or (rows == 1 and state_nbytes(of_part) != most):
            raise ValueError(f"it has {state_nbytes(of_part):,} bytes where {most:,} are enough for its tokens")
    return expected


def _cache_names(state: State, name: str) -> list[str]:
    """Names of the first tensor of every cache in a state."""
    if isinstance(state, CACHES):
        return [f"{name}.{state._fields[0]}"]
    if isinstance(state, Tensor):
        return []
    fields = getattr(state, "_fields", range(len(state)))
    return [found for field, part in zip(fields, state, strict=True) for found in _cache_names(part, f"{name}.{field}")]


def _vocabulary_tensors(model: LM, rows: int) -> tuple[Tensor, Tensor]:
    """logits_BC and seen_BC of a snapshot, on the meta device."""
    dtype = model.embed.weight.dtype
    if model.config.logit_cap is not None and dtype.itemsize < 4:
        dtype = torch.float32
    shape = rows, model.config.vocab_size
    return torch.empty(shape, dtype=dtype, device="meta"), torch.empty(shape, dtype=torch.bool, device="meta")


def _stored(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor is written in."""
    return dtype if dtype is not None and x.is_floating_point() and x.itemsize > dtype.itemsize else x.dtype


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in that dtype; the largest number of a narrower one stands for all beyond it."""
    if x.dtype is dtype:
        return x
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def _tensor(name: str, place: TensorPlace, body: memoryview) -> Tensor:
    """A tensor copied out of the bytes, with checked numbers."""
    x = torch.empty(place.shape, dtype=place.dtype)
    if x.numel() == 0:
        return x
    into, flat, step = _bytes_of(x), x.view(-1), CHUNK // x.itemsize
    for start in range(0, x.numel(), step):
        end = min(start + step, x.numel())
        here = slice(start * x.itemsize, end * x.itemsize)
        into[here] = body[place.start + here.start : place.start + here.stop]
        settle_numbers(name, flat[start:end])
    return x


def _bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return x.view(-1).view(torch.uint8).numpy().data


def _checksum(parts: Sequence[memoryview]) -> str:
    value = 0
    for part in parts:
        value = crc32(part, value)
    return f"{value:08x}"
