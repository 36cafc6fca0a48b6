"""The mLSTM on a GPU: Triton kernels over chunks, with the full gradient, any length and any widths.

- gates: three small passes over the gates alone, for the stabilizer and all sums of log f
- states: C and n before every chunk, one tile after another
- outputs: all tiles of all chunks at once

The backward goes the other way: gradients of the states, then of q, k, v and the gates, all of a tile at once. q, k,
v, h, the gates and a few numbers per step are saved for it; states are computed again. States at the borders of chunks
are stored in the inputs' dtype, in which alone they enter products, and summed in float32.

B batch  T time  H heads  K key width  V value width  S sequences (rows, or pieces of one)  P time in whole tiles
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.mlstm.reference import InputGate, MLSTMState, log_gates
from exlstm.ops.mlstm.triton.backward import gradient_kernel, mass_kernel, state_gradient_kernel
from exlstm.ops.mlstm.triton.config import Config, Launch, config_of, work_of
from exlstm.ops.mlstm.triton.forward import output_kernel, state_kernel
from exlstm.ops.mlstm.triton.gates import NUM_PLANES, sum_kernel, unit_kernel, unit_scan
from exlstm.ops.mlstm.triton.tiles import Constants, Memory, Sequences
from exlstm.runtime.gpu.operator import block_size, operator
from exlstm.runtime.gpu.tiles import rows

SCAN_TILES = 256  # tiles that a program of the scan over tiles takes at once


class Layout(NamedTuple):
    """Which tiles belong to which sequence."""

    sequences: Sequences
    packed: bool
    number: int  # of sequences
    tiles: int  # of one row
    all_tiles: int  # an upper bound if packed: how many there are would have to be asked of the device


def layout_of(x_BTHK: Tensor, borders: Tensor | None, tile: int, parts: int) -> Layout:
    """Whole chunks of `parts` tiles for each sequence."""
    (B, T), L = x_BTHK.shape[:2], tile * parts
    if borders is None:
        tiles = -(-T // L) * parts
        # tensors that no kernel reads
        return Layout(Sequences(x_BTHK, x_BTHK, x_BTHK), False, B, tiles, B * tiles)
    number = borders.shape[0] - 1
    all_tiles = (T // L + number) * parts
    chunks_S = ((borders.diff() + (L - 1)) // L).clamp(min=1)
    firsts = torch.nn.functional.pad((chunks_S * parts).cumsum(0), (1, 0))
    numbered = torch.arange(all_tiles, device=borders.device)
    owners = torch.searchsorted(firsts[1:], numbered, right=True).clamp(max=number - 1)
    return Layout(Sequences(borders, firsts, owners), True, number, 0, all_tiles)


class Tiling(NamedTuple):
    """How the work of a call is cut, for all its kernels."""

    layout: Layout
    config: Config
    T: int
    H: int
    K: int
    V: int
    precision: str

    @property
    def sizes(self) -> tuple[Any, ...]:
        """The arguments `sequences, T, N, G, H`, which every kernel has."""
        return self.layout.sequences, self.T, self.layout.tiles, self.layout.all_tiles, self.H

    def constants(self, launch: Launch) -> Constants:
        """What a kernel is compiled for."""
        numbers = self.config.tile, self.K, self.V, launch.block_k, launch.block_v
        return Constants(*map(tl.constexpr, (*numbers, self.layout.packed, self.precision)))

    def grid(self, launch: Launch) -> tuple[int, int, int]:
        """The grid with a program for every sequence, head and block of the state."""
        return self.layout.number * self.H, -(-self.K // launch.block_k), -(-self.V // launch.block_v)


def tiling_of(q_BTHK: Tensor, v_BTHV: Tensor, borders: Tensor | None, chunk_len: int, config: Config | None = None
              ) -> Tiling:  # fmt: skip
    """The tiling of these inputs; chunk_len: 0 for the fastest. config: None for that of `config_of`."""
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[3]
    if config is None:
        merged = H * (B if borders is None else borders.shape[0] - 1)
        config = config_of(work_of(q_BTHK.dtype, K, V, merged), q_BTHK.device, chunk_len)
    exact = q_BTHK.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    layout = layout_of(q_BTHK, borders, config.tile, config.parts)
    return Tiling(layout, config, T, H, K, V, "ieee" if exact else "tf32")


def options(launch: Launch) -> dict[str, int]:
    """Triton's options of a launch."""
    return {"num_warps": launch.warps, "num_stages": launch.stages}


