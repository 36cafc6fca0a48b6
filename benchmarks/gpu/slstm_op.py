"""The sLSTM op, microseconds per step, beside flashrnn's Triton kernel and cuDNN's LSTM behind torch.nn.LSTM.

flashrnn takes pre-activations, as the op does ("exlstm"). nn.LSTM projects its input itself, D to 4 D, and its
recurrent weights are dense: beside it stands "exlstm with projection", with the same input and the same projection.

The least that the op takes, in bfloat16: 4 V numbers read and V written per head and step, R once; backward, 4 V and V
read, 4 V written. FLOPs: 8 V^2 per head and step for h R, three times as many with the backward. It is a chain of T
steps: no implementation comes near its roofline.
"""

from collections.abc import Iterator
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from accuracy import DRAWS, assert_as_accurate
from benchmarks.gpu.calls import DIRECTIONS, call, same_rows
from benchmarks.gpu.work import Cost, Setup, Variant, Work, finite
from benchmarks.harness import Run
from exlstm.ops.slstm import SLSTMState, slstm

B, T = 16, 1024
SHAPES = {"h12v64": (12, 64), "h6v128": (6, 128)}
TINY = {"h2v8": (2, 8)}
SURE = 32  # steps after which a rounding is not yet another sequence


def works(setup: Setup) -> Iterator[Work]:
    """Yields both shapes, without gradients and with them."""
    rows, steps = (2, 4) if setup.tiny else (B, T)
    for shape, (H, V) in (TINY if setup.tiny else SHAPES).items():
        for direction, both in DIRECTIONS.items():
            inputs = Inputs(rows, steps, H, V, setup)
            about = f"batch {rows}, {steps} steps, {H} heads of {V}, {str(setup.dtype)[6:]}"
            variants = {
                "exlstm": Variant(build=partial(inputs.op, both), check=partial(inputs.check, both),
                                  cost=cost(rows, steps, H, V, both)),
                "exlstm with projection": Variant(build=partial(inputs.projected, both),
                                                  check=partial(inputs.check_rule, both)),
                "flashrnn triton_fused": Variant(build=partial(inputs.flashrnn, both),
                                                 check=finite if both else inputs.check_flashrnn),
                "nn.LSTM": Variant(build=partial(inputs.lstm, both)),
            }  # fmt: skip
            yield Work(name=f"{shape}_{direction}", about=f"{about}, {direction.replace('_', ' and ')}",
                       variants=variants, steps=steps)  # fmt: skip


