"""Settings from a file: the config.json of a run, or settings alone."""

import json
from pathlib import Path

from exlstm.models.checkpoints.own import config_from_json
from exlstm.train.config import TrainConfig, from_json
from exlstm.train.setup import model_config


def read_config(file: str) -> TrainConfig:
    """The settings of a new run, read from a JSON file.

    Raises ValueError for a file that is not JSON, for settings that are unknown, of another type or cannot work, and
    for the config.json of a run whose model was given in Python.
    """
    path = Path(file).expanduser()
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ValueError(f"--config {file!r} cannot be read ({reason}); name the config.json of a run.") from error
    if not isinstance(data, dict):
        raise ValueError(f'--config {file!r} holds no settings; write them as {{"batch": 8, ...}}.')
    if "train" not in data:
        return from_json(data, where=file)
    if not (isinstance(data["train"], dict) and isinstance(data.get("model"), dict)):
        raise ValueError(f"--config {file!r} lacks settings or a model; name the config.json of a run.")
    config = from_json(data["train"], where=file)
    if config.from_model is None:
        model = config_from_json(data["model"])
        if model != model_config(config, model.vocab_size):
            raise ValueError(
                f"the model of --config {file!r} is not the one that its preset and blocks make, for it was given in "
                "Python; train it from there, or start from it with --from."
            )
    return config
