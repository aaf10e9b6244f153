"""One HTTP request to the API server: credentials, time-outs, and failures as ``ApiError``.

The official client reads configurations, runs credential plugins and holds the connections; its generated models are
not used, because objects stay plain dicts here.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client import ApiClient

from dinoctl.cluster.errors import Unavailable, error_of
from dinoctl.spec.errors import redacted

Counter = Callable[[str, str, str], None]
"""Called after each request with verb, plural and status code ("error" when there was no answer)."""
CONNECT = 10.0
_CONNECTION = re.compile(r"^(?:<[^>]*>|HTTPS?Connection(?:Pool)?\([^)]*\)): ")
"""What urllib3 calls the connection, which says nothing that the address doesn't."""


class Transport:
    """Thread-safe."""

    def __init__(self, client: ApiClient, counter: Counter | None = None) -> None:
        self.client, self.counter = client, counter
        self.host: str = client.configuration.host
        self._credentials = threading.Lock()

    def send(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content: str = "application/json",
        timeout: float | None,
        count: tuple[str, str],
    ) -> urllib3.BaseHTTPResponse:
        """An answer whose body is not yet read; ``timeout`` is also the longest silence while it is read."""
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = self._headers() | ({"Content-Type": content} if body is not None else {})
        code = "error"
        try:
            response: urllib3.BaseHTTPResponse = self.client.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body, separators=(",", ":")),
                timeout=urllib3.Timeout(connect=min(CONNECT, timeout or CONNECT), read=timeout),
                preload_content=False,
                retries=False,
                redirect=False,
            )
            code = str(response.status)
            if response.status >= 300:
                body = response.read()
                response.release_conn()
                raise error_of(what, response.status, body, response.headers.get("Retry-After"))
            return response
        except urllib3.exceptions.HTTPError as error:
            raise self.unreachable(what, error) from error
        finally:
            if self.counter is not None:
                self.counter(*count, code)

    def _headers(self) -> dict[str, str]:
        with self._credentials:  # a plugin that fetches a new token must not run twice at once
            auth = self.client.configuration.auth_settings().get("BearerToken")
        headers = {"Accept": "application/json", "User-Agent": "dinoctl"}
        return headers | ({auth["key"]: auth["value"]} if auth else {})

    def unreachable(self, what: str, error: Exception) -> Unavailable:
        """There was no answer, or only a part of one."""
        text = _CONNECTION.sub("", redacted(getattr(error, "reason", None) or error))
        return Unavailable(what, f"the API server at {self.host} does not answer: {text}")
