"""The few verbs that everything on the cluster goes through. Objects are plain dicts, as in JSON.

Two things implement them: ``HttpApi``, and in the tests an API server in memory with the same rules.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from dinoctl.cluster.resources import Resource

Object = dict[str, Any]
Objects = list[Object]
Listing = tuple[Objects, str]
Event = tuple[str, Object]
Kind = Literal["merge", "json", "strategic"]
Propagation = Literal["Foreground", "Background", "Orphan"]
Keep = Callable[[Object], Object]


class Watch(Protocol):
    """Events as they come; ends when the server ends it. ``close`` ends it from another thread."""

    def __iter__(self) -> Iterator[Event]: ...

    def __next__(self) -> Event: ...

    def close(self) -> None:
        """No more events; also when there is one already that nobody took."""


class Api(Protocol):
    """All raise ``errors.ApiError``. ``namespace`` None means all namespaces, or kinds that have none."""

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """An object as it is now; NotFound."""

    def list(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", keep: Keep | None = None
    ) -> Listing:
        """All objects and the resourceVersion to watch from. ``keep`` shortens each as its page comes, so that a long
        list never lies whole in memory.
        """

    def watch(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", since: str
    ) -> Watch:
        """ADDED, MODIFIED, DELETED and BOOKMARK after ``since``; Gone when that is too old."""

    def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """Exists when there is one of that name, also when it's ours and the answer to a first try was lost."""

    def apply(
        self, resource: Resource, namespace: str | None, body: Object, *, force: bool = True, dry_run: bool = False
    ) -> Object:
        """Server-side apply; Conflict without ``force`` when a field is another manager's."""

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
        """With ``metadata.resourceVersion`` in ``body`` compare and set: Conflict when it has changed since."""

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
        """Not there, or another object than ``uid`` under that name, is as good as done."""

    def logs(
        self, namespace: str, pod: str, *, container: str = "", follow: bool = False, tail: int | None = None
    ) -> Iterator[str]:
        """Lines of a container's log, as they come when ``follow``."""
