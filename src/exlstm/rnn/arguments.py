"""Checks of what a recurrent net is given, with the words of torch.nn.LSTM's errors, and a remedy.

N layers and directions  B batch  T time  D input width  V width of h  S width of c
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.arguments import INTEGERS, described, exact_in
from exlstm.ops.common import wide_dtype
from exlstm.runtime.tracing import tracer

Hidden = tuple[Tensor, Tensor]


class ShapeError(ValueError, RuntimeError):
    """A tensor that does not fit. torch.nn.LSTM raises RuntimeError for some of these, and exlstm ValueError."""


def check_type(name: str, given: Any, kind: type) -> None:
    """TypeError, in torch's words, unless `given` is of this type; True and False are no numbers."""
    if not isinstance(given, kind) or (kind is int and isinstance(given, bool)):
        raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(given).__name__}")


def check_positive(name: str, given: Any) -> None:
    """TypeError unless `given` is a whole number, ValueError unless it is above zero."""
    check_type(name, given, int)
    if given <= 0:
        raise ValueError(f"{name} must be greater than zero, and is {given}")


def check_dropout(dropout: Any, num_layers: int) -> None:
    """ValueError for a dropout that is no share, and a warning for one that has no effect."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ValueError(
            f"dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"and is {dropout!r}"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=5,
        )


def check_projection(proj_size: Any, hidden_size: int) -> None:
    """TypeError or ValueError for a projection of h that is not narrower than h."""
    check_type("proj_size", proj_size, int)
    if proj_size < 0:
        raise ValueError(f"proj_size should be a positive integer or zero to disable projections, and is {proj_size}")
    if proj_size >= hidden_size:
        raise ValueError(f"proj_size has to be smaller than hidden_size, {hidden_size}, and is {proj_size}")


def check_input(x: Tensor, input_size: int, weight: Tensor) -> None:
    """ShapeError for an input of another dtype, device or width than the weights'."""
    if x.dtype is not weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ShapeError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.device != weight.device:
        raise ShapeError(
            f"Input and parameter tensors are not at the same device, found input tensor at {x.device} and parameter "
            f"tensor at {weight.device}"
        )
    if x.shape[-1] != input_size:
        raise ShapeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {x.shape[-1]}")


def checked_hidden(hx: Any, batched: bool) -> Hidden:
    """The pair (h, c), [N, B, ...] each. Unbatched ones get a batch of one."""
    if not isinstance(hx, (tuple, list, Sequence)) or len(hx) != 2 or not all(isinstance(x, Tensor) for x in hx):
        found = f"{len(hx)} entries" if isinstance(hx, Sequence) else f"a {type(hx).__name__}"
        raise ShapeError(f"hx is {found}; it must be the pair (h_n, c_n) of tensors of an earlier call, or None.")
    h, c = hx
    needed = 3 if batched else 2
    if h.dim() != needed or c.dim() != needed:
        kind = "batched 3-D" if batched else "unbatched 2-D"
        raise ShapeError(
            f"For {kind} input, hx and cx should also be {needed}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
        )
    return (h, c) if batched else (h.unsqueeze(1), c.unsqueeze(1))


def check_hidden(h_NBV: Tensor, c_NBS: Tensor, expected: Sequence[tuple[int, ...]], x: Tensor) -> None:
    """ShapeError for a state of another shape, device or of a wider dtype than the input asks for."""
    wide = wide_dtype(x.dtype)
    for place, (part, shape) in enumerate(zip((h_NBV, c_NBS), expected, strict=True)):
        if part.shape == shape and part.device == x.device and part.dtype is wide:
            continue
        if part.shape != shape:
            remedy = "; c_n packs the whole memory, so take zero_state(batch) or None for an empty one" if place else ""
            raise ShapeError(f"Expected hidden[{place}] size {shape}, got {list(part.shape)}{remedy}")
        if part.device != x.device:
            raise ShapeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{x.device} and hidden tensor at {part.device}"
            )
        if not exact_in(part.dtype, wide):
            raise ShapeError(
                f"hidden[{place}] is {part.dtype}, and an input of {x.dtype} has a state of {wide}; "
                "convert the state, or pass None."
            )


def checked_lengths(lengths: Any, x_BTD: Tensor) -> Tensor:
    """Lengths as integers [B] on the device of the input. ValueError for what does not fit, or leaves [0, T]."""
    B, T, _ = x_BTD.shape
    given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    if given.dim() == 0:
        given = given[None]
    if given.dtype not in INTEGERS or given.shape != (B,):
        raise ShapeError(f"lengths is {described(given)}; it must hold an integer for each of the {B} rows.")
    if given.is_cpu and tracer((given,)) is None and (wrong := [n for n in given.tolist() if not 0 <= n <= T]):
        raise ShapeError(f"lengths holds {wrong[0]}; it must lie between 0 and the {T} steps of the input.")
    return given.to(x_BTD.device)


def checked_reset(reset: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A reset of this shape. ShapeError for another one, and for what is not bool."""
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool or reset.shape != shape:
        raise ShapeError(f"reset is {described(reset)}; it must be torch.bool of shape {shape}, as the input's steps.")
    return reset.to(device)
