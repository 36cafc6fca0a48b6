"""What recurrent nets and cells share: weights under torch's names, their initial values, and the state's sizes.

N layers and directions  B batch  V width of h  S width of c
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exlstm.ops.common import wide_dtype
from exlstm.rnn.arguments import Hidden, check_positive, check_type
from exlstm.rnn.memory import Memory
from exlstm.runtime.internals import held_tensors


class RecurrentWeights(nn.Module):
    """A module with the weights of some layers and directions; its subclasses have the call."""

    mode: ClassVar[str]
    input_size: int
    hidden_size: int
    bias: bool
    memory: Memory

    def __init__(self, input_size: int, hidden_size: int, bias: bool, backend: str) -> None:
        super().__init__()
        check_type("bias", bias, bool)
        check_positive("input_size", input_size)
        check_positive("hidden_size", hidden_size)
        self.input_size, self.hidden_size, self.bias, self.backend = input_size, hidden_size, bias, backend

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """Suffix of the weights' names, width of the input, and index of the layer, for every layer and direction."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """The number of layers."""
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        """The width of h."""
        raise NotImplementedError

    def register(self, memory: Memory, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Makes the weights, and fills them."""
        self.memory = memory
        for suffix, inputs, _ in self.layers():
            for stem, shape in memory.shapes(inputs, self.bias).items():
                # a plain attribute, so that a parameter can be tied, replaced and reparametrized as torch's
                setattr(self, stem + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.names = self.names_by_layer()
        self.reset_parameters()

    def names_by_layer(self) -> list[tuple[dict[str, str], int]]:
        """For every layer and direction: the names of its weights by what they are, and the index of the layer."""
        return [
            ({stem: stem + suffix for stem in self.memory.shapes(inputs, self.bias)}, index)
            for suffix, inputs, index in self.layers()
        ]

    def weights(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The weights of a layer and direction."""
        # usually they are parameters, which torch's modules take four times as long to find
        own, _ = held_tensors(self)
        return {stem: own[name] if name in own else getattr(self, name) for stem, name in names.items()}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        for names, index in self.names:
            fills = self.memory.fills(index, self.depth)
            for stem, name in names.items():
                fills[stem](getattr(self, name))

    @property
    def weight(self) -> Tensor:
        """A weight, for the dtype and the device of all."""
        # of all parameters the first one, which `parameters()` takes longer to find than a small step takes
        first: Tensor = getattr(self, next(iter(self.names[0][0].values())))
        return first

    @property
    def state_size(self) -> int:
        """The width of c."""
        return self.memory.state_size

    def zeros(self, *leading: int) -> Hidden:
        """An empty state (h, c) with these axes before the widths, float32 or wider."""
        weight = self.weight
        kind: Any = {"dtype": wide_dtype(weight.dtype), "device": weight.device}
        return torch.zeros(*leading, self.output_size, **kind), torch.zeros(*leading, self.state_size, **kind)

    def unpack_state(self, hx: Hidden) -> Any:
        """The parts of a state by name, a NamedTuple: h, and what c holds."""
        return self.memory.unpack(*hx)

    def pack_state(self, parts: Any) -> Hidden:
        """The inverse of `unpack_state`."""
        return self.memory.pack(parts)
