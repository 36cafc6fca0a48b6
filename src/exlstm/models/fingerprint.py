"""Whose state is this? A state means something to the weights that made it, and to no others."""

import hashlib
import json
from itertools import chain
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from exlstm.models.lm import LM
from exlstm.nn.fields import without_defaults

SAMPLES = 1024  # numbers of each tensor that are looked at: a 7B takes well under a second


def fingerprint(model: LM) -> str:
    """64 hexadecimal digits that tell this architecture with these weights from others.

    Of every tensor: name, dtype, shape, and numbers at equal distances. A change that touches only numbers in between
    is not seen; training, another seed, rounding and quantisation are.
    """
    digest = hashlib.sha256(json.dumps(without_defaults(model.config), sort_keys=True).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(_some_bytes(x))
    return digest.hexdigest()


class Weights:
    """The weights that a model has at this moment: can tell later whether some model has the same."""

    def __init__(self, model: LM) -> None:
        self._model = ref(model)
        self._marks = [(ref(x), x.data_ptr(), _version(x)) for x in _tensors(model)]
        self._known: str | None = None

    def unchanged(self) -> bool:
        """Whether the model still has them, as far as torch knows: in the same tensors, not written to."""
        model = self._model()
        if model is None:
            return False
        now = list(_tensors(model))
        return len(now) == len(self._marks) and all(
            held() is x and place == x.data_ptr() and version == _version(x)
            for x, (held, place, version) in zip(now, self._marks, strict=True)
        )

    def fingerprint(self) -> str | None:
        """Of the model as it was; None if it has changed before anybody asked."""
        model = self._model()
        if self._known is None and model is not None and self.unchanged():
            self._known = fingerprint(model)
        return self._known

    def are_those_of(self, model: LM) -> bool:
        """Whether `model` has these weights now: the same tensors, or a copy of them."""
        if self._model() is model and self.unchanged():
            return True
        return self.fingerprint() is not None and self.fingerprint() == weights_of(model).fingerprint()


_weights: WeakKeyDictionary[LM, Weights] = WeakKeyDictionary()


def weights_of(model: LM) -> Weights:
    """What the model has now; the same object as long as that does not change."""
    found = _weights.get(model)
    if found is None or not found.unchanged():
        found = _weights[model] = Weights(model)
    return found


def _tensors(model: LM) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _some_bytes(x: Tensor) -> bytes:
    flat = x.detach().reshape(-1)
    every = max(1, flat.numel() // SAMPLES)
    found: bytes = flat[::every].contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return found
