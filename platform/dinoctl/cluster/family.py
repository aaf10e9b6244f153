"""A job's parents as it sees them, and who has to look when a job changes."""

import threading
from collections.abc import Iterable

from dinoctl.cluster.documents import parents_of
from dinoctl.cluster.objects import Key, condition, deleting
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import read_record
from dinoctl.cluster.view import View
from dinoctl.lifecycle import Job, ParentState, ParentView, Status
from dinoctl.lifecycle.graph import parent_views


def see_parents(view: View, namespace: str, job: Job) -> dict[str, ParentView]:
    """The parents' own statuses, as the lifecycle takes them."""
    bodies = {name: body for name in job.parents if (body := view.jobs.get(namespace, name)) is not None}
    views = parent_views(job, {name: _status(body) for name, body in bodies.items()})
    return {name: _view(bodies.get(name), seen) for name, seen in views.items()}


def outputs_of(view: View, namespace: str, parents: Iterable[str]) -> dict[str, str]:
    """Where parents leave their outputs."""
    bodies = {name: view.jobs.get(namespace, name) for name in parents}
    return {name: uri for name, body in bodies.items() if (uri := ((body or {}).get("status") or {}).get("storage"))}


def _status(body: Object) -> Status | None:
    try:
        return read_record(body).status
    except ValueError:
        return None


def _view(body: Object | None, seen: ParentView) -> ParentView:
    """What only the object tells: it is going away, or its document can't be read."""
    if body is None:
        return seen
    if deleting(body) and seen.state is not ParentState.COMPLETE:
        return ParentView(ParentState.DELETED, "it is being deleted", seen.spec_hash)
    invalid = condition(body, "Validated")
    if invalid.get("status") == "False" and seen.state is ParentState.RUNNING and not seen.spec_hash:
        return ParentView(ParentState.BLOCKED, f"its document is not valid: {invalid.get('message')}")
    return seen


class Kin:
    """Who refers to whom, as of each job's last look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parents: dict[Key, tuple[str, ...]] = {}
        self._children: dict[Key, set[str]] = {}

    def learn(self, key: Key, body: Object | None) -> None:
        """Takes in a document; None: it is gone."""
        new = parents_of(body) if body is not None else ()
        with self._lock:
            if self._parents.get(key, ()) == new:
                return
            for name in self._parents.pop(key, ()):
                self._leave(Key(key.namespace, name), key.name)
            for name in new:
                self._children.setdefault(Key(key.namespace, name), set()).add(key.name)
            if new:
                self._parents[key] = new

    def _leave(self, parent: Key, child: str) -> None:
        children = self._children.get(parent, set())
        children.discard(child)
        if not children:
            self._children.pop(parent, None)

    def children(self, key: Key) -> list[str]:
        """Names of the jobs that refer to this one."""
        with self._lock:
            return sorted(self._children.get(key, ()))
