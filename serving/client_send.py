"""Sending to a client that may not read: each wait for it has a deadline, and is measured.

A client that asks and never reads would hold its place among the requests under way for ever.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import Message, Send

from contracts.clock import Clock

SEND_SECONDS = 10.0
"""How long a client may leave what is sent to it unread before its connection is dropped."""


class ClientStalledError(Exception):
    """The client did not read in time; what it asked for is ended as if it had left."""


class ClientSend:
    """The ASGI ``send`` of one request; ``waited`` are the seconds that the client held it up."""

    def __init__(self, send: Send, clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self.waited = 0.0

    async def __call__(self, message: Message) -> None:
        """Send one message; ClientStalledError when the client takes none for `SEND_SECONDS`."""
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            raise ClientStalledError from error
        finally:
            self.waited += self._clock.monotonic() - began


class Server(uvicorn.Server):
    """A server whose connections are dropped with what waits in them for a client.

    Closing one only waits for the client to read the rest; where the system can, it gives up too.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen; a connection has the option of the socket that took it."""
        await super().startup(sockets)
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        for listening in (one for server in self.servers for one in server.sockets):
            if option is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
                listening.setsockopt(socket.IPPROTO_TCP, option, round(SEND_SECONDS * 1000))
