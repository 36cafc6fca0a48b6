"""The parser: words on the command line become a dataclass of options, or an error of one sentence."""

import contextlib
import difflib
import io
import itertools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from exlstm.train.config import More, TrainConfig

if TYPE_CHECKING:
    from exlstm.models.locate import Which

Options = TypeVar("Options")

METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT"}


def parse(
    kind: type[Options], words: Sequence[str], *, program: str, description: str, default: Options | None = None
) -> Options | None:
    """The options, or None for --help, which is printed to stdout.

    default: values of options that are not given; None takes those of the dataclass. A `TrainConfig` remembers which
    settings were given, in the words or in its default.
    Raises ValueError for an unknown option and for a value that does not fit.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options: Options
            options, unknown = tyro.cli(
                kind,
                prog=program,
                description=description,
                args=gather_values(words, multi_value_options(kind)),
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                registry=_registry(),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        # an error of the dataclass is a sentence already
        reason = stop.__context__ if type(stop.__context__) is ValueError else _first_part(complaint.getvalue())
        raise ValueError(f"{str(reason).rstrip('.')}; see {program} --help.") from None
    known = ["--" + field.name.replace("_", "-") for field in fields(kind)]  # type: ignore[arg-type]
    if unknown:
        odd = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        raise ValueError(f"{odd!r} is no option{similar(odd, known)}; see {program} --help.")
    if isinstance(options, TrainConfig):
        base = default if isinstance(default, TrainConfig) else TrainConfig()
        return base.but(**{name: getattr(options, name) for name in given_in(words, known)})  # type: ignore[return-value]
    return options


def gather_values(words: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Moves all values of a repeated option behind its first occurrence: --stop a --stop b becomes --stop a b."""
    names = [word.partition("=")[0] for word in words]
    repeated = [flag for flag in flags if names.count(flag) > 1]
    found: dict[str, list[str]] = {}
    current: list[str] = []
    parts = [current]
    for word, name in zip(words, names, strict=True):
        if name in repeated:
            if name not in found:
                found[name] = [name]
                parts.append(found[name])
            current = found[name]
            current += [word.removeprefix(f"{name}=")] if word != name else []
        elif word.startswith("--"):
            parts.append(current := [word])
        else:
            current.append(word)
    return [word for part in parts for word in part]


def multi_value_options(kind: type) -> list[str]:
    """The options of a dataclass that take any number of values."""
    hints = typing.get_type_hints(kind)
    return [
        "--" + name.replace("_", "-")
        for name, hint in hints.items()
        if any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint)))
    ]


def given_in(words: Sequence[str], known: Iterable[str]) -> list[str]:
    """The fields whose options are among the words, after the parser has accepted them."""
    # a value cannot look like an option: "--run --resume" is refused, and "--run=--resume" is one word
    there = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    found = [flag for flag in known if not there.isdisjoint((flag, "--no-" + flag.removeprefix("--")))]
    return [flag.removeprefix("--").replace("-", "_") for flag in found]


def take_option(option: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Removes `option VALUE` from the words. Returns its last value (None without it, "" if missing) and the rest."""
    taken, rest, ahead = None, [], iter(words)
    for word in ahead:
        name, equals, value = word.partition("=")
        if name == option:
            taken = value if equals else next(ahead, "")
        else:
            rest.append(word)
    return taken, rest


def take_choice(option: str, words: Sequence[str], choices: Mapping[str, Options]) -> tuple[Options | None, list[str]]:
    """Removes `option NAME` from the words. Returns the choice of that name (None without it) and the rest."""
    name, rest = take_option(option, words)
    if name is None:
        return None, rest
    if name not in choices:
        raise ValueError(f"{option} {name!r} is unknown; use one of {', '.join(choices)}.")
    return choices[name], rest


def training_settings(words: Sequence[str], recipes: Mapping[str, TrainConfig]) -> tuple[TrainConfig | None, list[str]]:
    """The settings of --recipe or --config of `exlstm train`, None without either, and the remaining words."""
    recipe, words = take_choice("--recipe", words, recipes)
    file, words = take_option("--config", words)
    words = [re.sub("^--from(?=$|=)", "--from-model", word) for word in words]
    if file is None:
        return recipe, words
    if recipe is not None:
        raise ValueError(f"--recipe and --config {file!r} were both given; leave one of them out.")
    from exlstm.train.config_file import read_config

    return read_config(file), words


def checkpoint_of(text: str) -> "Which | int":
    """The value of --checkpoint: best, last, or the number of a step. Raises ValueError for other text."""
    if text == "best":
        return "best"
    if text == "last":
        return "last"
    if not text.isdecimal():
        raise ValueError(f"--checkpoint {text!r} cannot work; use best, last, or the number of a step.")
    return int(text)


def check_at_least(options: object, **least: float) -> None:
    """Raises ValueError for an option that is NaN or below its least value; None is not checked."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not value >= bound:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {bound}.")


def similar(word: str, known: Iterable[str]) -> str:
    """ ", perhaps you mean ...", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", perhaps you mean {close[0]}" if close else ""


def _registry() -> ConstructorRegistry:
    """tyro's rules, except that an optional option is shown by its type: --steps INT, not {None}|INT."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number_or_text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        union = typing.get_origin(info.type) in (types.UnionType, typing.Union)
        kinds = typing.get_args(info.type) if union else (info.type,)
        may_be_none, may_add = type(None) in kinds, More in kinds
        kind = next((kind for kind in kinds if kind in METAVARS), None)
        if kind is None or len(kinds) != 1 + may_be_none + may_add:
            return None

        shown = (kind, More) if may_add else kind

        def read(words: list[str]) -> Any:
            if may_be_none and words[0].lower() == "none":
                return None
            try:
                value = kind(words[0])
                return More(value) if may_add and words[0].startswith("+") else value
            except ValueError:
                raise ValueError(f"{words[0]!r} is not a {'whole ' if kind is int else ''}number") from None

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=METAVARS[kind],
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, shown) or (may_be_none and value is None),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def one_text_or_several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if set(typing.get_args(info.type)) != {str, tuple[str, ...], type(None)}:
            return None

        def read(words: list[str]) -> Any:
            if not words:
                raise ValueError("a value is missing")
            one = None if words[0].lower() == "none" else words[0]
            return one if len(words) == 1 else tuple(words)

        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="TEXT [TEXT ...]",
            instance_from_str=read,
            is_instance=lambda value: value is None or isinstance(value, str | tuple),
            str_from_instance=lambda value: list(value) if isinstance(value, tuple) else [str(value)],
        )

    return registry


def _first_part(box: str) -> str:
    """The error in a box that tyro prints: the part behind its title, up to a rule or an empty line."""
    lines = [line.strip(" │─-╭╮╰╯") for line in box.splitlines()[1:]]
    part = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    text = " ".join(part) or "these options do not fit"
    text = re.sub(r"^Missing from [^:]*: (\S+).*", r"\1 is missing", text.removeprefix("Error parsing "))
    return text.replace(". ", "; ")
