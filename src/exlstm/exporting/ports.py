"""The tensors that enter and leave an exported graph, by name."""

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

BATCH, TIME = "batch", "time"  # names of the axes of any size
EXAMPLE = {BATCH: 3, TIME: 5}  # their sizes while a graph is traced; torch takes 0 and 1 for fixed


class Port(NamedTuple):
    """A tensor that enters or leaves a graph. shape: sizes, and names of axes of any size."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def zeros(self, **sizes: int) -> Tensor:
        """Zeros, with these sizes of the named axes."""
        return torch.zeros([sizes[n] if isinstance(n, str) else n for n in self.shape], dtype=self.dtype)

    def named_axes(self) -> dict[int, str]:
        """The axes of any size, by their place."""
        return {place: name for place, name in enumerate(self.shape) if isinstance(name, str)}

    def about(self) -> dict[str, Any]:
        """Name, dtype and shape as plain values."""
        return {"name": self.name, "dtype": str(self.dtype).removeprefix("torch."), "shape": list(self.shape)}


class Ports(NamedTuple):
    """Input and output of a graph, and the tensors of its state. What leaves for `name` of the state is `name_n`."""

    x: Port
    y: Port
    state: tuple[Port, ...]

    @property
    def inputs(self) -> tuple[Port, ...]:
        """All that enters, in order."""
        return self.x, *self.state

    @property
    def outputs(self) -> tuple[Port, ...]:
        """All that leaves, in order."""
        return self.y, *(port._replace(name=f"{port.name}_n") for port in self.state)

    def to_json(self) -> dict[str, str]:
        """Input, output and state as JSON. `zero`: the number that fills a tensor before the first step."""
        state = [port.about() | {"after": f"{port.name}_n", "zero": 0} for port in self.state]
        parts: dict[str, Any] = {"input": self.x.about(), "output": self.y.about(), "state": state}
        return {name: json.dumps(part) for name, part in parts.items()}


def leaf_name(path: str) -> str:
    """The name of a tensor of a state by its path in it: "blocks.0.cell.c_BHKV" -> "blocks.0.cell.c"."""
    return path.rpartition("_")[0]
