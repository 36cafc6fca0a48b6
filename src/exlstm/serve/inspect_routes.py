"""/v1/inspect: what the memory of a block does, token by token. It is off the path of the streams."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response

from exlstm.infer.gates import GateReader, gated_blocks
from exlstm.serve.errors import bad_field
from exlstm.serve.schemas import InspectBody
from exlstm.serve.service import Service
from exlstm.serve.state_routes import ReadBody, json_response, takes

CHUNK = 128  # tokens between two steps of the engine
DIGITS = 4


def add_inspection(app: FastAPI, service: Service, read_body: ReadBody) -> None:
    """The routes of inspection."""

    @app.get("/v1/inspect")
    async def blocks() -> Response:
        """The blocks that have gates."""
        return json_response({"blocks": gated_blocks(service.model)})

    @app.post("/v1/inspect", openapi_extra=takes(InspectBody))
    async def inspect(request: Request) -> Response:
        """Forget and input gate of every token and head, from 0 to 1, after a state or from the beginning."""
        body = await read_body(service, request, InspectBody)
        return json_response(await gates_of(service, request.state.owner, body))


async def gates_of(service: Service, owner: str, body: InspectBody) -> dict[str, Any]:
    """The gates of these tokens."""
    service.check_ready()
    most = service.limits.inspected_tokens
    if len(body.tokens) > most:
        raise bad_field("tokens", f"there are {len(body.tokens):,} tokens; send {most:,} or fewer.")
    if wrong := [token for token in body.tokens if token >= service.vocab_size]:
        raise bad_field("tokens", f"token {wrong[0]} is outside the vocabulary of {service.vocab_size}.")
    after = None if body.state is None else await service.snapshot_of(owner, body.state)
    try:
        reader = GateReader(service.model, body.block, after)
    except ValueError as error:
        raise bad_field("block", str(error)) from None
    forget: list[list[float]] = []
    taken: list[list[float]] = []
    for start in range(0, len(body.tokens), CHUNK):
        chunk = body.tokens[start : start + CHUNK]
        forget_TH, input_TH = await service.thread.result(partial(reader.read, chunk))
        forget += forget_TH.round(decimals=DIGITS).tolist()
        taken += input_TH.round(decimals=DIGITS).tolist()
    return {"block": body.block, "heads": len(forget[0]), "forget": forget, "input": taken}
