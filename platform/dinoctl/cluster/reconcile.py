"""The operator's work on one job: look, decide, remember, act. All rules are in ``lifecycle.decide``.

The status of the object is the only memory. It is written with compare and set before anything follows from it, and
nothing is done on the word of an object that is not the newest: whoever comes second, loses and does nothing. So the
process may be killed after any request, two of them may work at once, and caches may lag.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from dinoctl.cluster import finalizer
from dinoctl.cluster.act import Hands
from dinoctl.cluster.clock import Clock
from dinoctl.cluster.documents import Documents, Memo
from dinoctl.cluster.errors import Forbidden, NotFound
from dinoctl.cluster.events import Events, Happening
from dinoctl.cluster.failures import ended
from dinoctl.cluster.family import Kin
from dinoctl.cluster.objects import Key, annotations_of, deleting, uid_of
from dinoctl.cluster.observe import Eyes
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record, begun_life, read_record
from dinoctl.cluster.reports import Reports
from dinoctl.cluster.resources import CONFIGMAPS
from dinoctl.cluster.round import Round
from dinoctl.cluster.snapshot import Snapshot, read_snapshot
from dinoctl.cluster.tools import Tools
from dinoctl.cluster.tracking_child import Busy, Tracking
from dinoctl.cluster.view import View
from dinoctl.lifecycle import Cause
from dinoctl.spec import names
from dinoctl.spec.profile import OperatorConfig

_SNAPSHOTS = 128
_BUSY_S = 10.0
"""Until a job asks the tracking server again that found others before it."""


class Counters(Protocol):
    """What is counted of the work on jobs."""

    def attempt_ended(self, cause: str) -> None:
        """An attempt has ended, and why; "" as cause: well."""


class Reconciler:
    """``tracking`` makes the client of the tracking server at a URI."""

    def __init__(
        self,
        api: Api,
        view: View,
        config: OperatorConfig,
        metrics: Counters | None = None,
        *,
        clock: Callable[[], float] | None = None,
        tracking: Callable[[str], Tracking] = Tracking,
    ) -> None:
        self._api, self._view, self._config, self._metrics, self._clock = api, view, config, metrics, clock or Clock()
        self._kin, self._snapshots, self._memo = Kin(), _Snapshots(api), Memo()
        eyes = Eyes(api, view)
        self._tools = Tools(
            api,
            view,
            config,
            eyes,
            Hands(api, view, eyes.bounded),
            Events(api),
            Reports(api),
            tracking,
            self._documents,
        )

    def lead(self) -> None:
        """A time of leadership begins: another replica may have written anything meanwhile."""
        self._snapshots.forget()
        self._tools.eyes.forget()

    def close(self) -> None:
        """The process ends."""
        self._tools.eyes.close()
        self._tools.reports.close()

    def children(self, namespace: str, job: str) -> Iterable[str]:
        """Jobs that have to look when this one changes."""
        return self._kin.children(Key(namespace, job))

    def reconcile(self, key: tuple[str, str]) -> float | None:
        """One look at a job, and what follows. Seconds until the next one at the latest; None: when something happens.

        Raises:
            ApiError: a request failed: the same again later.
        """
        body = self._view.jobs.get(*key)
        self._kin.learn(Key(*key), body)
        if body is None:
            self._tools.eyes.forget(Key(*key))
            return None
        now = self._clock()
        try:
            record = read_record(body)
        except ValueError as error:
            self._left_alone(body, error, now)
            return None
        if deleting(body):
            if not finalizer.holds(body):
                return None
            if self._may_go(body, record, now):
                finalizer.take(self._api, self._view, body)
                return None
        elif _done(body, record):
            finalizer.take(self._api, self._view, body)
            self._tools.reports.want(body, record, ())
            return None
        return self._round(body, record, now)

    def _left_alone(self, body: Object, error: ValueError, now: float) -> None:
        if deleting(body) and finalizer.abandoned(body):
            finalizer.take(self._api, self._view, body)
            return
        text = f"{error}; the job is left alone until somebody clears its status"
        if deleting(body):
            text += f", or deletes it for good with the annotation {names.ABANDON}=true"
        self._tools.events.say(body, Happening("StatusUnreadable", text, warning=True), now)

    def _round(self, body: Object, record: Record, now: float) -> float | None:
        work = Round(self._tools, body, record, now)
        try:
            return work.run()
        except Busy:
            return _BUSY_S * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        finally:
            self._count(record, work.record)

    def _may_go(self, body: Object, record: Record, now: float) -> bool:
        if finalizer.abandoned(body) or finalizer.idle(record):
            return True
        if not finalizer.waited(body, record, self._config.finalize_timeout, now):
            return False
        text = f"the MLflow run is left open: no answer within {self._config.finalize_timeout:g} s"
        self._tools.events.say(body, Happening("FinalizeTimeout", text, warning=True), now)
        return True

    def _count(self, before: Record, after: Record) -> None:
        if self._metrics is not None:
            for attempt in ended(before, after):
                well = attempt.cause is Cause.SUCCEEDED
                self._metrics.attempt_ended("" if well else str(attempt.cause))

    def _documents(self, namespace: str) -> Documents:
        return Documents(lambda name: self._view.jobs.get(namespace, name), self._snapshots.begun, self._memo)


class _Snapshots:
    """The latest snapshots that were read. What a life began with never changes, so none is read twice."""

    def __init__(self, api: Api) -> None:
        self._api, self._lock = api, threading.Lock()
        self._held: OrderedDict[tuple[str, str], Snapshot] = OrderedDict()

    def forget(self) -> None:
        """Reads them all again."""
        with self._lock:
            self._held.clear()

    def begun(self, body: Object) -> Snapshot | None:
        """See ``documents.Begun``."""
        life = begun_life(body)
        if life is None:
            return None
        key = (uid_of(body), life[0])
        with self._lock:
            found = self._held.get(key)
        if found is None:
            found = self._read(body)
        if found is None or (found.life, found.job.spec_hash) != life:
            return None
        with self._lock:
            self._held[key] = found
            self._held.move_to_end(key)
            while len(self._held) > _SNAPSHOTS:
                self._held.popitem(last=False)
        return found

    def _read(self, body: Object) -> Snapshot | None:
        metadata = body["metadata"]
        try:
            return read_snapshot(
                self._api.get(CONFIGMAPS, metadata["namespace"], names.resolved_name(metadata["name"]))
            )
        except NotFound:
            return None
        except Forbidden as error:
            if not finalizer.powerless(body, error):
                raise
            return None


def _done(body: Object, record: Record) -> bool:
    """Nothing is left to do, and nothing new was asked for."""
    status, said = record.status, body.get("status") or {}
    token = annotations_of(body).get(names.RESTART, "")
    closed = status is not None and status.outcome is not None and record.finalized == record.life
    return (
        closed
        and token in ("", record.restart)
        and said.get("observedGeneration") == body["metadata"].get("generation")
    )
