"""The config of an exlstm model in transformers, with the keys of exlstm's own config.json."""

import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from exlstm.models.checkpoints.own import FORMAT, config_from_json, config_to_json
from exlstm.models.checkpoints.target import check_no_run
from exlstm.models.lm import LMConfig

# The length of the input is not limited, but lm-evaluation-harness cuts every text into windows of 2048 tokens unless
# a config has a number; this is the largest that fits 32 bits.
NO_LIMIT = 2**31 - 1


class ExlstmConfig(PreTrainedConfig):  # type: ignore[misc]
    """`LMConfig` for transformers, with the field names of config.json.

        config = ExlstmConfig.from_lm(exlstm.preset("laptop-small"))
        config.lm_config() == exlstm.preset("laptop-small")

    Raises ValueError for an architecture that is not valid, and for the config.json of a quantized model.
    """

    model_type = "exlstm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - a field annotated here would be a setting
    attribute_map = {"hidden_size": "width", "tie_word_embeddings": "tie_embeddings"}  # noqa: RUF012 - the same

    format: int = FORMAT
    vocab_size: int | None = None
    width: int | None = None
    blocks: list[dict[str, Any]] | None = None
    max_position_embeddings: int = NO_LIMIT
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if (weights := kwargs.pop("weights", None)) is not None:
            raise ValueError(
                f"the model has {weights} weights, which transformers cannot read; load it with exlstm.load, "
                "or save the model it was quantised from."
            )
        # transformers has a switch of this name, which is False where it is missing
        kwargs.setdefault("tie_embeddings", kwargs.pop("tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        for field in fields(LMConfig):
            if not hasattr(self, field.name) and field.default is not MISSING:
                setattr(self, field.name, field.default)
        if self.positions is not None:
            self.max_position_embeddings = self.positions
        if self.blocks is not None:
            for name, value in config_to_json(self.lm_config()).items():
                if name != "model_type":
                    setattr(self, name, value)

    @classmethod
    def from_lm(cls, config: LMConfig) -> "ExlstmConfig":
        """The same architecture for transformers."""
        data = config_to_json(config)
        del data["model_type"]
        return cls(**data)

    def lm_config(self) -> LMConfig:
        """The architecture. Raises ValueError where it is missing or not valid."""
        if self.blocks is None:
            raise ValueError("the config has no blocks; make one with ExlstmConfig.from_lm(exlstm.preset(name)).")
        values = {field.name: getattr(self, field.name) for field in fields(LMConfig)}
        return config_from_json({"format": self.format, "model_type": "exlstm", **values})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As in transformers. Raises ValueError for the folder of a run.

        The `save_pretrained` of a model calls this first, so it is checked there too.
        """
        check_no_run(Path(save_directory))
        super().save_pretrained(save_directory, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks or ())
