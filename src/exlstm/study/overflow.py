"""How large may gates be? The cells' equations in the precision that is asked for, with and without stabiliser.

The definitions in `exlstm.ops` compute in float32 or wider whatever their input. Here every operation and every number
that is kept has the given precision: what a kernel would do that trusted it.

B batch  T time  K key width  V value width
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.study.pool import Report

_ROWS, _WIDTH = 4, 16
_SCALES = tuple(2.0**power for power in range(13))  # of the input gate's pre-activation, in nats
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """The largest scale of the input gate at which an mLSTM or an sLSTM of random inputs stays finite, by bisection.

    cell: "mlstm" or "slstm". dtype: of every operation. stabilised: with the running maximum m. normalised: with n.
    steps: of the sequence. The scale multiplies a standard normal pre-activation of the input gate.
    """

    cell: str
    dtype: str
    stabilised: bool
    normalised: bool
    steps: int
    seed: int = 0

    def facets(self) -> dict[str, str]:
        """What tables know it by."""
        return {
            "task": "overflow",
            "cell": self.cell,
            "dtype": self.dtype,
            "stabiliser": "on" if self.stabilised else "off",
            "normaliser": "on" if self.normalised else "off",
            "steps": str(self.steps),
        }

    def execute(self, report: Report) -> dict[str, Any]:
        """The scales that were tried, the error against float64 at each, and the largest that is finite."""
        errors: list[list[float | None]] = []
        largest = 0.0
        for scale in _SCALES:
            error = self.error(scale)
            errors.append([scale, error])
            if error is None:
                break
            largest = scale
            report(len(errors) / len(_SCALES), f"scale {scale:g}")
        low, high = largest, largest * 2
        while largest < _SCALES[-1] and high - low > 0.02 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.error(middle) is None else (middle, high)
        score = {"task": "overflow", "score": low, "finite_to_the_end": largest == _SCALES[-1], "errors": errors}
        return {"metrics": {"tests": [score]}, "seconds": 0.0}

    def error(self, scale: float) -> float | None:
        """Largest error of h, in units of the largest h; None where a number is not finite."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inputs = [draw(self.steps, _ROWS, _WIDTH) for _ in range(3)]
        i_TB, f_TB = scale * draw(self.steps, _ROWS), draw(self.steps, _ROWS) + 3
        exact = torch.stack(list(_cell(self, inputs, i_TB, f_TB, torch.float64, stabilised=True)))
        dtype = getattr(torch, self.dtype)
        found = torch.stack(list(_cell(self, inputs, i_TB, f_TB, dtype, stabilised=self.stabilised))).double()
        if not bool(found.isfinite().all()):
            return None
        return float((found - exact).abs().max() / exact.abs().max())


def _cell(what: Overflow, inputs: list[Tensor], i_TB: Tensor, f_TB: Tensor, dtype: torch.dtype, *, stabilised: bool
          ) -> Iterator[Tensor]:  # fmt: skip
    """h of every step, all of it in `dtype`. Without a stabiliser m is 0: gates are what they are."""
    a_TBK, b_TBK, v_TBV = (x.to(dtype) for x in inputs)
    log_i_TB, log_f_TB = i_TB.to(dtype), logsigmoid(f_TB.to(dtype))
    B, K = a_TBK.shape[1:]
    matrix = what.cell == "mlstm"
    c = torch.zeros(B, K, K if matrix else 1, dtype=dtype)
    n = torch.zeros(B, K, dtype=dtype)
    m_B = torch.full((B,), -math.inf if stabilised else 0.0, dtype=dtype)
    for t in range(len(i_TB)):
        new_B = torch.maximum(log_f_TB[t] + m_B, log_i_TB[t]) if stabilised else m_B
        decay_B1 = torch.exp(log_f_TB[t] + m_B - new_B if stabilised else log_f_TB[t])[:, None]
        write_B1 = torch.exp(log_i_TB[t] - new_B)[:, None]
        m_B = new_B
        if matrix:
            q_BK, k_BK = a_TBK[t] * K**-0.5, b_TBK[t]
            c = decay_B1[..., None] * c + (write_B1 * k_BK)[..., None] * v_TBV[t][:, None]
            n = decay_B1 * n + write_B1 * k_BK
            h = (q_BK[:, None] @ c)[:, 0]
            floor_B1 = torch.exp(-m_B)[:, None]
            norm_B1 = torch.maximum((q_BK * n).sum(1, keepdim=True).abs(), floor_B1) + _EPS
            yield h / norm_B1 if what.normalised else h / floor_B1
        else:
            c = decay_B1[..., None] * c + (write_B1 * torch.tanh(v_TBV[t]))[..., None]
            n = decay_B1 * n + write_B1
            h = torch.sigmoid(a_TBK[t]) * c[..., 0]
            yield h / n if what.normalised else h * torch.exp(m_B)[:, None]
