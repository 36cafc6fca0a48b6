"""Fingerprints of weights: a state is valid for the weights that made it, and for no others."""

import hashlib
import json
from itertools import chain
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from exlstm.models.states.protocol import StatefulModel
from exlstm.nn.fields import without_defaults

SAMPLES = 1024  # numbers of each tensor that are hashed: a 7B takes well under a second


def fingerprint(model: StatefulModel) -> str:
    """SHA-256 of the architecture and of the weights, in 64 hexadecimal digits.

    Hashed are name, dtype, shape of every tensor, and numbers at equal distances. Training, another seed, rounding and
    quantization change it; a change of only numbers in between does not.
    """
    digest = hashlib.sha256(json.dumps(without_defaults(model.config), sort_keys=True).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(_sampled_bytes(x))
    return digest.hexdigest()


class Weights:
    """Identity of a model's weights at one moment, to compare with those of a model later."""

    def __init__(self, model: StatefulModel) -> None:
        self._model = ref(model)
        self._marks = [(ref(x), x.data_ptr(), _version(x)) for x in _tensors(model)]
        self._fingerprint: str | None = None

    def unchanged(self) -> bool:
        """True if the model still has the same tensors at the same addresses, with no write that torch counted."""
        model = self._model()
        if model is None:
            return False
        now = list(_tensors(model))
        return len(now) == len(self._marks) and all(
            tensor() is x and address == x.data_ptr() and version == _version(x)
            for x, (tensor, address, version) in zip(now, self._marks, strict=True)
        )

    def fingerprint(self) -> str | None:
        """Fingerprint of these weights; None if the model changed before the first call."""
        model = self._model()
        if self._fingerprint is None and model is not None and self.unchanged():
            self._fingerprint = fingerprint(model)
        return self._fingerprint

    def match(self, model: StatefulModel) -> bool:
        """True if `model` has these weights now: the same tensors, or equal ones by fingerprint."""
        if self._model() is model and self.unchanged():
            return True
        return self.fingerprint() is not None and self.fingerprint() == weights_of(model).fingerprint()


_weights: WeakKeyDictionary[StatefulModel, Weights] = WeakKeyDictionary()


def weights_of(model: StatefulModel) -> Weights:
    """The model's weights now; the same object as long as they do not change."""
    found = _weights.get(model)
    if found is None or not found.unchanged():
        found = _weights[model] = Weights(model)
    return found


def _tensors(model: StatefulModel) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _sampled_bytes(x: Tensor) -> bytes:
    flat = x.detach().reshape(-1)
    every = max(1, flat.numel() // SAMPLES)
    found: bytes = flat[::every].contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return found
