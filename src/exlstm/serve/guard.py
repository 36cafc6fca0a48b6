"""Guard in front of all routes: headers, host, key, media type, and errors in one form. Plain ASGI.

It runs before anything of a request is read. Paths that need no key are listed, not matched by prefix.
"""

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exlstm.serve.errors import Refusal
from exlstm.serve.keys import Keys
from exlstm.serve.limits import Limits
from exlstm.serve.replies import refuse

LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
MEDIA = {b"application/json", b"application/octet-stream"}


@dataclass(kw_only=True, eq=False)
class Guard:
    """Guard of an app. open_paths: those that need no key. hosts: names that Host may have, None for any; a page of
    another name may not talk to a server on this machine. log: called with a record of each request, or None."""

    app: ASGIApp
    keys: Keys
    limits: Limits
    open_paths: Collection[str]
    hosts: Collection[str] | None
    status: Callable[[int], None]
    log: Callable[[dict[str, Any]], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = {"id": uuid4().hex[:12], "method": scope["method"], "path": scope["path"], "status": 0}
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", record["id"].encode())]
            await send(message)

        try:
            owner = self.checked(scope)
            scope.setdefault("state", {})["owner"] = owner
            record["owner"] = owner
            scope["state"]["send"] = send
            await self.app(scope, receive, sending)
        except Refusal as refusal:
            await refuse(sending, refusal)
        except asyncio.CancelledError:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not record["status"]:
                await refuse(sending, Refusal(500, "the server has made a mistake; its log says which."))
        finally:
            self.status(int(record["status"]))
            if self.log is not None:
                self.log(record | {"seconds": round(time.perf_counter() - began, 4)})

    def checked(self, scope: Scope) -> str:
        """The owner of the request's key. Refusal for what must not pass."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self.limits.headers or size > self.limits.header_bytes:
            raise Refusal(431, "the headers are too many or too long; send fewer.")
        found = dict(headers)
        if self.hosts is not None:
            host = found.get(b"host", b"").decode("latin-1").lower()
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if name not in self.hosts:
                raise Refusal(403, "the Host is not this server's; use the address that it printed.")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            media = found.get(b"content-type", b"").split(b";")[0].strip().lower()
            if media not in MEDIA:
                raise Refusal(415, "the content-type must be application/json; set that header.")
        owner = self.keys.owner(key_of(found))
        if owner is None:
            if scope["path"] in self.open_paths and scope["method"] in ("GET", "HEAD"):
                return ""
            raise Refusal(
                401,
                "the API key is missing or wrong; send Authorization: Bearer KEY.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return owner


def key_of(headers: dict[bytes, bytes]) -> bytes | None:
    """The key in the headers, in either of two places."""
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    return headers.get(b"x-api-key")


async def body_of(receive: Receive, headers: Any, most: int, seconds: float) -> bytes:
    """The body of a request. Refusal for one that is larger, or that takes longer."""
    given = headers.get("content-length")
    if given is not None and given.isdecimal() and int(given) > most:
        raise too_large(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(408, "the body did not come to its end; send it again.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_large(most)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {seconds:g} seconds; send it faster.") from None
    return b"".join(parts)


def too_large(most: int) -> Refusal:
    """Refusal of a body, after which the connection is closed."""
    return Refusal(413, f"the body is larger than {most:,} bytes; send less.", headers={"connection": "close"})


def log_line(record: dict[str, Any]) -> None:
    """Writes a record of a request on standard error: JSON, so that nothing in it can look like another line."""
    print(json.dumps(record), file=sys.stderr, flush=True)
