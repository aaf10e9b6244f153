"""An API server in memory: resourceVersions, compare and set, server-side apply, watches, finalizers, the garbage
collector. For tests that kill the operator between any two writes, thousands of times.

What it can't say, tests/kube says against the real one. ``MemoryApi.hook`` is called before and after every request;
what it raises before means that the request was not done, after, that its answer was lost.
"""

import copy
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dinoctl.cluster.errors import Conflict, Exists, Forbidden, Gone, Invalid, NotFound
from dinoctl.cluster.protocol import Event, Keep, Kind, Listing, Object, Propagation
from dinoctl.cluster.resources import CONFIGMAPS, Resource
from dinoctl.spec import names
from support.kube.merging import applied, fields_match, merged, selected
from support.kube.state import Change, Key, MemoryServer

__all__ = ["Call", "MemoryApi", "MemoryServer"]


@dataclass(frozen=True)
class Call:
    """A request, as a hook sees it."""

    verb: str
    resource: Resource
    namespace: str | None
    name: str
    when: Literal["before", "after"]
    subresource: str = ""

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "apply", "patch", "delete")


class MemoryWatch:
    def __init__(self, server: MemoryServer, sees: Callable[[Key, Object | None], bool], since: int) -> None:
        self._server, self._sees, self._since = server, sees, since
        self._drops, self._bookmarks, self._closed = server.drops, server.bookmarks, False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        server = self._server
        with server.changed:
            while not self._closed and server.drops == self._drops:
                if self._since < server.oldest:
                    raise Gone("watch", "too old resource version", 410, "Expired")
                for change in server.history:
                    if change.version > self._since and (event := self._event(change)) is not None:
                        return event
                if self._bookmarks < server.bookmarks:
                    self._bookmarks, self._since = server.bookmarks, server.version
                    return "BOOKMARK", {"metadata": {"resourceVersion": str(server.version)}}
                server.changed.wait(1.0)
        raise StopIteration

    def _event(self, change: Change) -> Event | None:
        self._since = change.version
        before, after = self._sees(change.key, change.old), self._sees(change.key, change.new)
        if not before and not after:
            return None
        kind = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
        body = copy.deepcopy(change.new if change.new is not None else change.old) or {}
        body["metadata"]["resourceVersion"] = str(change.version)
        return kind, body

    def close(self) -> None:
        with self._server.changed:
            self._closed = True
            self._server.changed.notify_all()


