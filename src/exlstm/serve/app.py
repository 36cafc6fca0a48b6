"""The routes. Bodies are checked by models of their fields, of which the OpenAPI page is made."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from exlstm import __version__
from exlstm.serve.body import checked, parsed
from exlstm.serve.chat import applied, chat
from exlstm.serve.completions import complete
from exlstm.serve.errors import TYPES, Refusal, error_json
from exlstm.serve.guard import body_of
from exlstm.serve.inspect_routes import add_inspection
from exlstm.serve.pages import add_pages
from exlstm.serve.prompts import elsewhere
from exlstm.serve.responses import ResponsesBody, respond
from exlstm.serve.schemas import ChatBody, CompletionBody, DetokenizeBody, StrictFields, TemplateBody, TokenizeBody
from exlstm.serve.service import Service
from exlstm.serve.state_routes import add_sessions, add_states, json_response, takes
from exlstm.serve.tokens import detokenized, tokenized, tokenizer_info

Body = TypeVar("Body", bound=StrictFields)
LONG = 16_384  # bytes of a body that are parsed in a worker thread
OPEN_PATHS = ["/health", "/v1/health", "/health/live", "/version"]


def app_of(service: Service, *, playground: bool = True) -> FastAPI:
    """The app of a service."""
    app = FastAPI(
        title="exlstm",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description="Language models with a state of constant size, behind OpenAI's interface.",
    )
    app.state.service = service
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(Exception, mistake)
    add_inference(app, service)
    add_tokens(app, service)
    add_facts(app, service)
    add_states(app, service, read_body)
    add_sessions(app, service, read_body)
    add_inspection(app, service, read_body)
    if playground:
        add_pages(app)
    return app


async def http_error(request: Request, error: Exception) -> Response:
    """Errors of the router in our form."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path; see /openapi.json.", 405: "this path does not take that method."}
    message = words.get(error.status_code, "the request cannot be served.")
    body = error_json(message, TYPES.get(error.status_code, "invalid_request_error"), None)
    return Response(body, error.status_code, headers=error.headers, media_type="application/json")


async def refused(request: Request, error: Exception) -> Response:
    """A refusal as it is sent."""
    assert isinstance(error, Refusal)
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


async def mistake(request: Request, error: Exception) -> Response:
    """The answer where the server has failed; the guard writes the error to its log."""
    body = error_json("the server has made a mistake; its log says which.", "server_error", None)
    return Response(body, 500, media_type="application/json")


async def read_body(service: Service, request: Request, kind: type[Body]) -> Body:
    """The checked body of a request."""
    limits = service.limits
    data = await body_of(request.receive, request.headers, limits.body_bytes, limits.body_seconds)

    def read() -> Body:
        found = checked(kind, parsed(data, limits.json_depth))
        if found.model_extra:
            service.metrics.unknown.inc(len(found.model_extra))
        return found

    found: Body = await elsewhere(len(data) > LONG, read)
    return found


def add_inference(app: FastAPI, service: Service) -> None:
    """Completions and chat."""

    def add(path: str, kind: type[Body], answer: Callable[[Service, str, Body], Awaitable[Any]], text: str) -> None:
        async def endpoint(request: Request) -> Any:
            body = await read_body(service, request, kind)
            return await answer(service, request.state.owner, body)

        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=text,
            openapi_extra=takes(kind),
            response_model=None,
            name=kind.__name__,
        )

    add("/v1/completions", CompletionBody, complete, "Continue prompts")
    add("/v1/chat/completions", ChatBody, chat, "Answer messages")
    add("/v1/responses", ResponsesBody, respond, "Answer, and go on from an earlier answer")


def add_tokens(app: FastAPI, service: Service) -> None:
    """Text to ids and back."""

    @app.post("/tokenize", openapi_extra=takes(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        """Ids of a text."""
        return json_response(await tokenized(service, await read_body(service, request, TokenizeBody)))

    @app.post("/detokenize", openapi_extra=takes(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """Text of ids."""
        body = await read_body(service, request, DetokenizeBody)
        return json_response(await elsewhere(len(body.tokens) > LONG, detokenized, service, body))

    @app.get("/tokenizer_info")
    async def info(request: Request) -> Response:
        """The special tokens, as lm-eval asks for them."""
        return json_response(tokenizer_info(service))

    @app.post("/apply-template", openapi_extra=takes(TemplateBody))
    async def apply_template(request: Request) -> Response:
        """The prompt that a chat becomes."""
        return json_response({"prompt": await applied(service, await read_body(service, request, TemplateBody))})


def add_facts(app: FastAPI, service: Service) -> None:
    """What the server is, and how it fares."""

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """The models, preloaded states among them."""
        return json_response({"object": "list", "data": service.models()})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One model."""
        service.check_model(name)
        return json_response(next(each for each in service.models() if each["id"] == name))

    @app.get("/health")
    @app.get("/v1/health", include_in_schema=False)
    async def health() -> Response:
        """200 while new work is taken and the engine answers, else 503."""
        if not service.healthy:
            raise Refusal(503, f"the server is {service.phase}.", service.phase, headers={"retry-after": "5"})
        return json_response({"status": "ok"})

    @app.get("/health/live")
    async def live() -> Response:
        """200 as long as the process answers."""
        return json_response({"status": "ok"})

    @app.get("/version")
    async def version() -> Response:
        """The version of exlstm."""
        return json_response({"version": __version__})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
