"""A proxy in front of an S3 server that is slow, overloaded, lying or in the wrong region, on purpose and repeatably.

Clients sign for the proxy's address and the Host header passes through unchanged, so signatures stay valid. Whether a
request is hit depends on the seed, the fault, the request (method, path, range) and how often that request has come:
not on the order in which threads happen to ask.
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from support.loops import served

Kind = Literal[
    *("latency", "bandwidth", "slowdown", "error", "truncate", "reset", "lost-answer", "flip"),
    *("skew", "missing", "expired", "denied", "redirect", "malformed"),
]
_ANSWERS: dict[str, tuple[int, str, str]] = {
    "slowdown": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "skew": (403, "RequestTimeTooSkewed", "The difference between the request time and the server's is too large."),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "redirect": (301, "PermanentRedirect", "The bucket must be addressed using another endpoint."),
    "malformed": (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"),
}
_BLOCK = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What goes wrong, for requests whose method and unquoted path match, the ``first`` so many or a share ``rate``.

    ``value``: seconds of latency before the first byte, or bytes a second of a connection, either way.
    ``lost-answer`` lets the server do its work and then breaks the connection. ``flip`` turns a bit of the body:
    the answer's for GET, the request's for PUT.
    """

    kind: Kind
    key: str = ""
    method: str = ""
    first: int | None = None
    rate: float = 1.0
    value: float = 0.0


@dataclass
class Proxy:
    """A running proxy. Faults may be exchanged at any time."""

    url: str
    faults: Sequence[Fault] = ()
    seed: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by method."""
    injected: Counter[str] = field(default_factory=Counter)
    """Faults by kind, latency and bandwidth not counted."""
    sent: int = 0
    """Bytes of answers' bodies."""
    received: int = 0
    """Bytes of requests' bodies."""
    _seen: Counter[str] = field(default_factory=Counter)
    _hits: Counter[int] = field(default_factory=Counter)

    def forget(self) -> None:
        """Counts from nothing."""
        self.requests.clear()
        self.injected.clear()
        self._seen.clear()
        self._hits.clear()
        self.sent = self.received = 0

    def struck(self, head: "_Head") -> dict[str, Fault]:
        """The faults that hit a request, by kind."""
        path = re.sub(r"^/[^/?]*|uploadId=[^&]*", "", head.path)  # the same for any bucket
        name = f"{head.method} {path} {head.fields.get('range', '')}"
        self._seen[name] += 1
        found = {}
        for number, fault in enumerate(self.faults):
            if not re.search(fault.key, head.path) or not re.search(fault.method, head.method):
                continue
            if fault.first is not None and self._hits[number] >= fault.first:
                continue
            text = f"{self.seed} {number} {name} {self._seen[name]}"
            if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < fault.rate:
                self._hits[number] += 1
                found[fault.kind] = fault
                if fault.kind not in ("latency", "bandwidth"):
                    self.injected[fault.kind] += 1
        return found


@dataclass
class _Head:
    """First line and fields (lower-case names) of a request or an answer; ``raw`` as it came."""

    raw: bytes
    first: str
    fields: dict[str, str]
    method: str = ""
    path: str = ""

    @staticmethod
    async def read(reader: asyncio.StreamReader) -> "_Head":
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return _Head(raw, first, fields)

    @staticmethod
    async def of_request(reader: asyncio.StreamReader) -> "_Head":
        head = await _Head.read(reader)
        head.method, target, _ = head.first.split(" ", 2)
        parts = urlsplit(target)
        head.path = unquote(parts.path) + (f"?{parts.query}" if parts.query else "")
        return head

    @property
    def length(self) -> int:
        return int(self.fields.get("content-length", 0))

    def without(self, name: str) -> bytes:
        lines = self.raw.split(b"\r\n")
        return b"\r\n".join(line for line in lines if not line.lower().startswith(name.encode() + b":"))


class _Broken(Exception):
    """The connection ends here, as a fault wants it."""


