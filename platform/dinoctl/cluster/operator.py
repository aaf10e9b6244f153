"""The operator: caches feed the queue, threads look at jobs, and only the holder of the lease writes.

A replica that waits for the lease follows all the same, so it takes over with warm caches. When the lease is lost,
threads pause; when it comes (back), every job is looked at, because nothing that happened meanwhile may be missed.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dinoctl.cluster import caches as watched
from dinoctl.cluster.cache import Name
from dinoctl.cluster.caches import Caches
from dinoctl.cluster.errors import ApiError, Conflict, NotLeading
from dinoctl.cluster.lease import Lease, Terms
from dinoctl.cluster.metrics import Metrics
from dinoctl.cluster.objects import deleting
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.queue import Item, WorkQueue
from dinoctl.spec import names
from dinoctl.spec.profile import OperatorConfig

_log = logging.getLogger("dinoctl.operator")
LEASE = "dinoctl-operator"
_PROGRESS_SHARE, _PROGRESS_S = 0.1, (5.0, 30.0)
"""What workers report is no reason for haste, and a thousand jobs report all the time: the look that follows waits so
many seconds a running job, within these bounds.
"""
LOST_S = 30.0
"""How long a start waits for namespaces that may not be listed: deleted ones, or those whose Role is gone."""
STUCK = 900.0
"""Seconds after which one look at a job counts as stuck."""


class FencedApi(Api, Protocol):
    """An API whose writes can be forbidden."""

    def fenced(self, guard: Callable[[], None]) -> Api:
        """See ``HttpApi.fenced``."""


class Reconciler(Protocol):
    """What is done with a job. Called by several threads, never by two for one job."""

    def lead(self) -> None:
        """Leadership begins: whatever was known may be old."""

    def reconcile(self, key: Name) -> float | None:
        """Looks at a job and acts; seconds until the next look if nothing happens, None: before the resync."""

    def children(self, namespace: str, job: str) -> Iterable[str]:
        """Jobs that wait for this one."""

    def close(self) -> None:
        """Ends what it started."""


Make = Callable[[Api, Caches, OperatorConfig, Metrics], Reconciler]


class Operator:
    """One replica. ``hasty`` is the API for the lease: little patience, because a late renewal is worth nothing."""

    def __init__(
        self,
        api: FencedApi,
        config: OperatorConfig,
        make: Make,
        *,
        namespace: str,
        identity: str,
        metrics: Metrics,
        hasty: Api | None = None,
        terms: Terms = Terms(),  # noqa: B008 - frozen
    ) -> None:
        self.config, self.metrics = config, metrics
        self.queue: WorkQueue[Name] = WorkQueue(first=0.2)
        namespaces = config.namespaces or [namespace]
        self._namespaces = len(set(namespaces))
        self.caches = watched.build(
            api,
            namespaces,
            job_changed=self._job_changed,
            job_written=self._job_seen,
            wants=self._wants,
            progressed=self._progressed,
            restarted=metrics.restarted,
        )
        self.lease = Lease(hasty or api, namespace, LEASE, identity, began=self._began, ended=self._ended, terms=terms)
        self.reconciler = make(api.fenced(self.lease.check), self.caches, config, metrics)
        self._stopping = threading.Event()
        self._looks: dict[str, float] = {}
        self._faces: dict[Name, int] = {}
        self._open = self._complete = False
        self._lost = ""
        self._threads = [
            threading.Thread(target=self._work, name=f"look-{number}", daemon=True) for number in range(config.workers)
        ]
        self._measure()

    def run(self, stop: threading.Event) -> None:
        """Works until ``stop``, then ends in order: no new looks, running ones end, the lease is given back."""
        for cache in self.caches.all():
            cache.start()
        try:
            if self._wait_for_caches(stop):
                for thread in self._threads:
                    thread.start()
                self.lease.start()
                while not stop.wait(30.0):
                    self._watch_memory()
                    self._tell_lost()
        finally:
            self._end()

    def unwell(self) -> str:
        """For ``/healthz``: a thread that has died or is stuck, which a restart would mend."""
        started = [thread for thread in (*self._threads, self.lease.thread) if thread.ident is not None]
        dead = [thread.name for thread in started if not thread.is_alive()]
        now = time.monotonic()
        stuck = [name for name, since in list(self._looks.items()) if now - since > STUCK]
        silent = [f"watch of {cache.resource.plural}" for cache in self.caches.all() if not cache.alive]
        return "; ".join(
            [*(f"thread {name} has ended" for name in dead), *(f"{name} is stuck" for name in stuck)]
            + [f"{name} has ended" for name in silent]
        )

    def unready(self) -> str:
        """For ``/readyz``: what keeps this replica from working or taking over."""
        behind = self._troubles()
        if self._complete and len(self.caches.unlisted) < self._namespaces:
            behind = ""  # what is lost doesn't keep it from working elsewhere
        missing = "the CRD of DinoJobs is not installed" if self.caches.jobs.missing else ""
        return "; ".join(filter(None, (behind, missing)))

    def _troubles(self) -> str:
        late = (cache for cache in self.caches.all() if not cache.synced)
        return "; ".join(cache.trouble or f"{cache.resource.plural} not listed" for cache in late)

    def _wait_for_caches(self, stop: threading.Event) -> bool:
        begin = told = time.monotonic()
        while unlisted := self.caches.unlisted:
            if stop.wait(0.1):
                return False
            if all(unlisted.values()) and time.monotonic() - begin > LOST_S:
                break
            if time.monotonic() - told > 10.0:
                told = time.monotonic()
                _log.warning("waiting for the API server: %s", self.unready(), extra={"reason": "NotSynced"})
        self._complete = True
        self._tell_lost()
        _log.info("watching %d jobs", len(self.caches.jobs), extra={"reason": "Synced"})
        return not stop.is_set()

    def _tell_lost(self) -> None:
        lost = ", ".join(sorted(self.caches.unlisted))
        if lost and lost != self._lost:
            text = "namespace %s may not be watched, its jobs are left alone: %s"
            _log.warning(text, lost, self._troubles(), extra={"reason": "NamespaceLost"})
        elif lost != self._lost:
            _log.info("all namespaces are watched", extra={"reason": "NamespaceBack"})
        self._lost = lost

    def _blind(self, key: Name) -> bool:
        """Not all that belongs to the job may be watched; only one that is going needs no more than itself."""
        body = self.caches.jobs.get(*key) if key[0] in self.caches.unlisted else None
        return body is not None and not deleting(body)

    def _wants(self, key: Name) -> None:
        if self._open:  # else all are looked at when leadership begins
            self.queue.add(key)

    def _progressed(self, key: Name) -> None:
        if self._open:
            least, most = _PROGRESS_S
            wait = min(most, max(least, _PROGRESS_SHARE * self.metrics.jobs.states["Running"]))
            self.queue.add_after(key, wait, patient=True)

    def _job_changed(self, body: Object) -> None:
        self._wants((body["metadata"]["namespace"], body["metadata"]["name"]))
        self._job_seen(body)

    def _job_seen(self, body: Object) -> None:
        """Figures, and a look at the children: but not because a job has trained some steps more."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        gone = key not in self.caches.jobs
        self.metrics.jobs.changed(body, gone=gone)
        face = None if gone else _face(body)
        if self._faces.get(key) == face:
            return
        if face is None:
            self._faces.pop(key, None)
        else:
            self._faces[key] = face
        # A child acts on a parent that has ended; of all others it only says that it waits, and a sweep may do that.
        ended = (body.get("status") or {}).get("state") in names.ENDED_STATES
        wake = self._wants if face is None or ended else self._would_hear
        for child in self.reconciler.children(*key):
            wake((key[0], child))

    def _would_hear(self, key: Name) -> None:
        if self._open:
            self.queue.add_patient(key)

    def _began(self) -> None:
        self.reconciler.lead()
        self._open = True  # before the sweep, so that nothing falls between it and the events
        for key in self.caches.jobs.names():
            self.queue.add_patient(key)
        self.metrics.leader.set(1)

    def _ended(self) -> None:
        self._open = False
        self.metrics.leader.set(0)

    def _work(self) -> None:
        while not self._stopping.is_set():
            if not self.lease.held():
                self._stopping.wait(0.2)
                continue
            item = self.queue.get(timeout=1.0)
            if item is not None:
                try:
                    self._look(item)
                finally:
                    self.queue.done(item.key)

    def _look(self, item: Item[Name]) -> None:
        begin, thread = time.monotonic(), threading.current_thread().name
        self._looks[thread] = begin
        try:
            wait = LOST_S if self._blind(item.key) else self.reconciler.reconcile(item.key)
        except Exception as error:
            self._failed(item.key, error)
        else:
            self.queue.forget(item.key)
            if item.key in self.caches.jobs:
                resync = self.config.resync * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load
                quiet = wait is None or wait >= resync
                self.queue.add_after(item.key, resync if wait is None else min(wait, resync), patient=quiet)
        finally:
            del self._looks[thread]
            end = time.monotonic()
            self.metrics.reconcile.observe(end - begin)
            if item.since is not None:
                self.metrics.latency.observe(end - item.since)

    def _failed(self, key: Name, error: Exception) -> None:
        """Nothing is lost by a failed look: the next one sees the same, or better."""
        self.metrics.errors.labels(type(error).__name__).inc()
        wait = self.queue.retry(key, (error.retry_after or 0.0) if isinstance(error, ApiError) else 0.0)
        extra: dict[str, Any] = {"namespace": key[0], "job": key[1], "reason": type(error).__name__, "seconds": wait}
        if isinstance(error, (Conflict, NotLeading)):
            _log.debug("%s", error, extra=extra)
        elif isinstance(error, OSError):
            _log.warning("%s", error, extra=extra)
        else:
            _log.exception("this job could not be looked at", extra=extra)

    def _end(self) -> None:
        self._stopping.set()
        self.queue.close()
        end = time.monotonic() + 20.0
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        self.reconciler.close()
        for cache in self.caches.all():
            cache.stop()
        if self.lease.thread.ident is not None:
            self.lease.stop()

    def _measure(self) -> None:
        self.metrics.watch_value("dinoctl_queue_depth", "Jobs that wait for a thread.", lambda: self.queue.depth)
        self.metrics.watch_value("dinoctl_queue_delayed", "Jobs that wait for their time.", lambda: self.queue.delayed)
        self.metrics.watch_value("dinoctl_memory_limit_bytes", "Configured memory.", lambda: self.config.memory)
        lost = "Watched namespaces of which not all was listed."
        self.metrics.watch_value("dinoctl_namespaces_unlisted", lost, lambda: len(self.caches.unlisted))
        sizes = {cache.resource.plural: cache.__len__ for cache in self.caches.all()}
        self.metrics.watch_values("dinoctl_cache_objects", "Objects in caches.", "resource", dict(sizes))

    def _watch_memory(self) -> None:
        import psutil

        used = psutil.Process().memory_info().rss
        if used > self.config.memory:
            text = "uses %d MiB of memory, above the configured %d MiB"
            _log.warning(text, used >> 20, self.config.memory >> 20, extra={"reason": "Memory"})


def _face(body: Object) -> int:
    """What a job's children wait for, as one number: its state, not its progress."""
    meta, status = body["metadata"], body.get("status") or {}
    conditions = [(one.get("type"), one.get("status"), one.get("reason")) for one in status.get("conditions") or ()]
    parts = (meta["uid"], meta.get("generation"), meta.get("deletionTimestamp"), status.get("state"))
    return hash((*parts, status.get("storage"), *conditions))
