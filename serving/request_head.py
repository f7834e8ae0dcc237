"""Bounds what comes around a request's body: how large its head is, and how long it takes to come.

The parser keeps a header until it is whole, whoever sends it and before any key is asked for.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from contracts.codec import to_json
from serving.wire_errors import JSON, error_body

MAX_HEAD_BYTES = 65_536
"""Request line, headers, and what a chunked body has besides itself, trailers included."""
HEAD_SECONDS = 10.0


class BoundedHead(HttpToolsProtocol):
    """One connection: 431 beyond `MAX_HEAD_BYTES`, closed when a head takes `HEAD_SECONDS`."""

    _around = 0
    _awaits_head = True
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a piece; what it held of bodies is counted off while it is parsed."""
        self._around += len(data)
        super().data_received(data)
        if self._around > MAX_HEAD_BYTES:
            self._refuse()
        elif self._around > 0 and self._awaits_head and self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        """Let the request begin."""
        self._awaits_head = False
        self._in_time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, whose size is bounded where it is read."""
        self._around -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin anew with the next request of this connection."""
        self._around, self._awaits_head = 0, True
        super().on_message_complete()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer is under way, and may have begun
            return
        message = f"the head is over {MAX_HEAD_BYTES} bytes; send fewer or shorter headers"
        body = to_json(error_body(431, message, "head_too_large"))
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\n"
            f"content-type: {JSON}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
