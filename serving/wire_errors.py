"""Errors in the shape of the OpenAI API: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from msgspec import Struct
from starlette.responses import Response

from contracts.codec import to_json

JSON = "application/json"
DECISION_HEADER = "X-Headrace-Decision-Id"
RUNG_HEADER = "X-Headrace-Rung"


class Refusal(Exception):  # noqa: N818 - an answer to the client, not a fault of ours
    """A request that is answered with an error status; the message names value, bound and cure."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, code, param)
        self.retry_after = retry_after

    def response(self) -> Response:
        """Return the HTTP response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(to_json(self.body), self.status, headers, media_type=JSON)


class _Error(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    """The body of an error response and of an error event in a stream."""

    error: _Error


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> ErrorBody:
    """Return the body of an error with this HTTP status."""
    return ErrorBody(_Error(message, _type(status), param, code))


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    return "invalid_request_error" if status < 500 else "server_error"
