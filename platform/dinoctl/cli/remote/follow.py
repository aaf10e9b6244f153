"""Waiting for jobs: a line for every change of state, and one now and then while they train."""

import time
from collections.abc import Callable, Iterator, Sequence

from dinoctl.cli.remote.rows import refusal, restarts, settled, state
from dinoctl.cli.remote.target import Cluster, told
from dinoctl.cli.remote.why import explain
from dinoctl.cli.screen import say
from dinoctl.cluster.errors import Gone, Unavailable
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.lifecycle.observed import far
from dinoctl.spec.errors import UserError

_LINE_EVERY_S = 10.0
_AGAIN_S = 2.0
_PATIENCE_S = 600.0


def changes(cluster: Cluster, names: Sequence[str] | None = None) -> Iterator[dict[str, Object | None]]:
    """The jobs of these names (or all) now, again after every change, and about once a minute; None for one that is
    gone. A watch that breaks is begun again; so is one to a server that is away, for ten minutes.
    """
    away: float | None = None
    while True:
        try:
            for found in _watched(cluster, names):
                away = None
                yield found
        except Gone:
            continue
        except Unavailable as error:
            now = time.monotonic()
            if away is None:
                say(f"{error}; trying again")
            away = away or now
            if now - away > _PATIENCE_S:
                raise
            time.sleep(_AGAIN_S)


def _watched(cluster: Cluster, names: Sequence[str] | None) -> Iterator[dict[str, Object | None]]:
    def wanted(name: str) -> bool:
        return names is None or name in names

    with told():
        found, since = cluster.api.list(DINOJOBS, cluster.namespace)
        jobs: dict[str, Object | None] = dict.fromkeys(names or ())
        jobs.update({job["metadata"]["name"]: job for job in found if wanted(job["metadata"]["name"])})
        yield dict(jobs)
        for kind, body in cluster.api.watch(DINOJOBS, cluster.namespace, since=since):
            name = body["metadata"].get("name", "")
            if kind != "BOOKMARK" and wanted(name):
                jobs[name] = None if kind == "DELETED" else body
            if kind == "BOOKMARK" or wanted(name):
                yield dict(jobs)


def wait(cluster: Cluster, names: Sequence[str], tell: Callable[[str], None] = say) -> list[Object]:
    """Until nothing more happens to any of them by itself.

    Raises:
        UserError: when one of them is deleted.

    """
    lines = _Lines(tell)
    for found in changes(cluster, names):
        gone = [name for name, job in found.items() if job is None]
        if gone:
            raise UserError(f"{gone[0]} was deleted")
        jobs = [job for job in found.values() if job is not None]
        for job in jobs:
            lines.update(job)
        if all(settled(job) for job in jobs):
            return [job for name in names for job in jobs if job["metadata"]["name"] == name]
    raise AssertionError("unreachable")


class _Lines:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._seen: dict[str, tuple[object, ...]] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def update(self, job: Object) -> None:
        name, status, now = job["metadata"]["name"], job.get("status") or {}, state(job)
        why = "" if now in ("Running", "Pending") else str(status.get("message") or "")
        if not status.get("state") or restarts(job) or refusal(job):  # what no operator has looked at, or can do
            why = explain(job, None, time.time())
        seen = (now, status.get("attempt"), why)
        if self._seen.get(name) != seen:
            self._seen[name] = seen
            number = f" (attempt {seen[1]})" if now == "Running" and (seen[1] or 0) > 1 else ""
            self._tell(f"{name}: {now}{number}{f': {why}' if why else ''}")
        if now == "Running" and status.get("step") is not None:
            self._step(name, status)

    def _step(self, name: str, status: Object) -> None:
        now, step = time.monotonic(), status["step"]
        told_at, told_step = self._told.get(name, (-_LINE_EVERY_S, -1))
        if step == told_step or now - told_at < _LINE_EVERY_S:
            return
        self._told[name] = (now, step)
        pace = f", {status['imagesPerSecond']:.0f} images/s" if status.get("imagesPerSecond") else ""
        left = f", {status['eta']} left" if status.get("eta") else ""
        done = far(step, status.get("steps", "?"), images=status.get("stage") in ("pack", "evaluate"))
        self._tell(f"{name}: {done}{pace}{left}")
