"""The plain torch forms of fla (flash-linear-attention) in the place of our ops.

They are read from the files of the installed package: the package itself asks for a GPU when it is imported.
"""

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.bounded_memory import LIMIT


@cache
def page(name: str) -> ModuleType:
    """The file fla/ops/NAME.py as a module. ModuleNotFoundError without fla."""
    package = find_spec("fla")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("fla is not installed; `pip install -e '.[golden]'` adds it.", name="fla")
    path = Path(package.submodule_search_locations[0]) / "ops" / f"{name}.py"
    spec = spec_from_file_location(f"fla_{name.replace('/', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """[B, T, H, ...] -> [B, H, T, ...]."""
    return [x.transpose(1, 2) for x in tensors]


def linear_attn(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`normalized_linear_attention` by naive_chunk_linear_attn."""
    form = page("linear_attn/naive").naive_chunk_linear_attn
    return form(q_BTHK, k_BTHK, v_BTHV, scale=1.0, normalize=True), state


def based(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`normalized_linear_attention` of features that are not yet taken, by naive_parallel_based."""
    o_BHTV = page("based/naive").naive_parallel_based(*heads_first(q_BTHK, k_BTHK, v_BTHV))
    return o_BHTV.transpose(1, 2), state


def untouched(x: Tensor) -> Tensor:
    """The feature map of `based`, whose form takes the features itself."""
    return x


def retention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, _decay_H: Tensor, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`linear_attention` with RetNet's decays, by naive_retention, which scales the queries."""
    scale = q_BTHK.shape[-1] ** 0.5
    o_BHTV = page("retention/naive").naive_retention(*heads_first(q_BTHK * scale, k_BTHK, v_BTHV))
    return o_BHTV.transpose(1, 2), state


def simple_gla(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, state: Any, /, *, write_BTH: Tensor, **_: Any
) -> tuple[Tensor, Any]:
    """`linear_attention` with a decay per step and head, by naive_chunk_simple_gla."""
    form = page("simple_gla/naive").naive_chunk_simple_gla
    return form(q_BTHK, k_BTHK, v_BTHV * write_BTH[..., None], g_BTH, scale=1.0)[0], state


def gla(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`gated_linear_attention` by naive_recurrent_gla, which scales the queries."""
    scale = q_BTHK.shape[-1] ** 0.5
    return page("gla/naive").naive_recurrent_gla(q_BTHK * scale, k_BTHK, v_BTHV, g_BTHK)[0], state


def abc(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, s_BTHQ: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`averaged_memory` by naive_recurrent_abc, which scales the queries."""
    inputs = heads_first(q_BTHK * q_BTHK.shape[-1] ** 0.5, k_BTHK, v_BTHV, s_BTHQ.clamp(-LIMIT, LIMIT))
    return page("abc/naive").naive_recurrent_abc(*inputs)[0].transpose(1, 2), state


def gsa(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHQ: Tensor, state: Any, /, **_: Any) -> tuple[Tensor, Any]:
    """`bounded_memory` with decays, by naive_recurrent_gsa."""
    write_BTHQ = -torch.expm1(g_BTHQ)
    return page("gsa/naive").naive_recurrent_gsa(q_BTHK, k_BTHK, v_BTHV, write_BTHQ, g_BTHQ, scale=1.0)[0], state


def rwkv6(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, state: Any, /, *, bonus_HK: Tensor, **_: Any
) -> tuple[Tensor, Any]:
    """`gated_linear_attention` with a bonus, by naive_recurrent_rwkv6; the one with chunks overflows."""
    inputs = heads_first(q_BTHK, k_BTHK, v_BTHV, g_BTHK)
    o_BHTV, _state = page("rwkv6/recurrent_naive").naive_recurrent_rwkv6(*inputs, bonus_HK, scale=1.0)
    return o_BHTV.transpose(1, 2), state


def delta(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, beta_BTH: Tensor, _decay: None, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`delta_rule` without decays by delta_rule_chunkwise, which scales the queries."""
    scale = q_BTHK.shape[-1] ** 0.5
    inputs = heads_first(q_BTHK * scale, k_BTHK, v_BTHV, beta_BTH)
    return page("delta_rule/naive").delta_rule_chunkwise(*inputs)[0].transpose(1, 2), state


def gated_delta(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, beta_BTH: Tensor, g_BTH: Tensor, state: Any, /, **_: Any
) -> tuple[Tensor, Any]:
    """`delta_rule` with a decay per head, by naive_chunk_gated_delta_rule."""
    form = page("gated_delta_rule/naive").naive_chunk_gated_delta_rule
    return form(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, scale=1.0)[0], state


def dplr(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    g_BTHK: Tensor,
    state: Any,
    /,
    **_: Any,
) -> tuple[Tensor, Any]:
    """`dplr_rule` by dplr_chunkwise, which scales the queries."""
    scale = q_BTHK.shape[-1] ** 0.5
    inputs = heads_first(q_BTHK * scale, k_BTHK, v_BTHV, a_BTHK, b_BTHK, g_BTHK)
    form = page("generalized_delta_rule/dplr/naive").dplr_chunkwise
    return form(*inputs)[0].transpose(1, 2), state