class Inputs:
    """Inputs, the same for all programs, made on the card at first use, and the programs on them."""

    def __init__(self, B: int, T: int, H: int, V: int, setup: Setup) -> None:
        self.size, self.setup = (B, T, H, V), setup

    def normal(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator(self.setup.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.setup.device).to(self.setup.dtype)

    @cached_property
    def x_BTHGV(self) -> Tensor:
        B, T, H, V = self.size
        return self.normal(B, T, H, 4, V, seed=0)

    @cached_property
    def r_HKGV(self) -> Tensor:
        _, _, H, V = self.size
        return self.normal(H, V, 4, V, seed=1) / V**0.5 / 2

    @cached_property
    def x_BTD(self) -> Tensor:
        B, T, H, V = self.size
        return self.normal(B, T, H * V, seed=2)

    def grad(self, *shape: int) -> Tensor:
        return self.normal(*shape, seed=3)

    def op(self, both: bool) -> Run:
        """Our op from pre-activations."""
        op = partial(slstm, backend="triton")
        return call(op, [self.x_BTHGV, self.r_HKGV], partial(self.grad, *self.size) if both else None)

    def projected(self, both: bool) -> Run:
        """Our op behind a dense projection, as nn.LSTM has one."""
        B, T, H, V = self.size
        w_JD, b_J = 0.1 * self.normal(4 * H * V, H * V, seed=4), 0.1 * self.normal(4 * H * V, seed=5)

        def op(x_BTD: Tensor, w_JD: Tensor, b_J: Tensor, r_HKGV: Tensor) -> Tensor:
            x_BTHGV = linear(x_BTD, w_JD, b_J).view(B, T, H, 4, V)
            return slstm(x_BTHGV, r_HKGV, backend="triton")[0]

        return call(op, [self.x_BTD, w_JD, b_J, self.r_HKGV], partial(self.grad, *self.size) if both else None)

    def flashrnn(self, both: bool) -> Run:
        """Its states are [T, (h, c, n, m), B, H, V]; the gradient that comes in is that of h."""
        from flashrnn.flashrnn.triton_fused.fwbw import slstm_tr_fwbw

        B, T, H, V = self.size
        zero = torch.zeros(4, B, H, V, device=self.setup.device, dtype=self.setup.dtype)
        inputs = [
            zero, self.x_BTHGV.transpose(2, 3).contiguous(), self.r_HKGV.permute(2, 0, 3, 1).contiguous(),
            torch.zeros(4, H, V, device=self.setup.device, dtype=self.setup.dtype),
        ]  # fmt: skip
        dtype = str(self.setup.dtype)[6:]

        def op(zero: Tensor, x: Tensor, r: Tensor, b: Tensor) -> Tensor:
            return slstm_tr_fwbw(zero, x, r, b, None, dtype)[0][:, 0]

        return call(op, inputs, partial(self.grad, T, B, H, V) if both else None)

    def lstm(self, both: bool) -> Run:
        """One layer of cuDNN's LSTM."""
        B, T, H, V = self.size
        lstm = nn.LSTM(H * V, H * V, batch_first=True).to(self.setup.device, self.setup.dtype)

        if not both:
            return call(lstm, [self.x_BTD], None)
        # its parameters require gradients already
        x_BTD, grad_BTD = self.x_BTD.clone().requires_grad_(), self.grad(B, T, H * V)
        return lambda: torch.autograd.grad(lstm(x_BTD)[0], [x_BTD, *lstm.parameters()], grad_BTD)

    def check_rule(self, both: bool, found: Any) -> dict[str, Any]:
        """The accuracy rule."""
        return finite(found) | {"rule": rule(self.size[3], self.setup)}

    def check(self, both: bool, found: Any) -> dict[str, Any]:
        """The accuracy rule, and the first steps of the whole output against the definition."""
        return self.check_rule(both, found) | ({} if both else self.first_steps(found))

    def check_flashrnn(self, h_TBHV: Tensor) -> dict[str, float]:
        """Checks that flashrnn computes the sLSTM."""
        return self.first_steps(h_TBHV.transpose(0, 1))

    def first_steps(self, h_BTHV: Tensor) -> dict[str, float]:
        with torch.no_grad():
            want_BTHV = slstm(self.x_BTHGV[:, :SURE].float(), self.r_HKGV.float(), backend="recurrent")[0]
        return same_rows(h_BTHV[:, :SURE], want_BTHV)


def cost(B: int, T: int, H: int, V: int, both: bool) -> Cost:
    """The cost, as the module's docstring counts it."""
    numbers = B * T * H * V * (14 if both else 5) + 4 * H * V * V * (3 if both else 1)
    return Cost(2 * numbers, 8 * V * V * B * T * H * (3 if both else 1))


@cache
def rule(V: int, setup: Setup) -> str:
    """The accuracy rule of the tests on a few rows and steps, in the dtype and in float32.

    In bfloat16 every number is judged with bfloat16's digits: the products take operands with no more.
    """
    normal = partial(torch.randn, generator=torch.Generator(setup.device).manual_seed(1), device=setup.device)

    def few(dtype: torch.dtype) -> list[Tensor]:
        x_BTHGV, r_HKGV = normal(3, 6 if setup.tiny else 24, 2, 4, V), normal(2, V, 4, V) / V**0.5 / 2
        state = [normal(3, 2, V).abs() + 0.5 for _ in range(4)]
        return [x.to(dtype) for x in (x_BTHGV, r_HKGV, *state)]

    for dtype in dict.fromkeys((setup.dtype, torch.float32)):
        fast, definition = (partial(narrow, backend) for backend in ("triton", "recurrent"))
        assert_as_accurate(fast, definition, [few(dtype) for _ in DRAWS], names=("x", "R", "h", "c", "n", "m"))
    return "outputs, states and gradients within 2 x the plain form's error"


def narrow(backend: str, *x: Tensor) -> tuple[Tensor, SLSTMState]:
    """The op on a state in the inputs' dtype, and its state in that dtype again."""
    state = SLSTMState(*(y if y.dtype == torch.float64 else y.float() for y in x[2:]))
    h_BTHV, after = slstm(x[0], x[1], state, backend=backend)
    return h_BTHV, SLSTMState(*(y.to(x[0].dtype) for y in after))
