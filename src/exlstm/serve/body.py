"""Bodies of requests: JSON read strictly, then checked against a model of its fields."""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from exlstm.serve.errors import Refusal, bad_field

Body = TypeVar("Body", bound=BaseModel)
TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)  # strings, whose brackets do not count, and brackets


def parsed(data: bytes, depth: int) -> Any:
    """The value of a JSON text. Refusal for bad UTF-8 or JSON, equal keys, NaN, lone surrogates and deep nesting."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise bad_field(None, "the body is not UTF-8; send JSON in UTF-8.") from None
    if nesting(text) > depth:
        raise bad_field(None, f"the JSON is nested more than {depth} deep; flatten it.")
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=not_json)
    except Refusal:
        raise
    except (ValueError, RecursionError):
        raise bad_field(None, "the body is not JSON; check its syntax.") from None
    if "\\u" in text and has_surrogate(value):
        raise bad_field(None, "a string has half of a surrogate pair; send whole characters.")
    return value


def nesting(text: str) -> int:
    """Depth of a JSON text."""
    deepest = depth = 0
    for found in TOKENS.finditer(text):
        if found[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in "]}":
            depth -= 1
    return deepest


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs; Refusal if a key is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise bad_field(None, "an object of the JSON has a key twice; send each once.")
    return found


def not_json(name: str) -> NoReturn:
    """Refusal of NaN and Infinity."""
    raise bad_field(None, f"{name} is no JSON; send finite numbers.")


def has_surrogate(value: Any) -> bool:
    """True if a string somewhere in a JSON value cannot be encoded."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, list):
        return any(map(has_surrogate, value))
    return isinstance(value, dict) and any(has_surrogate(key) or has_surrogate(x) for key, x in value.items())


def checked(kind: type[Body], value: Any) -> Body:
    """The fields of a request. Refusal, naming the field, for any that is wrong."""
    if not isinstance(value, dict):
        raise bad_field(None, "the body is not a JSON object; send one.")
    try:
        return kind.model_validate({key: x for key, x in value.items() if x is not None}, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise bad_field(place(first["loc"]), sentence(first["loc"], first["msg"])) from None


def place(path: Sequence[int | str]) -> str | None:
    """Path of a field as OpenAI writes it: messages.0.content. Names of types in unions are left out."""
    names = [str(part) for part in path if isinstance(part, int) or part.isidentifier()]
    return ".".join(names) or None


def sentence(path: Sequence[int | str], message: str) -> str:
    """A sentence about a field."""
    text = message[:1].lower() + message[1:].rstrip(".")
    return f"{place(path) or 'the body'}: {text.removeprefix('value error, ')}."
