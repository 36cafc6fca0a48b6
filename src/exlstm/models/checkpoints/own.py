"""Our own layout: config.json (plain, versioned) and the state dict in one file of safetensors or several.

A tied head is stored once. Quantized layers are stored as they are, and config.json has their format.
"""

from dataclasses import asdict, fields
from typing import Any, TypeVar

from exlstm.mixers import MIXERS
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.large import HUGGINGFACE
from exlstm.models.checkpoints.layout import Layout, SavedSettings, Shapes
from exlstm.models.checkpoints.rules import Rule, same
from exlstm.models.encoder import EncoderConfig
from exlstm.models.forecaster import ForecasterConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.quantized import stored_once

FORMAT = 1
MODEL_TYPES: dict[type, str] = {
    LMConfig: "exlstm",
    EncoderConfig: "exlstm_encoder",
    ForecasterConfig: "exlstm_forecaster",
}
Architecture = TypeVar("Architecture", LMConfig, EncoderConfig, ForecasterConfig)
# fields that transformers adds to a config that it saves; none changes a number here
TRANSFORMERS_FIELDS = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "is_encoder_decoder", "label2id", "max_position_embeddings", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "tokenizer_class", "torch_dtype",
    "transformers_version", "use_cache",
})  # fmt: skip


def config_to_json(config: LMConfig | EncoderConfig | ForecasterConfig) -> dict[str, Any]:
    """Plain data for `json`: every field by name, each mixer with its name in MIXERS as `kind`."""
    kinds = {cls: name for name, cls in MIXERS.items()}
    blocks = [
        {
            "mixer": {"kind": kinds[type(block.mixer)], **asdict(block.mixer)},  # type: ignore[call-overload]
            "mlp": None if block.mlp is None else asdict(block.mlp),
        }
        for block in config.blocks
    ]
    top = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "blocks"}
    return {"format": FORMAT, "model_type": MODEL_TYPES[type(config)], **top, "blocks": blocks}


def config_from_json(data: dict[str, Any]) -> LMConfig:
    """The config of a language model that `config_to_json` wrote. ValueError for another format, kind or field."""
    return parsed(data, LMConfig)


def encoder_config_from_json(data: dict[str, Any]) -> EncoderConfig:
    """The config of an encoder that `config_to_json` wrote. ValueError for another format, kind or field."""
    return parsed(data, EncoderConfig)


def parsed(data: dict[str, Any], cls: type[Architecture]) -> Architecture:
    """A config of this class. ValueError for another format, kind or field."""
    model_type = MODEL_TYPES[cls]
    if data.get("model_type") != model_type or data.get("format") != FORMAT:
        raise ValueError(
            f"the config is of type {data.get('model_type')!r}, format {data.get('format')!r}; "
            f"this version reads {model_type!r} of format {FORMAT}."
        )
    try:
        blocks = []
        for block in data["blocks"]:
            mixer = {**block["mixer"]}
            kind = mixer.pop("kind")
            if not isinstance(kind, str) or kind not in MIXERS:
                raise ValueError(f"the config has a mixer of kind {kind!r}; known are {', '.join(MIXERS)}.")
            mlp = None if block["mlp"] is None else MLPConfig(**block["mlp"])
            blocks.append(BlockConfig(mixer=MIXERS[kind](**mixer), mlp=mlp))
        skipped = {"format", "model_type", "blocks"} | TRANSFORMERS_FIELDS
        # JSON has lists where a config has tuples
        top: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
            if name not in skipped
        }
        return cls(blocks=tuple(blocks), **top)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the config does not fit format {FORMAT} ({error}); write it with exlstm.save.") from error


def read(shapes: Shapes, settings: SavedSettings) -> LMConfig:
    """All of it is in config.json."""
    return config_from_json({name: value for name, value in settings.data.items() if name != "weights"})


def rules(model: LM, shapes: Shapes | None) -> list[Rule]:
    """Names are ours."""
    return [same(name, name) for name in stored_once(model)]


OWN = Layout(
    name="exlstm",
    has=(r"embed\.|blocks\.",),
    config_file="config.json",
    read=read,
    rules=rules,
    write=config_to_json,
    shard=HUGGINGFACE.shard,
    indexed=True,
)
