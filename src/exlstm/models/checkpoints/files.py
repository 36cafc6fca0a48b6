"""Files of a checkpoint of any layout: tensors by name, read one at a time, and the config beside them."""

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exlstm.nn.fields import json_value

INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "config.yaml", "config.yml")
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# a mapped file counts as memory of the process until it is closed, so it is closed whenever this much has been read
OPEN_BYTES = 1 << 25
# keys under which a pickle may hold the state dict, and prefixes that training tools put before every name
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
TOOL_PREFIXES = ("module.", "_orig_mod.", "model.", "lm.")


@dataclass
class Tensors:
    """Names, shapes and dtypes of the tensors of a checkpoint; `read` gives one, `close` ends the mapping of files.

    A tensor may lie in a mapped file, with another alignment than new memory: clone those that outlive the mapping.
    """

    place: Path  # for messages
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    shards: dict[str, Path] = field(default_factory=dict)  # of safetensors
    loaded: dict[str, Tensor] = field(default_factory=dict)  # of a pickle, mapped
    prefix: str = ""  # in the files, before every name
    open_: tuple[Path, Any, int] | None = None  # file, handle, bytes read
    stack: ExitStack = field(default_factory=ExitStack)

    def read(self, name: str) -> Tensor:
        """The tensor of this name, on the CPU. ValueError if the file cannot be read."""
        if name in self.loaded:
            return self.loaded[name]
        path = self.shards[name]
        if self.open_ is None or self.open_[0] != path or self.open_[2] > OPEN_BYTES:
            self.close()
            self.open_ = path, self.stack.enter_context(open_safetensors(path)), 0
        _, handle, done = self.open_
        try:
            x: Tensor = handle.get_tensor(self.prefix + name)
        except SafetensorError as error:
            raise unreadable_error(path, error) from error
        self.open_ = path, handle, done + x.nbytes
        return x

    def close(self) -> None:
        """Closes the open file."""
        self.stack.close()
        self.open_ = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.loaded.clear()

    def unwrapped(self) -> Self:
        """The tensors with names without the prefix of a training tool."""
        for prefix in TOOL_PREFIXES:
            if self.shapes and all(name.startswith(prefix) for name in self.shapes):
                self.prefix += prefix
                for table in (self.shapes, self.dtypes, self.shards, self.loaded):
                    stripped = {name.removeprefix(prefix): value for name, value in table.items()}
                    table.clear()
                    table.update(stripped)  # type: ignore[arg-type]
                return self.unwrapped()
        return self


def open_safetensors(path: Path) -> Any:
    """An open file of safetensors, for `with`. ValueError if it is not one."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise unreadable_error(path, error) from error


def unreadable_error(path: Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read."""
    reason = " ".join(str(error).split())
    return ValueError(f"{path} cannot be read ({reason}); it may be cut off: save or download it again.")


def open_tensors(path: Path) -> Tensors:
    """The tensors of a folder or a file. ValueError, in one sentence, for anything else."""
    if path.is_dir():
        files = shards_of(path)
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"there is no {path}; {remedy(str(path))}.")
    if files[0].suffix in PICKLES:
        return read_pickle(files[0]).unwrapped()
    found = Tensors(path)
    for file in files:
        with open_safetensors(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - no dict
                if name in found.shapes:
                    raise ValueError(
                        f"{name} is in both {found.shards[name]} and {file}; remove what is not the model's."
                    )
                part = handle.get_slice(name)
                found.shapes[name] = tuple(part.get_shape())
                if part.get_dtype() not in DTYPES:
                    raise ValueError(
                        f"{name} in {file} is of dtype {part.get_dtype()}, which no model here has; save it in float32."
                    )
                found.dtypes[name] = DTYPES[part.get_dtype()]
                found.shards[name] = file
    return found.unwrapped()


def remedy(name: str) -> str:
    """Remedy in the message for a model that does not exist."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # as on the Hugging Face Hub
        return f"if you mean that model of the Hub, download it first: hf download {name} --local-dir {Path(name).name}"
    return "name a folder with a model, or a file of weights"


def shards_of(folder: Path) -> list[Path]:
    """Files of weights of the model in a folder. ValueError if there are none, or one is missing."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        return [existing(folder / name) for name in names_in(folder / INDEX)]
    counted = sorted(folder.glob("model_*.safetensors"), key=lambda file: (len(file.name), file.name))
    if counted:
        return [existing(folder / f"model_{number}.safetensors") for number in range(shard_number(counted[-1]) + 1)]
    others = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", *PICKLES))
    if len(others) == 1:
        return others
    if others and "-of-" in others[0].name:
        raise ValueError(f"{folder} has no {INDEX}, which says what shards there are; copy or download it too.")
    if others:
        raise ValueError(f"{folder} holds {others[0].name} and {others[1].name}; name the file with the weights.")
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"{folder} is a run of exlstm train; name a checkpoint, such as {folder / 'checkpoints/best'}."
        )
    raise ValueError(f"{folder} has no weights, such as model.safetensors; pass a folder with a model.")


