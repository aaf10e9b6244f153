"""``Api`` over HTTP: server-side apply, compare and set, lists in pages, watches with bookmarks."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import urllib3

from dinoctl.cluster.errors import Conflict, Gone, NotFound
from dinoctl.cluster.protocol import Keep, Kind, Listing, Object, Objects, Propagation
from dinoctl.cluster.resources import PODS, Resource
from dinoctl.cluster.retry import Patience, persistently
from dinoctl.cluster.stream import HttpWatch, lines
from dinoctl.cluster.transport import Transport
from dinoctl.spec import names

PAGE = 250
SILENCE = 90.0
"""Seconds. The API server sends a bookmark about once a minute, so a watch that is silent for longer is dead."""
_CONTENT = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


class HttpApi:
    """See ``protocol.Api``. ``namespace`` is that of the context, or of the pod that this runs in."""

    def __init__(
        self,
        transport: Transport,
        namespace: str = "default",
        manager: str = names.MANAGER,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self.transport, self.namespace, self.manager, self.patience = transport, namespace, manager, patience
        self._guard: Callable[[], None] = lambda: None

    def hurried(self, patience: Patience) -> "HttpApi":
        """The same connections with less patience, for writes that are worth nothing when they come late."""
        other = copy.copy(self)
        other.patience = patience
        return other

    def fenced(self, guard: Callable[[], None]) -> "HttpApi":
        """The same connections; ``guard`` is called before every try of every write and may refuse it."""
        other = copy.copy(self)
        other._guard = guard
        return other

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """See ``Api``."""
        return self._call("get", "GET", resource, namespace, name)

    def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", keep: Keep | None = None
    ) -> Listing:
        """See ``Api``. A list whose continuation expires (etcd was compacted) is read again from its beginning."""
        for last in (False, False, True):
            try:
                return self._pages(resource, namespace, _selectors(labels, fields), keep)
            except Gone:
                if last:
                    raise
        raise AssertionError("unreachable")

    def _pages(self, resource: Resource, namespace: str | None, query: dict[str, Any], keep: Keep | None) -> Listing:
        items: Objects = []
        token = ""
        while True:
            page = self._call("list", "GET", resource, namespace, query={**query, "limit": PAGE, "continue": token})
            found = page.get("items") or []
            for item in found:  # lists leave these out of their items
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
            items.extend(map(keep, found) if keep else found)
            token = page["metadata"].get("continue") or ""
            if not token:
                return items, page["metadata"]["resourceVersion"]

    def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", since: str
    ) -> HttpWatch:
        """See ``Api``. One try only: whoever watches knows from where to go on."""
        query = _selectors(labels, fields) | {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": since}
        query["timeoutSeconds"] = random.randint(240, 480)  # noqa: S311 - so that not all watches end at once
        what = _what("watch", resource, namespace)
        path, count = resource.path(namespace), ("watch", resource.plural)
        response = self.transport.send(what, "GET", path, query=query, timeout=SILENCE, count=count)
        return HttpWatch(response, what, self.transport.unreachable)

    def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """See ``Api``."""
        name = body["metadata"].get("name")  # without one, the server makes a new name each time
        return self._call("create", "POST", resource, namespace, body=body, repeatable=name is not None)

    def apply(
        self, resource: Resource, namespace: str | None, body: Object, *, force: bool = True, dry_run: bool = False
    ) -> Object:
        """See ``Api``."""
        query = {"fieldManager": self.manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        content, name = "application/apply-patch+yaml", body["metadata"]["name"]
        return self._call("apply", "PATCH", resource, namespace, name, query=query, body=body, content=content)

    def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Any,
        *,
        subresource: str = "",
        kind: Kind = "merge",
    ) -> Object:
        """See ``Api``."""
        query, content = {"fieldManager": self.manager}, _CONTENT[kind]
        return self._call(
            "patch", "PATCH", resource, namespace, name, subresource, query=query, body=body, content=content
        )

    def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        grace: int | None = None,
        propagation: Propagation = "Background",
        uid: str | None = None,
    ) -> None:
        """See ``Api``."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        body |= {} if grace is None else {"gracePeriodSeconds": grace}
        body |= {} if uid is None else {"preconditions": {"uid": uid}}
        try:
            self._call("delete", "DELETE", resource, namespace, name, body=body)
        except NotFound:
            pass
        except Conflict:
            if uid is None:
                raise

    def logs(
        self, namespace: str, pod: str, *, container: str = "", follow: bool = False, tail: int | None = None
    ) -> Iterator[str]:
        """See ``Api``. A followed log may be silent for hours; the connection's keep-alive finds a dead server."""
        query: dict[str, Any] = {"container": container} if container else {}
        query |= {"follow": "true"} if follow else {}
        query |= {} if tail is None else {"tailLines": tail}
        what, path = _what("logs", PODS, namespace, pod), PODS.path(namespace, pod, "log")
        timeout = None if follow else self.patience.timeout
        response = self._send(what, "GET", path, ("logs", "pods"), query=query, timeout=timeout)
        return (line.decode("utf-8", "replace") for line in lines(response, what, self.transport.unreachable))

    def _call(
        self,
        verb: str,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        subresource: str = "",
        *,
        repeatable: bool = True,
        **options: Any,
    ) -> Object:
        what, path = _what(verb, resource, namespace, name), resource.path(namespace, name, subresource)
        count, timeout = (verb, resource.plural), self.patience.timeout

        def once() -> Object:
            if method != "GET":
                self._guard()
            response = self.transport.send(what, method, path, timeout=timeout, count=count, **options)
            try:
                document: Object = response.json()
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise self.transport.unreachable(what, error) from error
            finally:
                response.release_conn()
            return document

        return persistently(once, self.patience, repeatable=repeatable)

    def _send(
        self, what: str, method: str, path: str, count: tuple[str, str], **options: Any
    ) -> urllib3.BaseHTTPResponse:
        send = self.transport.send
        return persistently(lambda: send(what, method, path, count=count, **options), self.patience, repeatable=True)


def _selectors(labels: str, fields: str) -> dict[str, Any]:
    return {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}


def _what(verb: str, resource: Resource, namespace: str | None, name: str = "") -> str:
    place = "/".join(part for part in (namespace, name) if part)
    return f"{verb} {resource.kind if name else resource.plural}" + (f" {place}" if place else "")