def without_gaps(x: Tensor) -> Tensor:
    """`x` with a last axis of stride 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


def scan_gates(log_i_BTH: Tensor, log_f_BTH: Tensor, m_SH: Tensor, reset_BT: Tensor | None, tiling: Tiling,
               stabilize: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The planes of the gates, [NUM_PLANES, H, P], and m after the last step."""
    layout, tile = tiling.layout, tiling.config.tile
    planes = log_i_BTH.new_empty(NUM_PLANES, tiling.H, layout.all_tiles * tile)
    maps, last_SH = log_i_BTH.new_empty(3, tiling.H, layout.all_tiles, dtype=torch.float64), torch.zeros_like(m_SH)
    sum_kernel[layout.all_tiles, tiling.H](
        log_i_BTH.contiguous(), log_f_BTH.contiguous(), m_SH if reset_BT is None else reset_BT.contiguous(), planes,
        maps, *tiling.sizes, TILE=tile, PACKED=layout.packed, RESETS=reset_BT is not None,
    )  # fmt: skip
    if stabilize:
        unit_scan[layout.number * tiling.H,](maps, m_SH, maps[2], *tiling.sizes, BLOCK=SCAN_TILES, PACKED=layout.packed)
    unit_kernel[layout.all_tiles, tiling.H](
        planes, maps[2], m_SH, last_SH, *tiling.sizes, TILE=tile, PACKED=layout.packed, STABILIZE=stabilize
    )
    return planes, last_SH


def states(k_BTHK: Tensor, v_BTHV: Tensor, planes: Tensor, first: Memory, tiling: Tiling, parts: int
           ) -> tuple[Memory, Memory]:  # fmt: skip
    """C and n before every chunk of `parts` tiles, and after the last."""
    number, launch = tiling.layout.all_tiles // parts, tiling.config.state
    chunks = Memory(
        k_BTHK.new_empty(tiling.H, number, tiling.K, tiling.V), first.n.new_empty(tiling.H, number, tiling.K)
    )
    last = Memory(*map(torch.empty_like, first))
    state_kernel[tiling.grid(launch)](
        rows(k_BTHK), rows(v_BTHV), planes, first, chunks, last, *tiling.sizes, tiling.constants(launch),
        PARTS=parts, **options(launch),
    )  # fmt: skip
    return chunks, last


