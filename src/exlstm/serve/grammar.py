"""Structured answers: tokens that may come next so that a text matches a JSON schema, a grammar or a regex.

The work is llguidance's (MIT), whose parsers take time linear in the text and never run a pattern of a request in
Python. Grammars are built within bounds of size and time; few are kept, for those come again and again.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.serve.templates import special_tokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_BYTES, MOST_SECONDS, MOST_KEPT = 1 << 18, 2.0, 64
MOST_DEPTH = 64  # of schemas and brackets, whose parsers recurse
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
SPECIAL = b"\xff"  # how llguidance marks tokens that no text spells
MISSING = "structured answers need llguidance, which is not installed; run: pip install 'exlstm[serve,structured]'"


@dataclass(frozen=True, kw_only=True)
class GrammarSpec:
    """What an answer has to match. text: JSON schema, regex, grammar of Lark, or JSON list of choices, by `kind`."""

    kind: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    text: str = ""


class GrammarConstraint:
    """Constraint of one answer to a grammar; see `exlstm.infer.constraint`."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self.matcher, self.vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        """Which tokens may come next, bool [C]; the stop token where the text may end."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self.check()
        return torch.from_numpy(np.unpackbits(bits, count=self.vocab_size, bitorder="little")).bool()

    def accept(self, token: int) -> None:
        """Notes a token that was sampled."""
        self.matcher.consume_token(token)
        self.check()

    @property
    def complete(self) -> bool:
        """True if nothing may follow."""
        return self.matcher.is_stopped()

    def copy(self) -> "GrammarConstraint":
        """The same for another sample."""
        return GrammarConstraint(self.matcher.deep_copy(), self.vocab_size)

    def check(self) -> None:
        """RuntimeError if the parser has given up, as it does on grammars that are too hard."""
        if self.matcher.is_error():
            raise RuntimeError(self.matcher.get_error())


class Grammars:
    """Builder of constraints for one tokenizer, which may be called from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_token: int) -> None:
        self.tokenizer, self.vocab_size, self.stop_token = tokenizer, vocab_size, stop_token
        self.kept: OrderedDict[GrammarSpec, LLMatcher] = OrderedDict()
        self.lock = Lock()
        self.library: LLTokenizer | None = None
        self.workers = ThreadPoolExecutor(2, thread_name_prefix="grammar")

    def constraint(self, spec: GrammarSpec) -> GrammarConstraint:
        """A constraint to this grammar. ValueError, in one sentence, for one that cannot be built in time."""
        if len(spec.text.encode()) > MOST_BYTES:
            raise ValueError(f"the grammar has more than {MOST_BYTES:,} bytes; send a smaller one.")
        with self.lock:
            found = self.kept.get(spec)
            if found is not None:
                self.kept.move_to_end(spec)
                return GrammarConstraint(found.deep_copy(), self.vocab_size)
        source = source_of(spec)
        try:
            matcher = self.workers.submit(self.built, source).result(MOST_SECONDS)
        except TimeoutError:
            raise ValueError(
                f"the grammar was not built within {MOST_SECONDS:g} seconds; send a simpler one."
            ) from None
        if matcher.is_error():
            raise ValueError(f"the grammar cannot be built: {first_line(matcher.get_error())}")
        with self.lock:
            self.kept[spec] = matcher
            while len(self.kept) > MOST_KEPT:
                self.kept.popitem(last=False)
        return GrammarConstraint(matcher.deep_copy(), self.vocab_size)

    def built(self, source: str) -> "LLMatcher":
        """The matcher of a grammar; it may be in error."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=2_000_000, max_items_in_row=2_000, step_max_items=50_000)
        with self.lock:
            if self.library is None:
                self.library = self.wrapped()
        return LLMatcher(self.library, source, log_level=0, limits=limits)

    def wrapped(self) -> "LLTokenizer":
        """The tokenizer as llguidance takes it: bytes of every token, and which are special."""
        from llguidance import LLTokenizer, TokenizerWrapper

        specials = {*special_tokens(self.tokenizer).values(), self.stop_token}
        spelled = [self.tokenizer.decode([token]) for token in range(self.vocab_size)]
        for token, spelling in enumerate(spelled):
            if token in specials or not spelling:
                spelled[token] = SPECIAL + f"<[{token}]>".encode()
        return LLTokenizer(TokenizerWrapper(TokenBytes(spelled, self.stop_token, self.tokenizer)))


class TokenBytes:
    """A tokenizer in the form that llguidance wraps."""

    def __init__(self, tokens: Sequence[bytes], stop_token: int, tokenizer: Tokenizer) -> None:
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, stop_token, stop_token
        self.special_token_ids = [token for token, spelling in enumerate(tokens) if spelling[:1] == SPECIAL]
        self.tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text."""
        return self.tokenizer.encode(text.encode() if isinstance(text, str) else text)


def source_of(spec: GrammarSpec) -> str:
    """The grammar as llguidance reads it. ValueError for a schema or a list that is none."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise ValueError(MISSING) from None
    text = '{"type": "object"}' if spec.kind == "json_object" else spec.text
    if depth_of(text) > MOST_DEPTH:
        raise ValueError(f"the grammar is nested more than {MOST_DEPTH} deep; flatten it.")
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the schema is not JSON; send an object.") from None
    if spec.kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise ValueError("the choices are not a list of texts; send at least one.")
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each) for each in value))
    if not isinstance(value, dict):
        raise ValueError("the schema is not a JSON object; send one.")
    return LLMatcher.grammar_from_json_schema(value)


def depth_of(text: str) -> int:
    """How deeply brackets of a text are nested, wherever they stand."""
    deepest = depth = 0
    for found in re.finditer(r"[(\[{}\])]", text):
        depth += 1 if found[0] in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def first_line(text: str) -> str:
    """The beginning of an error of the library, as the end of a sentence."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason is given")
    return f"{line[:200].rstrip('.')}."


def tool_schema(tools: Sequence[dict[str, Any]], name: str | None) -> GrammarSpec:
    """The grammar of a call: the arguments of the tool of this name, or for None a name with its arguments.

    tools: as in requests. ValueError for names and parameters that are none.
    """
    calls = {}
    for tool in tools:
        function = tool["function"]
        if not NAME.fullmatch(function["name"]):
            raise ValueError(f"{function['name'][:80]!r} is no name of a tool; use letters, digits, _ and -.")
        if not isinstance(function.get("parameters") or {}, dict):
            raise ValueError(f"the parameters of {function['name']} are no JSON schema; send an object.")
        calls[function["name"]] = function.get("parameters") or {"type": "object"}
    if name is not None:
        return GrammarSpec(kind="json_schema", text=json.dumps(calls[name]))
    schemas = [
        {
            "type": "object",
            "properties": {"name": {"const": each}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each, arguments in calls.items()
    ]
    return GrammarSpec(kind="json_schema", text=json.dumps({"anyOf": schemas}))
