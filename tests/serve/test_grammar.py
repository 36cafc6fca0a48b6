"""Structured answers: whatever is sampled under the mask matches; what cannot be built is refused with a reason."""

import json

import jsonschema
import pytest
import torch

from exlstm.data.tokenizer import ByteTokenizer, train_bpe
from exlstm.serve import grammar
from exlstm.serve.grammar import GrammarConstraint, Grammars, GrammarSpec, tool_schema

SCHEMAS = {
    "object": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False,
    },
    "enum": {"enum": ["red", "green", 3, None]},
    "nested": {
        "type": "object", "required": ["p"], "additionalProperties": False,
        "properties": {"p": {"type": "object", "required": ["q"], "properties": {"q": {"type": "boolean"}},
                             "additionalProperties": False}},
    },
    "bounded array": {
        "type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3,
    },
    "any of": {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 7}, {"const": "none"}]},
    "reference": {
        "$defs": {"node": {"type": "object", "properties": {"v": {"enum": [1, 2]}}, "required": ["v"],
                           "additionalProperties": False}},
        "type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1, "maxItems": 2,
    },
    "pattern": {"type": "string", "pattern": "^[ab]{2,4}$"},
    "length": {"type": "string", "minLength": 1, "maxLength": 3},
    "date": {"type": "string", "format": "date"},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "tuple": {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False, "minItems": 2},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 3, "maximum": 4}]},
}  # fmt: skip
BYTES = ByteTokenizer()
BPE = train_bpe([json.dumps([SCHEMAS, list(range(40))]).encode() * 3], 400)


def grammars_of(tokenizer):
    return Grammars(tokenizer, tokenizer.vocab_size, tokenizer.boundary)


def sampled(constraint, tokenizer, seed, most=400):
    """A text of tokens drawn evenly from those that are allowed, the end first; None if it does not end."""
    generator, tokens = torch.Generator().manual_seed(seed), []
    while len(tokens) < most:
        allowed_C = constraint.allowed()
        if allowed_C[tokenizer.boundary]:
            return tokenizer.decode(tokens).decode()
        ids = allowed_C.nonzero()[:, 0]
        token = int(ids[torch.randint(len(ids), (), generator=generator)])
        tokens.append(token)
        constraint.accept(token)
        if constraint.complete:
            return tokenizer.decode(tokens).decode()
    return None


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_whatever_is_sampled_matches_the_schema(tokenizer):
    grammars, ended = grammars_of(tokenizer), 0
    for name, schema in SCHEMAS.items():
        for seed in range(5):
            text = sampled(
                grammars.constraint(GrammarSpec(kind="json_schema", text=json.dumps(schema))), tokenizer, seed
            )
            if text is not None:
                ended += 1
                jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
        assert ended, name
    assert ended > 50


def test_other_kinds():
    grammars = grammars_of(BYTES)
    assert sampled(grammars.constraint(GrammarSpec(kind="choice", text='["yes", "no"]')), BYTES, 1) in ("yes", "no")
    assert set(sampled(grammars.constraint(GrammarSpec(kind="regex", text="[xy]{3}")), BYTES, 0)) <= {"x", "y"}
    assert sampled(grammars.constraint(GrammarSpec(kind="lark", text='start: "a" "b"+')), BYTES, 0) == "ab"
    text = sampled(grammars.constraint(GrammarSpec(kind="json_object")), BYTES, 3)
    assert text is None or isinstance(json.loads(text), dict)


def test_copies_do_not_see_each_other():
    first = grammars_of(BYTES).constraint(GrammarSpec(kind="choice", text='["ab", "ac"]'))
    first.accept(ord("a"))
    second = first.copy()
    first.accept(ord("b"))
    assert first.complete
    assert not second.complete
    assert second.allowed().nonzero()[:, 0].tolist() == [ord("b"), ord("c")]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", "[]"), ("json_schema", "{"), ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"$ref": "https://example.com/schema.json"}'), ("json_schema", '{"$ref": "#/$defs/none"}'),
        ("json_schema", '{"type": "string", "pattern": "("}'), ("json_schema", '{"a":' * 10_000 + "1" + "}" * 10_000),
        ("json_schema", '{"enum": ["' + "x" * 300_000 + '"]}'), ("regex", "("), ("regex", "(" * 5_000 + ")" * 5_000),
        ("lark", "start: missing"), ("lark", "\x00"), ("choice", "[]"), ("choice", '["a", 3]'), ("choice", "{}"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(kind, text):
    with pytest.raises(ValueError, match=r".+\.$") as error:
        grammars_of(BYTES).constraint(GrammarSpec(kind=kind, text=text))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_few_grammars_are_kept_and_slow_ones_are_given_up(monkeypatch):
    grammars = grammars_of(BYTES)
    for number in range(grammar.MOST_KEPT + 5):
        grammars.constraint(GrammarSpec(kind="regex", text=f"a{{{number + 1}}}"))
    assert len(grammars.kept) == grammar.MOST_KEPT
    monkeypatch.setattr(grammar, "MOST_SECONDS", 0.0)
    with pytest.raises(ValueError, match="simpler"):
        grammars.constraint(GrammarSpec(kind="regex", text="b{3}"))


def test_tools():
    parameters = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tools = [{"function": {"name": "f", "parameters": parameters}}, {"function": {"name": "g", "parameters": None}}]
    grammars = grammars_of(BYTES)
    named = sampled(grammars.constraint(tool_schema(tools[:1], "f")), BYTES, 0)
    jsonschema.validate(json.loads(named), parameters)
    call = json.loads(sampled(grammars.constraint(tool_schema(tools[:1], None)), BYTES, 2))
    assert call["name"] == "f"
    jsonschema.validate(call["arguments"], parameters)
    with pytest.raises(ValueError, match="no name of a tool"):
        tool_schema([{"function": {"name": "a b"}}], None)


def test_a_token_that_does_not_match_is_an_error():
    constraint = grammars_of(BYTES).constraint(GrammarSpec(kind="choice", text='["a"]'))
    assert isinstance(constraint, GrammarConstraint)
    with pytest.raises(RuntimeError):
        constraint.accept(ord("z"))
