"""Gates of a block, token by token: what its memory keeps, and what it takes in.

    reader = GateReader(model, block=2, after=snapshot)
    forget_TH, input_TH = reader.read(tokens)

They are the factors of the definition, in units of the stabilizer (Beck et al. 2024, eqs 16 and 17):

    f'_t = exp(log f_t + m_{t-1} - m_t)      of what the memory holds, the share that stays
    i'_t = exp(log i_t - m_t)                the weight of what comes in

Where the memory has a stabilizer one of the two is 1: f' = 1 keeps what there was, i' = 1 with a small f' revises it.
An sLSTM has gates for every unit, of which a head's mean is given.

T tokens  H heads
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.mixers.mlstm import MLSTM
from exlstm.mixers.mlstm_large import MLSTMLarge
from exlstm.mixers.slstm import SLSTM
from exlstm.models.block import Block
from exlstm.models.lm import LM
from exlstm.models.states.snapshot import Snapshot, check_owner, check_prompt, evaluating
from exlstm.nn.borders import Borders
from exlstm.ops.gates import ForgetGate
from exlstm.ops.mlstm.reference import needs_unit

KINDS: dict[type, str] = {MLSTM: "mlstm", MLSTMLarge: "mlstm_large", SLSTM: "slstm"}


def gated_blocks(model: LM) -> list[dict[str, Any]]:
    """The blocks that have gates: their number, kind, and how many heads. Plain values, for JSON."""
    return [
        {"block": number, "kind": KINDS[type(block.mixer)], "heads": heads_of(block.mixer)}
        for number, block in enumerate(model.blocks)
        if type(block.mixer) in KINDS
    ]


def heads_of(mixer: Any) -> int:
    """Heads whose gates are told apart; those of an sLSTM are the blocks of R."""
    found: int = mixer.blocks if isinstance(mixer, SLSTM) else mixer.config.heads
    return found


class GateReader:
    """Reader of the gates of one block. ValueError for a block without gates, and for another model's snapshot.

    The state goes on from call to call, so a text may be read in parts.
    """

    def __init__(self, model: LM, block: int, after: Snapshot | None = None) -> None:
        numbers = [each["block"] for each in gated_blocks(model)]
        if block not in numbers:
            raise ValueError(f"block {block} has no gates; choose one of {numbers}.")
        if after is not None:
            check_owner(model, after)
        self.model, self.block = model, block
        self.state = model.zero_state(1) if after is None else after.state

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, tokens: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """(f', i') of the next tokens, [T, H] each, from 0 to 1. ValueError for tokens that are none."""
        model, none = self.model, Borders(None, None)
        tokens_1T = check_prompt(model, tokens, "the text")[None].to(model.embed.weight.device)
        with evaluating(model):
            x_1TD, _ = model.enter(model.embed(tokens_1T), self.state)
            for number in range(self.block):
                x_1TD, _ = model.run_block(number, x_1TD, self.state, none)
            block, before = model.blocks[self.block], self.state[self.block]
            assert isinstance(block, Block)
            into_1TD = x_1TD if block.mixer_norm is None else block.mixer_norm(x_1TD)
            mixer: Any = block.mixer
            log_i, log_f = mixer.log_gates(into_1TD, before)
            _, self.state = model.hidden(tokens_1T, self.state)
        return stabilized(mixer, log_i[0].double(), log_f[0].double(), before)


def stabilized(mixer: Any, log_i: Tensor, log_f: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """(f', i') [T, H] of the logarithms [T, H] or [T, H, V] of the gates, after a state of the mixer."""
    cell = state if isinstance(mixer, MLSTMLarge) else state.cell
    if isinstance(mixer, SLSTM):
        # an element that has seen nothing has no unit yet
        m0 = cell.m_BHV[0].double().masked_fill(cell.n_BHV[0] == 0, -torch.inf)
    else:
        m0 = cell.m_BH[0].double()
        forget_gate: ForgetGate = "sigmoid" if isinstance(mixer, MLSTMLarge) else mixer.config.forget_gate
        if not needs_unit(mixer.config.input_gate, forget_gate):
            return log_f.exp(), log_i.exp()
    # m in closed form: all that was decays alike
    sums = log_f.cumsum(dim=0)
    m = sums + torch.maximum((log_i - sums).cummax(dim=0).values, m0)
    kept, written = (log_f + torch.cat([m0[None], m[:-1]]) - m).exp(), (log_i - m).exp()
    return (kept.mean(-1), written.mean(-1)) if isinstance(mixer, SLSTM) else (kept, written)
