"""Chat requests go straight to their endpoint, past router and middlewares.

What a router, two middlewares and their wrappers cost would be a tenth of a chat request.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHAT = "/v1/chat/completions"


class ChatFirst:
    """The ASGI application: ``chat`` takes its route, ``app`` all else.

    ``state`` is that of ``app``. ``fault`` makes the response to an exception that leaves ``chat``,
    as ``app`` does for its own.
    """

    def __init__(
        self, chat: ASGIApp, app: Starlette, fault: Callable[[Request, Exception], Response]
    ) -> None:
        self.state = app.state
        self._chat = chat
        self._app = app
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection; what was a fault is raised after its answer, for the log."""
        if scope["type"] != "http" or scope["path"] != CHAT or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._chat(scope, receive, tell)
        except Exception as error:
            if not begun:
                await self._fault(Request(scope), error)(scope, receive, send)
            raise
