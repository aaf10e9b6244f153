"""The ConfigMap that an attempt reports its progress to, through the API server, with the pod's own token.

A few lines over urllib3: the pods' token may do nothing but read and patch this one object. Every write names the
version that it was made from, so that an attempt that is replaced notices before it overwrites its successor's news.
"""

import json
import os
from pathlib import Path
from typing import Any

import urllib3

KEY = "progress.json"
CREDENTIALS = Path("/var/run/secrets/dinoctl")
_TRIES = 3
_TIMEOUT_S = 5.0
_CONFLICT = 409


class ReplacedError(RuntimeError):
    """A newer attempt reports already."""


class ProgressMap:
    """One ConfigMap. Raises OSError where it can't be read or written, in a line."""

    def __init__(self, namespace: str, name: str, attempt: int, credentials: Path = CREDENTIALS) -> None:
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._url = f"https://{place}/api/v1/namespaces/{namespace}/configmaps/{name}"
        self._attempt, self._credentials = attempt, credentials
        self._pool: urllib3.PoolManager | None = None
        self._version = ""

    def write(self, progress: dict[str, Any]) -> None:
        """Replaces what is said there.

        Raises:
            ReplacedError: by a newer attempt.
        """
        for _ in range(_TRIES):
            version = self._version or self._look()
            body = {"metadata": {"resourceVersion": version}, "data": {KEY: json.dumps(progress)}}
            status, answer = self._ask("PATCH", body)
            self._version = answer["metadata"]["resourceVersion"] if status < _CONFLICT else ""
            if self._version:
                return
        raise OSError(f"{self._url}: changed by others {_TRIES} times in a row")

    def _look(self) -> str:
        _, found = self._ask("GET")
        newest = _attempt_in((found.get("data") or {}).get(KEY))
        if newest > self._attempt:
            raise ReplacedError(f"attempt {newest} reports already")
        return str(found["metadata"]["resourceVersion"])

    def _ask(self, method: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        token = (self._credentials / "token").read_text().strip()  # each time: it is renewed in place
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        if self._pool is None:
            self._pool = urllib3.PoolManager(ca_certs=str(self._credentials / "ca.crt"), retries=False)
        try:
            text = None if body is None else json.dumps(body)
            answer = self._pool.request(method, self._url, body=text, headers=headers, timeout=_TIMEOUT_S)
            status, fields = answer.status, json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            self._pool, self._version = None, ""  # the next time with another connection, and the CA as it is then
            raise OSError(f"{method} {self._url}: {error}") from None
        if status >= 400 and status != _CONFLICT:
            self._version = ""
            raise OSError(f"{method} {self._url}: {status} {fields.get('message', '')}")
        return status, fields


def _attempt_in(text: Any) -> int:
    """Whose news it is; 0 where somebody has written something else there, which is simply replaced."""
    try:
        return int(json.loads(text)["attempt"])
    except (TypeError, ValueError, KeyError):
        return 0
