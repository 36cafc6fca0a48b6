"""Answers that are tool calls: text that follows a grammar of calls becomes `tool_calls`."""

import json
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from exlstm.serve.choices import ChoiceProgress
from exlstm.serve.formats import Delta
from exlstm.serve.schemas import ChatBody, NamedTool


@dataclass(eq=False)
class ToolCalls:
    """What turns text into calls. name: of the tool that has to be called; None: the text says which.

    Text is held back until the call is whole, for its name comes from inside of it.
    """

    name: str | None
    held: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(body: ChatBody) -> "ToolCalls | None":
        """What the answer to a chat needs, if that has to be a call."""
        if isinstance(body.tool_choice, NamedTool):
            return ToolCalls(body.tool_choice.function.name)
        return ToolCalls(None) if body.tool_choice == "required" else None

    def __call__(self, delta: Delta, progress: ChoiceProgress) -> Delta | None:
        """The delta to send: none but the last, with the call. A text that was cut off stays text."""
        index = progress.index
        text = self.held[index] = self.held.get(index, "") + delta.text
        if not progress.ended:
            return None
        call = self.call_of(text)
        if call is None:
            return replace(delta, text=text, first=True)
        # as vLLM has it: "stop" for a tool that was named
        reason = delta.finish_reason if self.name is not None else "tool_calls"
        return replace(delta, text="", tool_calls=[call], finish_reason=reason, first=True)

    def call_of(self, text: str) -> dict[str, Any] | None:
        """The call in a text; None if it is not whole."""
        try:
            value = json.loads(text)
            name, arguments = (self.name, value) if self.name is not None else (value["name"], value["arguments"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"index": 0, "id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}
