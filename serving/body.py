"""Reads a request body up to a bound."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from serving.wire_errors import Refusal

BODY_SECONDS = 10.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body; Refusal 413 beyond ``max_bytes``, 408 when it does not come."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(declared, max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(f"over {max_bytes}", max_bytes)
                parts.append(part)
    except TimeoutError as error:
        raise Refusal(408, f"body did not come within {BODY_SECONDS} s; send it at once") from error
    except ClientDisconnect as error:
        raise Refusal(400, "body ended before its length; send it whole") from error
    return b"".join(parts)


def _too_large(given: str, max_bytes: int) -> Refusal:
    return Refusal(
        413, f"body has {given} bytes, allowed {max_bytes}; shorten it", code="body_too_large"
    )
