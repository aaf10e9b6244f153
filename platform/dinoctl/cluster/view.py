"""What the reconciler sees without a request: the caches of the watches, which may lag behind."""

from typing import Any, Protocol

from dinoctl.cluster.protocol import Object


class Held(Protocol):
    """Objects of one kind. Those returned are the caller's own."""

    @property
    def missing(self) -> bool:
        """The cluster doesn't know the kind: its CRD isn't installed."""

    def get(self, namespace: str, name: str) -> Object | None:
        """An object; None when it isn't there, or not seen yet."""

    def of(self, namespace: str, name: str) -> list[Object]:
        """Those of a DinoJob; of Workloads, those of a RayJob."""

    def observe(self, body: Object) -> Any:
        """The answer to a write of one's own, so that the next look sees it."""


class View(Protocol):
    """The kinds that are watched."""

    @property
    def jobs(self) -> Held:
        """DinoJobs."""

    @property
    def rayjobs(self) -> Held:
        """RayJobs of attempts."""

    @property
    def pods(self) -> Held:
        """Pods of attempts."""

    @property
    def workloads(self) -> Held:
        """Kueue's Workloads of RayJobs."""

    @property
    def progress(self) -> Held:
        """ConfigMaps that workers report to."""
