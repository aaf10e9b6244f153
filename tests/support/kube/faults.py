"""A proxy in front of an API server that refuses, stalls, loses answers and cuts watches, on purpose.

Clients reach it through a kubeconfig of its own (:meth:`FaultProxy.kubeconfig`); it has the API server's certificate.
Every request is recorded, so a test can also count them, or wait for the one at which it wants to act: with
``Fault("hang", method="PATCH", skip=2, first=1)`` the third PATCH stops before the server sees it, with
``Fault("hang", ..., after=True)`` once the server has done it; in between a client can be killed.
"""

import asyncio
import json
import re
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from support.kube.access import Access
from support.kube.apiserver import ApiServer
from support.loops import served

Kind = Literal["status", "delay", "hang", "reset", "cut", "expire"]
_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Request:
    """What a client asked, in order of arrival. A watch has the method ``WATCH``."""

    method: str
    path: str
    """With its query."""
    agent: str


@dataclass
class Fault:
    """What goes wrong, for requests whose method and path match these regular expressions: after ``skip`` of them, the
    ``first`` so many (all, if None).

    ``status``: the answer is ``value`` (429 with Retry-After 1). ``delay``: ``value`` seconds. ``hang``: until the
    client gives up. ``reset``: the connection breaks. ``cut``: the answer (a watch's events) ends after ``value``
    seconds. ``expire``: a watch gets an ERROR event 410 after ``value`` seconds.
    ``after``: status, delay, hang and reset happen when the server has done its work.
    """

    kind: Kind
    method: str = ""
    path: str = ""
    value: float = 0.0
    first: int | None = None
    skip: int = 0
    after: bool = False
    hits: int = field(default=0, init=False)
    """How often it has struck."""
    _seen: int = field(default=0, init=False)

    def strikes(self, request: Request) -> bool:
        if not re.search(self.method, request.method) or not re.search(self.path, request.path):
            return False
        self._seen += 1
        if self._seen <= self.skip or (self.first is not None and self.hits >= self.first):
            return False
        self.hits += 1
        return True


class FaultProxy:
    """A running proxy. ``faults`` may be exchanged at any time; the first that strikes is the one that counts."""

    def __init__(self, api: Access) -> None:
        self.api, self.url = api, ""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []

    def kubeconfig(self, token: str = "", user: str = "admin", namespace: str = "default") -> Path:
        """As the administrator unless a token is given. For a ServiceAccount use
        ``api.service_account_kubeconfig(namespace, name, url=proxy.url)``.
        """
        return self.api.write_kubeconfig(user, token or self.api.token, namespace, self.url)

    def counts(self) -> "Counter[str]":
        """Requests by method."""
        return Counter(request.method for request in self.requests)

    def fault(self, request: Request) -> Fault | None:
        self.requests.append(request)
        return next((fault for fault in self.faults if fault.strikes(request)), None)


class _Handler:
    """Forwards one request after the other, on the proxy's loop."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        trusted = ssl.create_default_context(cafile=self._proxy.api.ca)
        connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
        # What is compressed stays so; a watch may last as long as its client.
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, asked: web.BaseRequest) -> web.StreamResponse:
        watch = asked.query.get("watch", "") in ("1", "true")
        request = Request("WATCH" if watch else asked.method, asked.path_qs, asked.headers.get("User-Agent", ""))
        fault = self._proxy.fault(request)
        body = await asked.read()
        if fault is not None and not fault.after and (answer := await _strike(fault, asked)) is not None:
            return answer
        return await self._forward(asked, body, fault)

    async def _forward(self, asked: web.BaseRequest, body: bytes, fault: Fault | None) -> web.StreamResponse:
        assert self._session is not None
        headers = [(name, text) for name, text in asked.headers.items() if name.lower() not in _HOP]
        target = f"{self._proxy.api.url}{asked.raw_path}"
        try:
            request = self._session.request(
                asked.method, URL(target, encoded=True), headers=headers, data=body or None, allow_redirects=False
            )
            async with request as got:
                if fault is not None and fault.after and (answer := await _strike(fault, asked)) is not None:
                    return answer
                return await _relay(asked, got, fault)
        except aiohttp.ClientError:  # the API server is not there: neither is the proxy
            raise _broken(asked) from None


async def _strike(fault: Fault, asked: web.BaseRequest) -> web.Response | None:
    """The answer in place of the server's, or None if the request goes on."""
    if fault.kind == "status":
        return _status(int(fault.value))
    if fault.kind == "reset":
        raise _broken(asked)
    if fault.kind == "hang":
        await asyncio.Event().wait()
    if fault.kind == "delay":
        await asyncio.sleep(fault.value)
    return None


def _status(code: int) -> web.Response:
    document = {**_document(code), "metadata": {}}
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.json_response(document, status=code, headers=headers)


def _document(code: int) -> dict[str, object]:
    reason = _REASONS.get(code, "Unknown")
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "code": code,
        "message": f"{reason}: as the test wants it",
    }


def _broken(asked: web.BaseRequest) -> ConnectionResetError:
    """Breaks the connection; the caller raises what this returns."""
    if asked.transport is not None:
        asked.transport.abort()
    return ConnectionResetError("broken by the test")


async def _relay(asked: web.BaseRequest, got: aiohttp.ClientResponse, fault: Fault | None) -> web.StreamResponse:
    answer = web.StreamResponse(status=got.status, reason=got.reason)
    for name, text in got.headers.items():
        if name.lower() not in _HOP:
            answer.headers.add(name, text)
    await answer.prepare(asked)
    limit = fault.value if fault is not None and fault.kind in ("cut", "expire") else None
    try:
        async with asyncio.timeout(limit):
            async for block in got.content.iter_any():
                await answer.write(block)
    except TimeoutError:
        if fault is not None and fault.kind == "cut":
            raise _broken(asked) from None
        event = {"type": "ERROR", "object": _document(410)}
        await answer.write(json.dumps(event).encode() + b"\n")
    await answer.write_eof()
    return answer


@contextmanager
def fault_proxy(api: ApiServer) -> Iterator[FaultProxy]:
    """A proxy on a loopback port of its own, in a thread, for the time of a ``with`` block."""
    proxy = FaultProxy(api)
    handler = _Handler(proxy)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(api.certificates.certificate, api.certificates.key)

    async def start() -> web.ServerRunner:
        await handler.open()
        runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        proxy.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def close(runner: web.ServerRunner) -> None:
        await runner.cleanup()
        await handler.close()

    with served(start, close):
        yield proxy
