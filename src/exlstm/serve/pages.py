"""The playground's files: read from the package once, served from memory. They load nothing from elsewhere."""

import hashlib
from importlib.resources import files

from fastapi import FastAPI, Request, Response

MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def static_files() -> dict[str, tuple[bytes, str]]:
    """Path -> content and media type."""
    found = {}
    for file in files("exlstm.serve").joinpath("static").iterdir():
        ending = "." + file.name.rpartition(".")[2]
        if ending in MEDIA:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = file.read_bytes(), MEDIA[ending]
    return found


def add_pages(app: FastAPI) -> None:
    """Routes of the playground."""
    for path, (data, media) in static_files().items():
        add_page(app, path, data, media)


def add_page(app: FastAPI, path: str, data: bytes, media: str) -> None:
    """The route of a file."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**POLICY, "etag": tag}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=media)

    app.add_api_route(path, page, methods=["GET"], include_in_schema=False, response_model=None)