def names_in(index: Path) -> list[str]:
    """File names in an index, each once. ValueError for none, and for one that is not below the folder."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{index} has no weight_map, which says what shards there are; copy or download it again.")
    for name in table.values():
        # by the rules of Windows too: the folder may come from there
        place = PureWindowsPath(name) if isinstance(name, str) else PureWindowsPath("/")
        if place.anchor or ".." in place.parts or place.suffix != ".safetensors":
            raise ValueError(f"{index} names {name!r}, which is no .safetensors file beside it; download it again.")
    return sorted(set(table.values()))


def shard_number(shard: Path) -> int:
    """Number of a shard: 3 of model_3.safetensors. ValueError for another name."""
    digits = shard.stem.removeprefix("model_")
    if not digits.isdecimal():
        raise ValueError(f"{shard} has a name of no known kind; shards are called model_0.safetensors and so on.")
    return int(digits)


def existing(file: Path) -> Path:
    """The file. ValueError if it does not exist."""
    if not file.is_file():
        raise ValueError(f"{file} is missing, which holds a part of the weights; copy or download it again.")
    return file


def read_pickle(path: Path) -> Tensors:
    """Tensors of a state dict that torch.save wrote; no other objects are read. ValueError for anything else."""
    try:
        # torch's old format is no zip file, and cannot be mapped
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and to read it could run its code; save the state_dict() alone."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise unreadable_error(path, error) from error
    while isinstance(data, Mapping) and not any(isinstance(x, Tensor) for x in data.values()):
        inner = next((data[key] for key in STATE_DICT_KEYS if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            break
        data = inner
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"{path} holds no state dict; save the model's state_dict().")
    odd = next(
        (name for name, x in data.items() if not (isinstance(name, str) and isinstance(x, Tensor) and is_dense(x))),
        None,
    )
    if odd is not None:
        raise ValueError(f"{path} holds {odd!r}, which is no dense tensor; save the model's state_dict() alone.")
    return Tensors(
        path,
        shapes={name: tuple(x.shape) for name, x in data.items()},
        dtypes={name: x.dtype for name, x in data.items()},
        loaded=dict(data),
    )


def is_dense(x: Tensor) -> bool:
    """True for a strided tensor that is not quantized."""
    return x.layout == torch.strided and not x.is_quantized


def configs_beside(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The config files in a folder, or beside a file."""
    folder = path if path.is_dir() else path.parent
    for name in CONFIGS:
        if (folder / name).is_file():
            yield folder / name, read_json(folder / name) if name.endswith(".json") else read_yaml(folder / name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} for other values. ValueError if the file is no JSON."""
    try:
        data = json_value(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); save or download it again.") from error
    return data if isinstance(data, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; of an experiment's settings, its `model`. ValueError if the file is no YAML."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}); save or download it again.") from error
    data = data if isinstance(data, dict) else {}
    return data["model"] if isinstance(data.get("model"), dict) else data