class _Connection:
    """One client's connection and the server's that belongs to it."""

    def __init__(
        self, proxy: Proxy, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy, self._upstream, self._reader, self._writer = proxy, upstream, reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        try:
            while True:
                await self._request(await _Head.of_request(self._reader))
        except (_Broken, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            for writer in filter(None, (self._writer, self._server and self._server[1])):
                writer.transport.abort()

    async def _request(self, head: _Head) -> None:
        proxy = self._proxy
        proxy.requests[head.method] += 1
        if head.fields.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._reader.readexactly(head.length)
        proxy.received += len(body)
        struck = proxy.struck(head)
        if "bandwidth" in struck:
            await asyncio.sleep(len(body) / struck["bandwidth"].value)
        if "latency" in struck:
            await asyncio.sleep(struck["latency"].value)
        if "reset" in struck:
            raise _Broken
        for kind in _ANSWERS:
            if kind in struck:
                await self._refuse(kind, head)
                return
        if "flip" in struck and head.method == "PUT":
            body = _flipped(body)
        await self._forward(head, body, struck)

    async def _refuse(self, kind: str, head: _Head) -> None:
        status, code, message = _ANSWERS[kind]
        text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>proxy</RequestId></Error>".encode()
        region = "x-amz-bucket-region: eu-west-1\r\n" if kind in ("redirect", "malformed") else ""
        fields = f"HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\ncontent-length: {len(text)}\r\n"
        self._writer.write(f"{fields}{region}\r\n".encode() + (b"" if head.method == "HEAD" else text))
        await self._writer.drain()

    async def _forward(self, head: _Head, body: bytes, struck: dict[str, Fault]) -> None:
        if self._server is None:
            self._server = await asyncio.open_connection(*self._upstream, limit=2**20)
        reader, writer = self._server
        writer.write(head.without("expect"))
        writer.write(body)
        await writer.drain()
        answer = await _Head.read(reader)
        if "lost-answer" in struck:
            raise _Broken
        self._writer.write(answer.raw)
        bodiless = head.method == "HEAD" or answer.first.split(" ")[1] in ("204", "304")
        if "transfer-encoding" in answer.fields and not bodiless:
            await self._relay_chunked(reader)
        elif not bodiless:
            await self._relay(reader, answer.length, struck if head.method == "GET" else {})
        await self._writer.drain()
        if answer.fields.get("connection", "").lower() == "close":
            raise _Broken

    async def _relay(self, reader: asyncio.StreamReader, length: int, struck: dict[str, Fault]) -> None:
        left = length // 2 if "truncate" in struck else length
        flip = "flip" in struck
        while left:
            data = await reader.read(min(_BLOCK, left))
            if not data:
                raise _Broken
            left -= len(data)
            if flip:
                data, flip = _flipped(data), False
            if "bandwidth" in struck:
                await asyncio.sleep(len(data) / struck["bandwidth"].value)
            self._writer.write(data)
            self._proxy.sent += len(data)
            await self._writer.drain()
        if "truncate" in struck:
            self._writer.write_eof()
            await asyncio.sleep(0.05)  # so that the client gets what was sent before the connection breaks
            raise _Broken

    async def _relay_chunked(self, reader: asyncio.StreamReader) -> None:
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            self._writer.write(line + await reader.readexactly(size + 2))
            self._proxy.sent += size
            if size == 0:
                return


def _flipped(data: bytes) -> bytes:
    """One bit of the middle byte turned."""
    turned = bytearray(data)
    if turned:
        turned[len(turned) // 2] ^= 1
    return bytes(turned)


@contextmanager
def proxied(url: str, faults: Sequence[Fault] = (), seed: int = 0) -> Iterator[Proxy]:
    """A proxy in front of ``url`` on a port of its own, in a thread, for the time of a ``with`` block."""
    parts = urlsplit(url)
    upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
    proxy = Proxy("", faults, seed)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await _Connection(proxy, upstream, reader, writer).run()
        tasks.discard(task)

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def close(server: asyncio.Server) -> None:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with served(start, close):
        yield proxy