class MemoryApi:
    """``protocol.Api`` for one client. ``hook`` sees every request of this client twice."""

    namespace = "default"

    def __init__(
        self, server: MemoryServer, hook: Callable[[Call], None] | None = None, manager: str = names.MANAGER
    ) -> None:
        self.server, self.hook, self.manager = server, hook, manager
        self._guard: Callable[[], None] = lambda: None

    def fenced(self, guard: Callable[[], None]) -> "MemoryApi":
        other = copy.copy(self)
        other._guard = guard
        return other

    def _do(
        self, verb: str, resource: Resource, namespace: str | None, name: str, work: Callable[[], Any], sub: str = ""
    ) -> Any:
        if verb in ("create", "apply", "patch", "delete"):
            self._guard()
        if self.hook is not None:
            self.hook(Call(verb, resource, namespace, name, "before", sub))
        with self.server.changed:
            if resource in self.server.missing:
                raise NotFound(f"{verb} {resource.plural}", "the server could not find the requested resource", 404)
            result = copy.deepcopy(work())
        if self.hook is not None:
            self.hook(Call(verb, resource, namespace, name, "after", sub))
        return result

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return self._do("get", resource, namespace, name, lambda: self._there("get", (resource, namespace or "", name)))

    def _there(self, verb: str, key: Key) -> Object:
        if key not in self.server.objects:
            text = f'{key[0].plural}.{key[0].group} "{key[2]}" not found'
            raise NotFound(f"{verb} {key[0].kind} {key[1]}/{key[2]}", text, 404, "NotFound")
        return self.server.objects[key]

    def _sees(
        self, resource: Resource, namespace: str | None, labels: str, fields: str
    ) -> Callable[[Key, Object | None], bool]:
        def sees(key: Key, body: Object | None) -> bool:
            inside = key[0] == resource and namespace in (None, key[1])
            return (
                inside
                and body is not None
                and selected(body["metadata"].get("labels") or {}, labels)
                and fields_match(body, fields)
            )

        return sees

    def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", keep: Keep | None = None
    ) -> Listing:
        sees = self._sees(resource, namespace, labels, fields)

        def work() -> Listing:
            found = [
                body for key, body in sorted(self.server.objects.items(), key=lambda x: x[0][1:]) if sees(key, body)
            ]
            return [keep(copy.deepcopy(body)) if keep else body for body in found], str(self.server.version)

        return self._do("list", resource, namespace, "", work)  # type: ignore[no-any-return]

    def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", since: str
    ) -> MemoryWatch:
        def work() -> None:
            if int(since) < self.server.oldest:
                raise Gone(f"watch {resource.plural}", "too old resource version", 410, "Expired")

        self._do("watch", resource, namespace, "", work)
        return MemoryWatch(self.server, self._sees(resource, namespace, labels, fields), int(since))

    def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        body = copy.deepcopy(body)
        if "name" not in body["metadata"]:
            body["metadata"]["name"] = body["metadata"]["generateName"] + uuid.uuid4().hex[:5]
        key = (resource, namespace or "", body["metadata"]["name"])

        def work() -> Object:
            if key in self.server.objects:
                raise Exists(f"create {resource.kind}", f'"{key[2]}" already exists', 409, "AlreadyExists")
            return self._new(key, body)

        return self._do("create", resource, namespace, key[2], work)  # type: ignore[no-any-return]

    def _new(self, key: Key, body: Object, *, dry_run: bool = False) -> Object:
        if key[1] in self.server.terminating:
            text = f"unable to create new content in namespace {key[1]} because it is being terminated"
            raise Forbidden(f"create {key[0].kind} {key[1]}/{key[2]}", text, 403, "Forbidden")
        meta = {**body["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": self.server.stamp(), "generation": 1}
        if key[1]:
            meta["namespace"] = key[1]
        new = {"apiVersion": key[0].api_version, "kind": key[0].kind, **body, "metadata": meta}
        if dry_run:
            return new
        self.server.store(key, new)
        self.server.collect()
        return self.server.objects.get(key, new)

    def apply(
        self, resource: Resource, namespace: str | None, body: Object, *, force: bool = True, dry_run: bool = False
    ) -> Object:
        key = (resource, namespace or "", body["metadata"]["name"])

        def work() -> Object:
            old = self.server.objects.get(key)
            owners = copy.deepcopy(self.server.owners.get(key, {}))
            start = old if old is not None else {"metadata": {"name": key[2]}}
            new, conflicts = applied(start, body, self.manager, owners)
            if conflicts and not force:
                text = f"conflict with another manager: {['.'.join(path) for path in conflicts]}"
                raise Conflict(f"apply {resource.kind}", text, 409, "Conflict")
            if old is None:
                new = self._new(key, new, dry_run=dry_run)
            else:
                self._check(key, old, new)
                new = new if dry_run else self._update(key, new)
            if not dry_run:
                self.server.owners[key] = owners
            return new

        return self._do("apply", resource, namespace, key[2], work)  # type: ignore[no-any-return]

    def _update(self, key: Key, new: Object) -> Object:
        new = self.server.settle(key, new)
        self.server.collect()
        return self.server.objects.get(key, new)

    def _check(self, key: Key, old: Object, new: Object) -> None:
        if key[0] == CONFIGMAPS and old.get("immutable") and old.get("data") != new.get("data"):
            text = "field is immutable when `immutable` is set"
            raise Invalid(f"patch ConfigMap {key[1]}/{key[2]}", text, 422, "Invalid")

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
        assert kind == "merge", "the others are for tests/kube"
        key = (resource, namespace or "", name)

        def work() -> Object:
            old = self._there("patch", key)
            for field_name in ("resourceVersion", "uid"):
                wanted = body.get("metadata", {}).get(field_name)
                if wanted not in (None, old["metadata"][field_name]):
                    text = "the object has been modified; please apply your changes to the latest version"
                    raise Conflict(f"patch {resource.kind} {namespace}/{name}", text, 409, "Conflict")
            new = merged(old, body)
            if subresource == "status":
                new = {**copy.deepcopy(old), "status": new.get("status", {})}
            elif "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)
            self._check(key, old, new)
            return self._update(key, new)

        return self._do("patch", resource, namespace, name, work, subresource)  # type: ignore[no-any-return]

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
        key = (resource, namespace or "", name)

        def work() -> None:
            body = self.server.objects.get(key)
            if body is not None and uid in (None, body["metadata"]["uid"]):
                self.server.mark(key, propagation, grace)
                self.server.collect()

        self._do("delete", resource, namespace, name, work)

    def logs(
        self, namespace: str, pod: str, *, container: str = "", follow: bool = False, tail: int | None = None
    ) -> Iterator[str]:
        lines = self.server.log_lines.get((namespace, pod, container), [])
        yield from lines if tail is None else lines[max(0, len(lines) - tail) :]
