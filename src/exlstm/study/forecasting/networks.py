"""The compared networks: what stands between the embedding of patches and the head, with equal parameters.

B rows  N patches  D model width
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor, nn

from exlstm.forecast.networks import HEADS, PATTERN, TorchRNN
from exlstm.models.block import BlockConfig
from exlstm.models.forecaster import Forecaster, ForecasterConfig
from exlstm.models.lm import LMConfig
from exlstm.models.pattern import blocks_from_pattern
from exlstm.models.summary import parameters
from exlstm.study.models import with_parameters

PATTERNS: Mapping[str, str] = MappingProxyType(
    {"xlstm[m]": "mm", "xlstm[s]": "ss", "xlstm[ms]": "ms", "attention": "aa"}
)
TORCH: Mapping[str, type[nn.LSTM] | type[nn.GRU]] = MappingProxyType({"lstm": nn.LSTM, "gru": nn.GRU})
NETWORKS = (*PATTERNS, *TORCH, "no memory")


class PatchesAlone(nn.Module):
    """Nothing in the place of the blocks: a forecast sees the last patch, and the season before."""

    def forward(self, x_BND: Tensor, state: None = None) -> tuple[Tensor, None]:
        """[B, N, D] as it is, and no state."""
        return x_BND, state


def build_network(name: str, config: ForecasterConfig) -> Forecaster:
    """The network of this name, with as many parameters as that of PATTERN. config: the rest of its architecture."""
    if name == "no memory":
        return Forecaster(config, PatchesAlone())
    target = parameters(Forecaster(replace(config, blocks=_blocks(PATTERN, config))).stack)
    if name in TORCH:
        return Forecaster(config, TorchRNN(TORCH[name], config.width, target))
    if name not in PATTERNS:
        raise ValueError(f"there is no network {name!r}; use one of {', '.join(NETWORKS)}.")
    return Forecaster(replace(config, blocks=_blocks(PATTERNS[name], config, target)))


def _blocks(pattern: str, config: ForecasterConfig, target: int | None = None) -> tuple[BlockConfig, ...]:
    """Blocks of a pattern, with MLPs and up-projections that give so many parameters."""
    blocks = blocks_from_pattern(pattern, width=config.width, heads=HEADS)
    stack = LMConfig(vocab_size=2, width=config.width, blocks=blocks, norm=config.norm)
    return stack.blocks if target is None else with_parameters(stack, target).blocks