def forward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_i_BTH: Tensor, log_f_BTH: Tensor, c_SHKV: Tensor,
            n_SHK: Tensor, m_SH: Tensor, reset_BT: Tensor | None, borders: Tensor | None, stabilize: bool,
            normalize: bool, eps: float, chunk_len: int, config: Config | None = None
            ) -> tuple[Tensor, ...]:  # fmt: skip
    """h, the state after, and for the backward: the planes of the gates and the signed mass [H, P]."""
    q_BTHK, k_BTHK, v_BTHV = map(without_gaps, (q_BTHK, k_BTHK, v_BTHV))
    tiling = tiling_of(q_BTHK, v_BTHV, borders, chunk_len, config)
    parts, launch = tiling.config.parts, tiling.config.output
    planes, last_m_SH = scan_gates(log_i_BTH, log_f_BTH, m_SH, reset_BT, tiling, stabilize)
    chunks, last = states(k_BTHK, v_BTHV, planes, Memory(c_SHKV, n_SHK), tiling, parts)
    h_BTHV, mass_HP = v_BTHV.new_empty(v_BTHV.shape), torch.empty_like(planes[0])
    output_kernel[tiling.layout.all_tiles, -(-tiling.V // launch.block_v), tiling.H](
        rows(q_BTHK), rows(k_BTHK), rows(v_BTHV), planes, chunks, rows(h_BTHV), mass_HP, *tiling.sizes,
        tiling.K**-0.5, eps, tiling.constants(launch), PARTS=parts, NORMALIZE=normalize, **options(launch),
    )  # fmt: skip
    return h_BTHV, *last, last_m_SH, planes, mass_HP


def fake_forward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_i_BTH: Tensor, log_f_BTH: Tensor, c_SHKV: Tensor,
                 n_SHK: Tensor, m_SH: Tensor, reset_BT: Tensor | None, borders: Tensor | None, stabilize: bool,
                 normalize: bool, eps: float, chunk_len: int) -> tuple[Tensor, ...]:  # fmt: skip
    """The shapes of `forward`."""
    tiling = tiling_of(q_BTHK, v_BTHV, borders, chunk_len)
    planes = log_i_BTH.new_empty(NUM_PLANES, tiling.H, tiling.layout.all_tiles * tiling.config.tile)
    last = torch.empty_like(c_SHKV), torch.empty_like(n_SHK), torch.empty_like(m_SH)
    return v_BTHV.new_empty(v_BTHV.shape), *last, planes, planes.new_empty(planes.shape[1:])


