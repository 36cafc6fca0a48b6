"""nn.LSTM replaced by exlstm's in a finished model."""

from collections.abc import Callable
from typing import Any, Literal, TypeGuard

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from exlstm.rnn.interface import RecurrentNet
from exlstm.rnn.lstm import LSTM
from exlstm.rnn.mlstm import MLSTM
from exlstm.rnn.slstm import SLSTM
from exlstm.runtime.internals import has_hooks

Kind = Literal["slstm", "mlstm", "lstm"]
KINDS: dict[str, Callable[..., RecurrentNet]] = {"slstm": SLSTM, "mlstm": MLSTM, "lstm": LSTM}


def replace_lstm(model: nn.Module, kind: Kind = "slstm", **options: Any) -> nn.Module:
    """The model with an `exlstm` net in place of every `torch.nn.LSTM`; it is changed in place.

    kind: "slstm", "mlstm" or "lstm". options: of that class, beside the arguments of torch's, which stay as they are.
    Device, dtype, and whether the module trains stay, too. Weights are drawn anew, but "lstm" keeps them: it computes
    the same. A module that is in several places stays one. Subclasses of `torch.nn.LSTM` are left alone.
    Returns the model; if it is an LSTM itself, its replacement. Raises ValueError for another kind, for a model without
    an LSTM, and for an LSTM with hooks or parametrizations, which would be lost.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {list(KINDS)}.")
    # a module that is in several places has several names
    places = [(name, x) for name, x in model.named_modules(remove_duplicate=False) if is_lstm(x)]
    if not places:
        raise ValueError(f"there is no torch.nn.LSTM in this {type(model).__name__}; nothing was replaced.")
    for name, module in places:
        if is_parametrized(module) or has_hooks(module):
            raise ValueError(
                f"the LSTM {name or 'itself'} has parametrizations or hooks, which would be lost; remove them first."
            )
    made = {module: replacement(module, kind, options) for _, module in places}
    for name, module in places:
        parent, _, own = name.rpartition(".")
        if own:
            setattr(model.get_submodule(parent), own, made[module])
    return made[model] if isinstance(model, nn.LSTM) and model in made else model


def is_lstm(module: nn.Module) -> TypeGuard[nn.LSTM]:
    """Whether this is an LSTM of torch's own class, or of the one that a parametrization makes of it."""
    return type(module) is nn.LSTM or (isinstance(module, nn.LSTM) and is_parametrized(module))


def replacement(module: nn.LSTM, kind: Kind, options: dict[str, Any]) -> RecurrentNet:
    """The net in place of this one."""
    weight = next(module.parameters())
    same = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    net = KINDS[kind](
        **{name: getattr(module, name) for name in same}, device=weight.device, dtype=weight.dtype, **options
    )
    if kind == "lstm":
        net.load_state_dict(module.state_dict())
    return net.train(module.training)
