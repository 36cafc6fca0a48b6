"""`exlstm presets`: the models that have a name, by family, and the names of blocks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exlstm.models.lm import LM, LMConfig

LENGTH = 2048  # tokens after which a state that grows is shown


@dataclass(frozen=True, kw_only=True)
class Presets:
    """`exlstm presets` has no options."""


def presets(options: Presets) -> None:
    """`exlstm presets`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from exlstm.mixers import MIXERS
    from exlstm.models.pattern import LETTERS, described
    from exlstm.models.presets import FAMILIES, preset
    from exlstm.models.states.batching import grows
    from exlstm.models.summary import parameters

    table = Table(box=None, pad_edge=False)
    table.add_column("preset")
    for heading in ("parameters", "state bytes per sequence", "blocks"):
        table.add_column(heading, justify="left" if heading == "blocks" else "right")
    for family, names in FAMILIES.items():
        table.add_section()
        table.add_row(family, style="bold")
        for name in names:
            model = without_weights(preset(name))
            state = f"{model.state_bytes(LENGTH):,}" + (f" after {LENGTH:,} tokens" if grows(model) else "")
            table.add_row(name, f"{parameters(model):,}", state, str(len(model.config.blocks)))
    letters = {name: letter for letter, name in LETTERS.items()}
    blocks = Table(box=None, pad_edge=False)
    for heading in ("--blocks", "letter", ""):
        blocks.add_column(heading, no_wrap=heading != "")
    for name in MIXERS:
        blocks.add_row(name, letters.get(name, ""), escape(described(name)))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nNames and letters of blocks, e.g. --blocks mmms or --blocks attention*2,mlstm:")
    console.print(blocks)


def without_weights(config: "LMConfig") -> "LM":
    """The model on the meta device."""
    import torch

    from exlstm.models.lm import LM

    with torch.device("meta"):
        return LM(config)