def backward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, c_SHKV: Tensor, n_SHK: Tensor, borders: Tensor | None,
             planes: Tensor, mass_HP: Tensor, h_BTHV: Tensor, dh_BTHV: Tensor, dc_SHKV: Tensor, dn_SHK: Tensor,
             normalize: bool, eps: float, chunk_len: int, config: Config | None = None
             ) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of q, k, v, log i, log f, C and n."""
    q_BTHK, k_BTHK, v_BTHV, dh_BTHV = map(without_gaps, (q_BTHK, k_BTHK, v_BTHV, dh_BTHV))
    tiling, first = tiling_of(q_BTHK, v_BTHV, borders, chunk_len, config), Memory(c_SHKV, n_SHK)
    scale, tiles, config = tiling.K**-0.5, tiling.layout.all_tiles, tiling.config
    inverse_HP, dmass_HP = torch.empty_like(mass_HP), torch.empty_like(mass_HP)
    mass_kernel[tiles, tiling.H](
        rows(h_BTHV), rows(dh_BTHV), planes, mass_HP, inverse_HP, dmass_HP, *tiling.sizes, eps, TILE=config.tile,
        V=tiling.V, BV=block_size(tiling.V, 64), PACKED=tiling.layout.packed, NORMALIZE=normalize,
    )  # fmt: skip
    before, _ = states(k_BTHK, v_BTHV, planes, first, tiling, 1)
    after, dfirst = (Memory(*map(torch.empty_like, like)) for like in (before, first))
    launch = config.state_gradient
    state_gradient_kernel[tiling.grid(launch)](
        rows(q_BTHK), rows(dh_BTHV), planes, inverse_HP, dmass_HP, Memory(dc_SHKV.contiguous(), dn_SHK.contiguous()),
        after, dfirst, *tiling.sizes, scale, tiling.constants(launch), **options(launch),
    )  # fmt: skip
    found = [x.new_empty(x.shape) for x in (q_BTHK, k_BTHK, v_BTHV)]
    dgates = tuple(planes.new_empty(q_BTHK.shape[:3]) for _ in range(2))
    gradient_kernel[tiles, tiling.H](
        *map(rows, (q_BTHK, k_BTHK, v_BTHV, dh_BTHV)), planes, inverse_HP, dmass_HP, before, after, *map(rows, found),
        dgates, *tiling.sizes, scale, tiling.constants(config.gradient), **options(config.gradient),
    )  # fmt: skip
    return *found, *dgates, *dfirst


def fake_backward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, c_SHKV: Tensor, n_SHK: Tensor,
                  borders: Tensor | None, planes: Tensor, *_: Any) -> tuple[Tensor, ...]:  # fmt: skip
    """The shapes of `backward`."""
    dgates = [planes.new_empty(q_BTHK.shape[:3]) for _ in range(2)]
    return *(x.new_empty(x.shape) for x in (q_BTHK, k_BTHK, v_BTHV)), *dgates, c_SHKV.clone(), n_SHK.clone()


RESULTS = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"
run_forward = operator(
    "mlstm_forward(Tensor q, Tensor k, Tensor v, Tensor log_i, Tensor log_f, Tensor c, Tensor n, Tensor m, "
    "Tensor? reset, Tensor? borders, bool stabilize, bool normalize, float eps, int chunk_len) "
    f"-> {RESULTS})", forward, fake_forward,
)  # fmt: skip
run_backward = operator(
    "mlstm_backward(Tensor q, Tensor k, Tensor v, Tensor c, Tensor n, Tensor? borders, Tensor gates, "
    "Tensor mass, Tensor h, Tensor dh, Tensor dc, Tensor dn, bool normalize, float eps, int chunk_len) "
    f"-> {RESULTS}, Tensor)", backward, fake_backward,
)  # fmt: skip


class Chunks(torch.autograd.Function):
    """(q, k, v, log i, log f, C, n, m) -> (h, C, n, m); the gates and the state float32."""

    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_i_BTH: Tensor, log_f_BTH: Tensor,
                c_SHKV: Tensor, n_SHK: Tensor, m_SH: Tensor, reset_BT: Tensor | None, borders: Tensor | None,
                stabilize: bool, normalize: bool, eps: float, chunk_len: int) -> tuple[Tensor, ...]:  # fmt: skip
        h_BTHV, last_c, last_n, last_m, planes, mass_HP = run_forward(
            q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH, c_SHKV, n_SHK, m_SH, reset_BT, borders, stabilize,
            normalize, eps, chunk_len,
        )  # fmt: skip
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, c_SHKV, n_SHK, borders, planes, mass_HP, h_BTHV)
        ctx.options = normalize, eps, chunk_len
        ctx.mark_non_differentiable(last_m)
        return h_BTHV, last_c, last_n, last_m

    @staticmethod
    @once_differentiable("mlstm", "triton")
    def backward(ctx: Any, dh_BTHV: Tensor, dc_SHKV: Tensor, dn_SHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *run_backward(*ctx.saved_tensors, dh_BTHV, dc_SHKV, dn_SHK, *ctx.options), *[None] * 7


def mlstm_triton(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, cu_seqlens: Tensor | None = None, input_gate: InputGate = "exp",
    normalize: bool = True, eps: float = 1e-6, chunk_len: int | None = None,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The same numbers as `mlstm_chunkwise`. chunk_len: rounded to a power of two from 16 to 256; None: the fastest.

    cu_seqlens: borders [S + 1] of the sequences in the one row of a packed batch; the state then has S rows.
    """
    log_i_BTH, log_f_BTH = log_gates(i_BTH, f_BTH, input_gate)
    borders = None if cu_seqlens is None else cu_seqlens.to(q_BTHK.device)
    # float16 cannot hold what the memory sums up to
    dtype = torch.float32 if q_BTHK.dtype == torch.float16 else q_BTHK.dtype
    inputs = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV))
    h_BTHV, *after = Chunks.apply(  # type: ignore[no-untyped-call]
        *inputs, log_i_BTH, log_f_BTH, *(upcast(x).contiguous() for x in state), reset_BT, borders,
        input_gate == "exp", normalize, eps, block_size(chunk_len, 256) if chunk_len else 0,
    )  # fmt: skip
    return h_BTHV.to(q_BTHK.dtype), MLSTMState(*after)
