"""Every op that takes resets, lengths and a state, in all of its backends for a CPU, behind one call.

    outputs, state = op.run(inputs, state, reset_BT=..., lengths_B=...)

The first input is [B, T, ...], as are those named in `ragged`; the others are weights. Inputs are drawn in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from exlstm.ops.attention import AttentionState, WindowState, attention
from exlstm.ops.conv import ConvState, causal_conv
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.ops.selective_scan import SelectiveScanState, selective_scan
from exlstm.ops.slstm import SLSTMState, slstm


class Op(NamedTuple):
    """The call of an op and the sizes of its arguments, without B and T for `ragged`, and without B for the state."""

    run: Callable[..., tuple[torch.Tensor, Any]]
    kind: type
    ragged: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...]
    state: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def make(self, B=3, T=7, *, dtype=torch.float32, seed=0):
        """Random inputs and a random state."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        inputs = [draw(B, T, *shape) for shape in self.ragged] + [draw(*shape) for shape in self.weights]
        parts = [draw(B, *shape) for shape in self.state]
        if self.kind is AttentionState:
            S = parts[0].shape[1]
            return inputs, AttentionState(*parts, torch.arange(S).expand(B, S).clone(), torch.full((B,), S))
        if self.kind is WindowState:
            S = parts[0].shape[1]
            return inputs, WindowState(*parts, torch.arange(B) % 2 + S)
        if self.kind is SLSTMState:
            parts[2] = parts[2].abs() + 0.5
        return inputs, self.kind(*parts)


def slstm_of(mixing, **options):
    """The sLSTM, with R or without."""
    sizes = (2, 4, 5), (2, 5)
    if mixing:
        run = lambda inputs, state, **rows: slstm(*inputs, state, **rows, **options)  # noqa: E731
        return Op(run, SLSTMState, (sizes[0],), ((2, 5, 4, 5),), 4 * (sizes[1],))
    run = lambda inputs, state, **rows: slstm(inputs[0], None, state, **rows, **options)  # noqa: E731
    return Op(run, SLSTMState, (sizes[0],), (), 4 * (sizes[1],))


def mlstm_of(**options):
    """The mLSTM."""
    run = lambda inputs, state, **rows: mlstm(*inputs, state, **rows, **options)  # noqa: E731
    return Op(run, MLSTMState, ((2, 4), (2, 4), (2, 3), (2,), (2,)), (), ((2, 4, 3), (2, 4), (2,)))


def conv_of(**options):
    """The convolution with its activation."""
    run = lambda inputs, state, **rows: causal_conv(*inputs, state, activation="silu", **rows, **options)  # noqa: E731
    return Op(run, ConvState, ((6,),), ((6, 4), (6,)), ((3, 6),))


def attention_of(**options):
    """Attention with fewer heads for keys."""
    run = lambda inputs, state, **rows: attention(*inputs, state, **rows, **options)  # noqa: E731
    window = options.get("window")
    kind, S = (AttentionState, 5) if window is None else (WindowState, window - 1)
    return Op(run, kind, ((4, 6), (2, 6), (2, 6)), (), ((S, 2, 6), (S, 2, 6)))


def selective_scan_of(**options):
    """The selective scan with step sizes by the softplus."""

    def run(inputs, state, **rows):
        x, dt, b, c, a, skip = inputs
        return selective_scan(x, dt, a, b, c, skip, state, softplus=True, **rows, **options)

    return Op(run, SelectiveScanState, ((5,), (5,), (3,), (3,)), ((5, 3), (5,)), ((5, 3),))


FLOAT32, FLOAT64 = (torch.float32,), (torch.float64,)
OPS = {
    "slstm numba": slstm_of(True, backend="numba")._replace(dtypes=FLOAT32),
    "slstm numba no mixing": slstm_of(False, backend="numba")._replace(dtypes=FLOAT32),
    "slstm recurrent": slstm_of(True, backend="recurrent"),
    "slstm silu": slstm_of(True, cell_activation="silu"),
    "slstm no normaliser": slstm_of(True, backend="recurrent", input_gate="sigmoid", normalize=False),
    "mlstm numba": mlstm_of(backend="numba")._replace(dtypes=FLOAT32),
    "mlstm numba gates": mlstm_of(backend="numba", input_gate="softplus", forget_gate="exp")._replace(dtypes=FLOAT32),
    "mlstm chunkwise": mlstm_of(backend="chunkwise", chunk_len=4),
    "mlstm recurrent": mlstm_of(backend="recurrent", input_gate="relu"),
    "conv numba": conv_of(backend="numba")._replace(dtypes=FLOAT32),
    "conv torch": conv_of(backend="torch"),
    "selective_scan numba": selective_scan_of(backend="numba")._replace(dtypes=FLOAT32),
    "selective_scan chunkwise": selective_scan_of(backend="chunkwise"),
    "lstm": Op(
        lambda inputs, state, **rows: lstm(*inputs, state, **rows), LSTMState, ((4,),), ((20, 4), (20, 5), (20,)),
        ((5,), (5,)),
    ),
    "attention": attention_of(),
    "attention window": attention_of(window=3),
}  # fmt: skip
TRITON = {
    "slstm triton": slstm_of(True, backend="triton")._replace(dtypes=FLOAT32),
    "slstm triton_steps": slstm_of(True, backend="triton_steps")._replace(dtypes=FLOAT32),
    "slstm triton no mixing": slstm_of(False, backend="triton")._replace(dtypes=FLOAT32),
    "mlstm triton": mlstm_of(backend="triton")._replace(dtypes=FLOAT32),
    "selective_scan triton": selective_scan_of(backend="triton")._replace(dtypes=FLOAT32),
}


def results(op, inputs, state, *, seed=9, **rows):
    """The output, every tensor of the state, and the gradients of all inputs and of the state before."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    state = type(state)(*(s.detach().clone().requires_grad_(s.is_floating_point()) for s in state))
    y, after = op.run(inputs, state, **rows)
    generator = torch.Generator().manual_seed(seed)
    outputs = [out for out in (y, *after) if out.requires_grad]
    weights = [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
    leaves = [*inputs, *(s for s in state if s.requires_grad)]
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    names = [f"gradient of input {n}" for n in range(len(inputs))] + [
        f"gradient of {name}" for name, s in zip(state._fields, state, strict=True) if s.requires_grad
    ]
    found = {"output": y, **after._asdict()} | dict(zip(names, gradients, strict=True))
    return {name: x.detach() for name, x in found.items() if x is not None}
