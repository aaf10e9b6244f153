"""What the reconciler sees without a request: the caches of the watches, which may lag behind."""

from typing import Protocol

from dinoctl.cluster.objects import Key
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import Resource


class View(Protocol):
    """The objects returned are shared: who wants to change one copies it first."""

    def get(self, resource: Resource, key: Key) -> Object | None:
        """An object; None when it isn't there, or not seen yet."""

    def of_job(self, resource: Resource, key: Key) -> list[Object]:
        """Those with the label of a job, in its namespace."""

    def owned(self, resource: Resource, namespace: str, uid: str) -> list[Object]:
        """Those that ``uid`` owns."""

    def children(self, key: Key) -> list[Key]:
        """DinoJobs whose documents refer to a job."""
