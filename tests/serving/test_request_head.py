"""The head of a request is bounded, for whoever can reach the gateway, keys or none."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from serving.request_head import HEAD_SECONDS, MAX_HEAD_BYTES
from tests.serving.http_server import Server

BEGIN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
REFUSED = b"HTTP/1.1 431 "


@pytest.fixture
def client(gateway: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=HEAD_SECONDS * 3) as found:
        yield found


def answer(client: socket.socket) -> bytes:
    """Return what comes until the connection ends, "" when it is dropped."""
    found = b""
    try:
        while piece := client.recv(65_536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def size_taken(client: socket.socket, piece: bytes, most: int) -> int:
    """Send pieces until the gateway takes no more; return the bytes that it took."""
    sent = 0
    try:
        while sent < most:
            client.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize("piece", [b"a" * 4096, b"X-A: 1\r\n" * 512], ids=["one", "many"])
def test_headers_without_end_are_refused(
    gateway: Server, client: socket.socket, piece: bytes
) -> None:
    client.sendall(BEGIN + (b"X-A: " if piece.startswith(b"a") else b""))
    client.sendall(piece * (MAX_HEAD_BYTES // len(piece)))
    assert answer(client).startswith(REFUSED)
    assert gateway.health()


def test_a_connection_whose_head_is_over_the_bound_is_closed(client: socket.socket) -> None:
    client.sendall(BEGIN + b"X-A: ")
    most = 64 << 20
    assert size_taken(client, b"a" * 65_536, most) < most


def test_a_chunked_body_has_no_trailers_without_end(client: socket.socket) -> None:
    client.sendall(BEGIN + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: ")
    most = 64 << 20
    assert size_taken(client, b"a" * 65_536, most) < most


def test_a_head_that_does_not_come_ends_the_connection(
    gateway: Server, client: socket.socket
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=HEAD_SECONDS * 3) as silent:
        client.sendall(BEGIN)
        assert answer(client) == b""
        assert answer(silent) == b""


def test_requests_one_after_the_other_on_a_connection_have_a_head_each(
    client: socket.socket,
) -> None:
    filler = b"X-A: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n"
    wanted = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + filler + b"\r\n"
    for _ in range(3):
        client.sendall(wanted)
        found = b""
        while b'"list"' not in found:
            piece = client.recv(65_536)
            assert piece, f"the connection ended after {found!r}"
            found += piece
        assert found.startswith(b"HTTP/1.1 200 ")


def test_a_large_body_is_no_head(client: socket.socket) -> None:
    body = b'{"model": "assistant", "messages": [], "x": "' + b"a" * 200_000 + b'"}'
    client.sendall(BEGIN + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    assert answer(client).startswith(b"HTTP/1.1 413 ")
