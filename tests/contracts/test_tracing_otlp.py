"""With an endpoint set, spans leave over OTLP/HTTP and no file is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROGRAM = """
import sys
from pathlib import Path
from contracts.tracing import span, start_tracing
provider = start_tracing("gateway", otlp_endpoint=sys.argv[1], span_file=Path(sys.argv[2]))
with span("chat assistant"):
    pass
provider.shutdown()
"""


@contextmanager
def collector(received: list[tuple[str, bytes]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def test_spans_reach_the_collector_that_is_set(tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []
    file = tmp_path / "gateway.jsonl"
    with collector(received) as endpoint:
        command = [sys.executable, "-c", PROGRAM, endpoint, str(file)]
        subprocess.run(command, check=True, timeout=60)
    ((path, body),) = received
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = [one.name for scope in resource.scope_spans for one in scope.spans]
    service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
    assert (service, names) == ("headrace-gateway", ["chat assistant"])
    assert not file.exists()
