"""Faults of one model, asked of the engine's door with the admin key of the local stack."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from contracts.errors import UnavailableError

SECONDS = 5.0
_PATH = "/headrace/faults"


class FaultDoor:
    """The part of the engine's door that makes one model slow or fail."""

    def __init__(self, engine_url: str, admin_key: str) -> None:
        self._url = engine_url.rstrip("/") + _PATH
        self._key = admin_key

    def check(self) -> None:
        """Raise UnavailableError unless the engine takes faults."""
        self._call("GET")

    def cause(self, fault: Mapping[str, Any]) -> None:
        """Make a model slow or fail; UnavailableError when the engine refuses."""
        self._call("POST", fault)

    def clear(self, model: str) -> None:
        """Let the model be as it is; UnavailableError when the engine refuses."""
        self._call("DELETE", query=f"?model={quote(model)}")

    def _call(self, method: str, body: Mapping[str, Any] | None = None, query: str = "") -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(  # noqa: S310 - address from the settings
            self._url + query,
            method=method,
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - as above
                answer.read()
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode("utf-8", "replace")
            raise UnavailableError(
                f"the engine takes no faults ({error.code}: {detail}); set engine.faults to true "
                "in the settings and start the stack again"
            ) from error
        except (urllib.error.URLError, HTTPException, OSError) as error:
            raise UnavailableError(f"{method} {self._url}: {error}") from error
