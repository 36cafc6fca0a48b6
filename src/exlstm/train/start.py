"""The model that a run starts from: its architecture, tokenizer and weights, identified by a fingerprint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exlstm.data.model_tokenizer import tokenizer_of
from exlstm.data.tokenizer import Tokenizer
from exlstm.models.lm import LM, LMConfig
from exlstm.models.locate import locate
from exlstm.models.states.fingerprint import fingerprint
from exlstm.train.config import ARCHITECTURE, TrainConfig
from exlstm.train.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """The entry "from" of config.json. model: the path of the weights. step: of a run's checkpoint."""

    model: str
    fingerprint: str
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def load_into(self, model: LM) -> None:
        """Loads the weights into a model of the same architecture. ValueError if they are gone or have changed."""
        found = locate(self.model).load()
        if fingerprint(found) != self.fingerprint:
            raise ValueError(
                f"{self.model} has changed since the run that starts from it began; put it back, or start a new run."
            )
        model.load_state_dict(found.state_dict())


def start_of(run: RunFolder) -> Start | None:
    """The model that a run has started from. Raises ValueError if that entry of config.json is damaged."""
    found = run.config().get("from")
    try:
        return None if found is None else Start(**found)
    except TypeError as error:
        raise ValueError(f"{run.path / 'config.json'} has a damaged entry 'from'; put the file back.") from error


def read_start(config: TrainConfig, model: LMConfig | None) -> tuple[Start, LMConfig, Tokenizer, str]:
    """The model of `config.from_model`: start, architecture, tokenizer, and a name for the new run.

    Raises ValueError for settings that contradict it, and for a model that cannot be trained or has no tokenizer.
    """
    assert config.from_model is not None
    source = locate(Path(config.from_model).expanduser())
    own = source.tokenizer_file.is_file()
    for name in ARCHITECTURE:
        if name in config.given and (own or name != "tokenizer"):
            raise ValueError(
                f"--{name} {getattr(config, name)!r} cannot be used with --from-model, which has its own; leave it out."
            )
    if model is not None:
        raise ValueError("an architecture and from_model were both given; leave one of them out.")
    if bits := source.bits():
        raise ValueError(f"{source.weights} is quantised ({bits}) and has no gradients; start from its full weights.")
    tokenizer = tokenizer_of(source, None if own or "tokenizer" not in config.given else config.tokenizer)
    found = source.load()
    weights = source.weights.resolve()
    start = Start(model=str(weights), fingerprint=fingerprint(found), step=source.step)
    return start, found.config, tokenizer, source.run.resolve().name if source.run else weights.stem
