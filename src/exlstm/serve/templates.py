"""Chat templates (Jinja) in a sandbox: messages -> the text or the tokens that a model was trained on.

A template comes with the weights, from anybody: it cannot reach Python's objects, loops and texts are bounded, and it
runs in a process of its own that is ended when its time is up. Texts of users stay texts: the template sees a random
marker in the place of each, and only what stands between the markers may become special tokens.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from exlstm.data.tokenizer import BPETokenizer, Tokenizer
from exlstm.models.locate import ModelOnDisk
from exlstm.nn.fields import json_value
from exlstm.serve.sandbox import Sandbox

TURNS = (
    "{% for message in messages %}{{ {'user': 'User: ', 'assistant': 'Assistant: ', 'system': ''}[message.role] }}"
    "{{ message.content }}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)  # what `exlstm chat` makes of lines
RESERVED = {
    "messages",
    "tools",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
}
MOST_BYTES = 1 << 20  # of a template

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatTemplate:
    """A template. source: its text. bos_token, eos_token: what it calls so. stop: texts that end an answer.

    Raises ValueError, in one sentence, for a template or messages that it cannot render.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    stop: tuple[str, ...] = ()

    @staticmethod
    def find(model: ModelOnDisk, given: str | None) -> "ChatTemplate | None":
        """The template in a file, the one called "turns", or the model's own; None if it has none."""
        if given == "turns":
            return ChatTemplate(source=TURNS, stop=("\nUser:",))
        folder = model.tokenizer_file.parent
        about = config_in(folder / "tokenizer_config.json")
        start, end = token_text(about.get("bos_token")), token_text(about.get("eos_token"))
        if given is not None:
            return ChatTemplate(source=read_template(Path(given)), bos_token=start, eos_token=end)
        beside = folder / "chat_template.jinja"
        if beside.is_file():
            return ChatTemplate(source=read_template(beside), bos_token=start, eos_token=end)
        found = about.get("chat_template")
        if isinstance(found, list):  # several with names
            found = next((each.get("template") for each in found if each.get("name") == "default"), None)
        return ChatTemplate(source=found, bos_token=start, eos_token=end) if isinstance(found, str) else None

    @cached_property
    def sandbox(self) -> Sandbox:
        """Where the template runs."""
        return Sandbox(self.source)

    def close(self) -> None:
        """Ends the process of the sandbox."""
        if "sandbox" in self.__dict__:
            self.sandbox.close()

    @property
    def has_tools(self) -> bool:
        """Whether the template says anything of tools."""
        return "tools" in self.sandbox.variables

    @cached_property
    def keeps_prefix(self) -> bool:
        """Whether a longer talk begins with the shorter one, so that a state can be gone on from."""
        talk = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
        try:
            texts = [self.render(talk[:size], add_generation_prompt=False) for size in (2, 4, 6)]
        except ValueError:
            return False
        return texts[1].startswith(texts[0]) and texts[2].startswith(texts[1])

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> str:
        """The text of messages. continue_final: it ends with the last message's content, to be continued."""
        values = self.values(messages, tools, kwargs, add_generation_prompt and not continue_final)
        text = self.sandbox.render(values)
        if not continue_final:
            return text
        content = str(messages[-1]["content"]).rstrip()
        place = text.rfind(content) if content else -1
        if place < 0:
            raise ValueError("the template changes the last message, so it cannot be continued; send it as a prompt.")
        return text[: place + len(content)]

    def parts(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> list[tuple[bool, str]] | None:
        """The text in parts, each with whether it is the template's own; None if it changes texts of messages."""
        marks: dict[str, str] = {}
        salt = secrets.token_hex(16)

        def marked(value: Any) -> Any:
            if isinstance(value, str) and value:
                marks[f"<{salt}-{len(marks)}>"] = value
                return f"<{salt}-{len(marks) - 1}>"
            if isinstance(value, Mapping):
                return {key: value[key] if key in ("role", "type") else marked(value[key]) for key in value}
            return [marked(each) for each in value] if isinstance(value, list | tuple) else value

        hidden, hidden_tools, hidden_kwargs = marked(list(messages)), marked(tools), marked(kwargs or {})
        used = set(marks)
        try:
            text = self.render(
                hidden,
                tools=hidden_tools,
                kwargs=hidden_kwargs,
                add_generation_prompt=add_generation_prompt,
                continue_final=continue_final,
            )
        except ValueError:
            return None  # a template may look into texts
        found = re.split(f"(<{salt}-[0-9]+>)", text)
        seen = found[1::2]
        wanted = [mark for message in hidden for mark in [message.get("content")] if mark in used]
        if salt in "".join(found[::2]) or sorted(seen) != sorted(set(seen)) or not set(wanted) <= set(seen):
            return None
        parts = [(n % 2 == 0, part if n % 2 == 0 else marks[part]) for n, part in enumerate(found)]
        # a template that looks at texts, to change or to leave out some, renders otherwise with them
        plain = self.render(
            messages,
            tools=tools,
            kwargs=kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
        )
        return [part for part in parts if part[1]] if "".join(part for _, part in parts) == plain else None

    def tokens(self, tokenizer: Tokenizer, messages: Messages, **settings: Any) -> list[int]:
        """Ids of messages: special tokens come from the template alone, whatever stands in the messages."""
        specials = special_tokens(tokenizer)
        parts = self.parts(messages, **settings)
        if parts is None:
            check_plain([messages, settings.get("tools"), settings.get("kwargs")], specials)
            parts = [(True, self.render(messages, **settings))]
        return ids_of(tokenizer, parts, specials)

    def more_tokens(self, tokenizer: Tokenizer, messages: Messages, **settings: Any) -> list[int]:
        """Ids of messages that follow an answer whose text was read, but not what the template puts behind it."""
        if not self.keeps_prefix:
            raise ValueError("this model's template changes earlier messages, so no state can be gone on from.")
        answer = secrets.token_hex(16)
        before = [{"role": "user", "content": "-"}, {"role": "assistant", "content": answer}]
        specials = special_tokens(tokenizer)
        talk = [*before, *messages]
        parts = self.parts(talk, **settings)
        if parts is None:
            check_plain([messages, settings.get("tools"), settings.get("kwargs")], specials)
            parts = [(True, self.render(talk, **settings))]
            _, found, rest = parts[0][1].rpartition(answer)
            return ids_of(tokenizer, [(True, rest)], specials) if found else []
        place = next(n for n, part in enumerate(parts) if part == (False, answer))
        return ids_of(tokenizer, parts[place + 1 :], specials)

    def values(
        self, messages: Messages, tools: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, prompt: bool
    ) -> dict[str, Any]:
        """Variables of the template. ValueError for others than it has."""
        for name in kwargs or {}:
            if name in RESERVED or name not in self.sandbox.variables:
                raise ValueError(f"the template takes no {name[:40]!r}; leave it out of chat_template_kwargs.")
        return {
            **(kwargs or {}),
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens of a tokenizer by their text; none for bytes."""
    if not isinstance(tokenizer, BPETokenizer):
        return {}
    added = tokenizer.to_json()["tokenizers"].get("added_tokens") or ()
    return {token["content"]: token["id"] for token in added if token.get("special")}


def ids_of(tokenizer: Tokenizer, parts: Sequence[tuple[bool, str]], specials: Mapping[str, int]) -> list[int]:
    """Ids of parts of a text. In the template's own, special tokens are themselves; in the others they are text."""
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    ids: list[int] = []
    for is_template, text in parts:
        start = 0
        for found in pattern.finditer(text) if is_template else ():
            ids += [*tokenizer.encode(text[start : found.start()].encode()), specials[found[0]]]
            start = found.end()
        ids += tokenizer.encode(text[start:].encode())
    return ids


def check_plain(values: Any, specials: Mapping[str, int]) -> None:
    """ValueError if a text of a request looks like a special token, which this template could not tell apart."""
    text = json.dumps(values, ensure_ascii=False, default=dict)
    for special in specials:
        if special in text or json.dumps(special, ensure_ascii=False)[1:-1] in text:
            raise ValueError(
                f"a message has {special!r} in it, which this template cannot tell from its own; change it."
            )


def config_in(file: Path) -> dict[str, Any]:
    """The object in a JSON file; none in a file that is not there."""
    if not file.is_file():
        return {}
    try:
        found = json_value(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); save it again.") from None
    return found if isinstance(found, dict) else {}


def token_text(value: Any) -> str:
    """The text of a token in a config: as it is, or in an object."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def read_template(file: Path) -> str:
    """A template in a file. ValueError for one that cannot be read."""
    try:
        data = file.read_bytes()
        if len(data) > MOST_BYTES:
            raise ValueError(f"{file} has {len(data):,} bytes; a template has {MOST_BYTES:,} at most.")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the template {file} cannot be read ({error}); name a file of text, or turns.") from None
