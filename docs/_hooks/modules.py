"""Lists the modules of a package on a page of the API, so that no page forgets one."""

import pkgutil
import re
from importlib import import_module

MARK = re.compile(r"^<!-- modules of ([\w.]+) -->$", re.MULTILINE)


def modules(package: str) -> list[str]:
    """Full names of a package's modules; a package among them is followed by its definition, `reference`."""
    names = []
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        names.append(module.name)
        if module.ispkg:
            inner = (part.name for part in pkgutil.iter_modules(import_module(module.name).__path__))
            names += [f"{module.name}.{part}" for part in inner if part == "reference"]
    return names


def on_page_markdown(markdown: str, **_: object) -> str:
    """Puts a heading and the documentation of every module in the place of the mark."""
    section = "## `{0}`\n\n::: {0}\n"
    return MARK.sub(lambda found: "\n".join(section.format(name) for name in modules(found[1])), markdown)
