"""What an API server keeps in memory: objects, their history, finalizers and the garbage collector."""

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dinoctl.cluster.protocol import Object, Propagation
from dinoctl.cluster.resources import PODS, Resource
from support.kube.merging import Path

Key = tuple[Resource, str, str]
_FOREGROUND = "foregroundDeletion"


@dataclass(frozen=True)
class Change:
    version: int
    key: Key
    old: Object | None = None
    new: Object | None = None


@dataclass
class MemoryServer:
    """The state. ``missing``: kinds whose CRD is not installed; ``terminating``: namespaces that take nothing new."""

    clock: Callable[[], float] = time.time
    missing: set[Resource] = field(default_factory=set)
    terminating: set[str] = field(default_factory=set)
    objects: dict[Key, Object] = field(default_factory=dict)
    owners: dict[Key, dict[str, set[Path]]] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    log_lines: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    version: int = 0
    oldest: int = 0
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    drops: int = 0
    bookmarks: int = 0

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def store(self, key: Key, new: Object | None) -> Object | None:
        """Makes ``new`` the object, or none; a change that changes nothing is none."""
        old = self.objects.get(key)
        if new is not None and old is not None and _bare(old) == _bare(new):
            return old
        self.version += 1
        if new is None:
            self.objects.pop(key, None)
            self.owners.pop(key, None)
        else:
            new["metadata"]["resourceVersion"] = str(self.version)
            if old is not None and old.get("spec") != new.get("spec"):
                new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
            self.objects[key] = new
        self.history.append(Change(self.version, key, old, new))
        self.changed.notify_all()
        return new

    def collect(self) -> None:
        """The garbage collector: what is to be deleted and may go, goes; so do orphans of owners that are gone."""
        before = -1
        while before != self.version:
            before = self.version
            alive = {body["metadata"]["uid"]: body for body in self.objects.values()}
            for key in list(self.objects):
                if key in self.objects:
                    self._collect(key, alive)

    def _collect(self, key: Key, alive: dict[str, Object]) -> None:
        meta = self.objects[key]["metadata"]
        owners = [alive.get(owner["uid"]) for owner in meta.get("ownerReferences", ())]
        orphaned = bool(owners) and not any(owners)
        if orphaned or any(owner and _FOREGROUND in owner["metadata"].get("finalizers", ()) for owner in owners):
            if "deletionTimestamp" not in meta:
                self.mark(key, "Background")
        elif _FOREGROUND in meta.get("finalizers", ()) and not self.dependents(meta["uid"]):
            new = copy.deepcopy(self.objects[key])
            new["metadata"]["finalizers"].remove(_FOREGROUND)
            self.settle(key, new)

    def dependents(self, uid: str) -> list[Key]:
        return [
            key
            for key, body in self.objects.items()
            if any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences", ()))
        ]

    def mark(self, key: Key, propagation: Propagation, grace: int | None = None) -> None:
        """Deletes, or sets the deletionTimestamp where a finalizer or a pod's grace stands against it."""
        new = copy.deepcopy(self.objects[key])
        meta = new["metadata"]
        if propagation == "Foreground" and _FOREGROUND not in meta.get("finalizers", ()):
            meta["finalizers"] = [*meta.get("finalizers", ()), _FOREGROUND]
        if propagation == "Orphan":
            for child in self.dependents(meta["uid"]):
                orphan = copy.deepcopy(self.objects[child])
                del orphan["metadata"]["ownerReferences"]
                self.store(child, orphan)
        meta.setdefault("deletionTimestamp", self.stamp())
        if _on_a_node(key, new) and grace != 0:
            self.store(key, new)  # until its kubelet says that it has ended: ``end_pod``
        elif meta.get("finalizers"):
            self.store(key, new)
        else:
            self.store(key, None)

    def settle(self, key: Key, new: Object) -> Object:
        """Stores an object, or removes it when it is to be deleted and nothing is left to wait for."""
        meta = new["metadata"]
        gone = "deletionTimestamp" in meta and not meta.get("finalizers") and not _on_a_node(key, new)
        return self.store(key, None if gone else new) or new

    def end_pod(self, namespace: str, name: str) -> None:
        """What a kubelet does when the processes of a pod that is to be deleted have ended."""
        with self.changed:
            self.store((PODS, namespace, name), None)
            self.collect()

    def end_namespace(self, namespace: str) -> None:
        """Deletion of a namespace: everything in it goes, and nothing new is let in."""
        with self.changed:
            self.terminating.add(namespace)
            for key in [key for key in self.objects if key[1] == namespace]:
                if key in self.objects:
                    self.mark(key, "Background", 0)
            self.collect()

    def bookmark(self) -> None:
        """Every watch is told how far it is."""
        with self.changed:
            self.bookmarks += 1
            self.changed.notify_all()

    def drop_watches(self) -> None:
        """All connections of watches break."""
        with self.changed:
            self.drops += 1
            self.changed.notify_all()

    def compact(self) -> None:
        """Forgets history, as etcd does: watches from before answer 410."""
        with self.changed:
            self.oldest = self.version
            self.history = [change for change in self.history if change.version > self.version]


def _on_a_node(key: Key, body: Object) -> bool:
    return key[0] == PODS and bool(body.get("spec", {}).get("nodeName"))


def _bare(body: Object) -> Object:
    meta = {key: value for key, value in body["metadata"].items() if key not in ("resourceVersion", "generation")}
    return {**body, "metadata": meta}
