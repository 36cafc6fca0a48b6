"""Checks of the folder that a model is written to, so that no other file is lost."""

import re
from collections.abc import Iterable
from pathlib import Path

from exlstm.models.checkpoints.files import CONFIGS, INDEX

WEIGHT_FILES = re.compile(r"model(_\d+|-\d{5}-of-\d{5})?\.safetensors")  # as any layout names them
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def check_target(folder: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """ValueError unless a model may be written into `folder`: only files of saved models are replaced.

    It may be missing or empty and, with `overwrite`, hold the files of a model and nothing else. Hidden files are
    ignored and stay. sources: paths that are read meanwhile; the folder may neither hold them nor be inside of one.
    """
    place = folder.resolve()
    for source in sources:
        origin = source.resolve()
        for there, relation in ((place == origin, "is"), (origin in place.parents, "is inside of"),
                                (place in origin.parents, "holds")):  # fmt: skip
            if there:
                raise ValueError(f"{folder} {relation} the model to convert; name another folder for the result.")
    check_no_run(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    names = sorted(entry.name for entry in place.iterdir() if entry.name[0] != ".") if place.is_dir() else []
    if foreign := [name for name in names if not of_a_model(place / name)]:
        raise ValueError(f"{folder} holds {foreign[0]!r}, which belongs to no saved model; name another folder.")
    if names and not overwrite:
        raise ValueError(
            f"{folder} holds {names[0]!r} of a model; name another folder, or overwrite it (--overwrite, "
            "overwrite=True)."
        )


def check_no_run(folder: Path) -> None:
    """ValueError for the folder of a run, whose config.json and tokenizer.json would be replaced."""
    if (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run of exlstm train, which a model would destroy; name another folder.")


def of_a_model(file: Path) -> bool:
    """True for a file name that saving a model, or its tokenizer, writes."""
    known = (*CONFIGS, INDEX, *TOKENIZER_FILES)
    return file.is_file() and (file.name in known or WEIGHT_FILES.fullmatch(file.name) is not None)
