"""``/metrics``, ``/healthz`` and ``/readyz``."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dinoctl.spec.errors import EnvironmentProblem

Check = Callable[[], str]
"""What is wrong, in words; empty when nothing is."""


class Server:
    """Answers on all addresses: probes and Prometheus come from outside the pod. ``port`` 0 takes a free one."""

    def __init__(self, port: int, pages: dict[str, Callable[[], bytes]], checks: dict[str, Check]) -> None:
        class Handler(_Handler):
            pass

        Handler.pages, Handler.checks = pages, checks
        try:
            self._server = ThreadingHTTPServer(("", port), Handler)
        except OSError as error:
            raise EnvironmentProblem(f"port {port} can't be opened: {error.strerror}; choose another") from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Callable[[], bytes]]
    checks: dict[str, Check]
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.pages:
            self._answer(200, self.pages[path](), "text/plain; version=0.0.4; charset=utf-8")
        elif path in self.checks:
            trouble = self.checks[path]()
            self._answer(503 if trouble else 200, (trouble or "ok").encode() + b"\n", "text/plain; charset=utf-8")
        else:
            self._answer(404, b"not found\n", "text/plain; charset=utf-8")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Probes are no events."""
