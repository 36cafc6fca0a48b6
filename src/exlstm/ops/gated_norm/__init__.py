"""How an mLSTM layer ends: every head is normalized, and the result is gated (Beck et al. 2024, Figure 11).

    n = (h - mean) / sqrt(variance + eps)       over each head; of an RMS norm h / sqrt(mean(h^2) + eps)
    y = (g n + b + s c) a(z)                    a = silu, or sigmoid as in xLSTM-7B; b a bias and s c the skip, if any

With the gate first, as in Mamba-2, h a(z) is normalized in place of h, and y = g n + b.

B batch  T time  H heads  V head width  E heads merged (H V)
"""

from torch import Tensor

from exlstm.ops.gated_norm.reference import GateActivation, NormOptions, gated_norm_torch
from exlstm.ops.norm import Norm, is_small_inference
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose


def gated_norm(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, /, *, skip_E: Tensor | None = None, c_BTE: Tensor | None = None,
    bias_E: Tensor | None = None, activation: GateActivation = "silu", norm: Norm = "layer", gate_first: bool = False,
    eps: float = 1e-5, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """(head_norm(h) * gain + bias + skip * c) * activation(z); gate_first: head_norm(h activation(z)) * gain + bias.

    h: [B, T, H, V] output of the cell. gain: [H V]. z: [B, T, H V] pre-activations of the gate. skip: [H V] and
    c: [B, T, H V], or None for both: no skip connection. bias: [H V], or None.
    backend: "auto", "numba" (float32 on a CPU: one pass forward and one backward) or "torch" (any device and dtype).

    Returns y [B, T, H V]. Statistics are float32 or wider.
    Raises ValueError for shapes that do not fit, an unknown activation and a backend that cannot run.
    """
    B, T, H, V = h_BTHV.shape
    if (skip_E is None) != (c_BTE is None):
        raise ValueError("skip and c come together: give both or neither.")
    if gate_first and skip_E is not None:
        raise ValueError("gate_first is True and there is a skip; a skip is added after the norm, before its gate.")
    for name, x, shape in (
        ("gain", gain_E, (H * V,)), ("z", z_BTE, (B, T, H * V)), ("bias", bias_E, (H * V,)),
        ("skip", skip_E, (H * V,)), ("c", c_BTE, (B, T, H * V)),
    ):  # fmt: skip
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; with h {tuple(h_BTHV.shape)} it must be {shape}.")
    if activation not in ("silu", "sigmoid"):
        raise ValueError(f"activation is {activation!r}; it must be 'silu' or 'sigmoid'.")
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm is {norm!r}; it must be 'layer' or 'rms'.")
    tensors = (h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
    small = is_small_inference(tensors)
    obstacle = None if small else cpu_kernel_obstacle(tensors, float32_only=True)
    run = gated_norm_torch
    if choose("gated_norm", backend, [("numba", obstacle), ("torch", None)], tensors) == "numba":
        if small:
            from exlstm.ops.gated_norm.numba import gated_norm_small as run
        else:
            from exlstm.ops.gated_norm.numba import gated_norm_numba as run
    return run(*tensors, NormOptions(activation, norm, gate_first, eps))
