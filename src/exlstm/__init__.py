"""exlstm: xLSTM layers, language models, and what it takes to train and run them.

    import exlstm
    model = exlstm.LM(exlstm.preset("laptop-small"))
    logits_BTC, state = model(tokens_BT)

Importing does no work: torch is imported with the first name that is used, no device is touched, and kernels compile
when they first run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exlstm.api import *  # noqa: F403
    from exlstm.api import __all__ as __all__

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """A public name, or a part of the package that importing them has loaded."""
    import importlib

    api = importlib.import_module("exlstm.api")
    return globals()[name] if name in globals() else getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
