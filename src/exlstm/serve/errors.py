"""Errors in the form of OpenAI's interface: every answer that is not a success."""

import json
from dataclasses import dataclass, field

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    411: "invalid_request_error",
    412: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    416: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout_error",
}


@dataclass(eq=False)
class Refusal(Exception):
    """An answer of `status`, 400 and above. message: a sentence with the remedy; param: the field that is wrong."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """The answer's JSON."""
        return error_json(self.message, TYPES[self.status], self.code, self.param)


def error_json(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """An error object with all four keys."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def bad_field(param: str | None, message: str, code: str | None = None) -> Refusal:
    """Refusal of a field of the request."""
    return Refusal(400, message, code, param)


def engine_failed(message: str) -> Refusal:
    """Refusal of a request whose computation failed and would fail again."""
    return Refusal(500, message, "engine_error", headers={"x-should-retry": "false"})


def busy(message: str, code: str, seconds: float, status: int = 429) -> Refusal:
    """Refusal for now. seconds: after which a retry may do, from 1 to 60."""
    return Refusal(status, message, code, headers={"retry-after": str(min(60, max(1, round(seconds))))})
