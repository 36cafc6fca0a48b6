"""The process in which a chat template runs: lines of JSON in, lines of JSON out. It imports Jinja and nothing of ours.

The first line has the template's text; the answer names its variables. Each further line has values to render with.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 29  # bytes of the process
MOST_CHARACTERS = 1 << 22  # of a rendered text


class TemplateRaised(Exception):
    """What a template says by raise_exception."""


class Generation(Extension):
    """The tag {% generation %} around answers, which says nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """The body of the tag."""
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def raise_exception(message: str) -> NoReturn:
    """What templates call for messages that they do not take."""
    raise TemplateRaised(str(message))


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """JSON as it is, without escapes for pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers gives to templates, in a sandbox."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    found.filters["tojson"] = tojson
    found.globals["raise_exception"] = raise_exception
    found.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return found


def rendered(template: jinja2.Template, values: dict[str, Any]) -> dict[str, str]:
    """The text, or the error in its place."""
    parts, size = [], 0
    try:
        for part in template.generate(**values):
            parts.append(part)
            size += len(part)
            if size > MOST_CHARACTERS:
                return {"error": f"the text has more than {MOST_CHARACTERS:,} characters"}
    except TemplateRaised as error:
        return {"error": str(error)[:300]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"text": "".join(parts)}


def main() -> None:
    """Renders until the other side closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source = json.loads(sys.stdin.readline())
    try:
        tree = environment().parse(source)
        names = sorted(jinja2.meta.find_undeclared_variables(tree))
        template = environment().from_string(source)
        print(json.dumps({"variables": names}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(rendered(template, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
