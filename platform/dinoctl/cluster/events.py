"""A Kubernetes Event for every transition of a job, as ``kubectl describe`` and ``dinoctl events`` show them.

An event's name follows from what it says, so that saying it twice (after a crash, or by two replicas) makes one object.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from dinoctl.cluster.errors import ApiError, Exists
from dinoctl.cluster.objects import uid_of
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.resources import EVENTS
from dinoctl.cluster.status import Trouble, stamp
from dinoctl.lifecycle import Attempt, AttemptState, Cause, ConditionType, Reason, Status, Truth, explain, state_of
from dinoctl.spec import names

_log = logging.getLogger("dinoctl.operator")
_BAD = (Cause.INFRASTRUCTURE, Cause.APPLICATION, Cause.SPEC)
_LONGEST = 1000


@dataclass(frozen=True)
class Happening:
    """``key`` tells it from others of the same words."""

    reason: str
    message: str
    warning: bool = False
    key: str = ""


def happenings(before: Record, after: Record) -> Iterator[Happening]:
    """What has happened between two records."""
    old, new = before.status, after.status
    if new is None:
        return
    if old is not None and old.first_attempt != new.first_attempt:
        yield Happening("Restarted", f"a new life begins with attempt {new.first_attempt}")
    known = {one.number: one for one in old.attempts} if old else {}
    for attempt in new.attempts:
        yield from _attempt(known.get(attempt.number), attempt)
    yield from _flips(old, new)
    if new.outcome and not (old and old.outcome):
        ended, failed = state_of(new), not (new.outcome.complete or new.outcome.reason is Reason.CANCELLED)
        yield Happening(ended, explain(new), failed, after.life)


def troubled(trouble: Trouble) -> Happening:
    """What stands in the way."""
    return Happening(trouble.reason, trouble.message, warning=True)


class Events:
    """Writes them. An event that can't be written is a line in the log and nothing else."""

    def __init__(self, api: Api, component: str = names.MANAGER) -> None:
        self._api, self._component = api, component

    def say(self, body: Object, what: Happening, now: float) -> None:
        """Says it once."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        extra = {"namespace": namespace, "job": name, "reason": what.reason}
        (_log.warning if what.warning else _log.info)("%s", what.message, extra=extra)
        try:
            self._api.create(EVENTS, namespace, self._event(body, what, now))
        except Exists:
            return
        except ApiError as error:
            _log.warning("event not written: %s", error, extra=extra)

    def _event(self, body: Object, what: Happening, now: float) -> Object:
        metadata = body["metadata"]
        text = "/".join((uid_of(body), what.reason, what.message, what.key))
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
                "namespace": metadata["namespace"],
                "labels": {names.JOB: metadata["name"]},
            },
            "involvedObject": {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": names.KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": uid_of(body),
            },
            "type": "Warning" if what.warning else "Normal",
            "reason": what.reason,
            "message": what.message[:_LONGEST],
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "count": 1,
        }


def _attempt(old: Attempt | None, new: Attempt) -> Iterator[Happening]:
    what = f"attempt {new.number}"
    if old is None and new.state is AttemptState.INTENDED:
        where = "the beginning" if new.start_step is None else f"step {new.start_step}"
        yield Happening("AttemptCreated", f"{what} is created; it goes on from {where}")
    if new.started_at is not None and (old is None or old.started_at is None):
        yield Happening("AttemptStarted", f"{what} has its machines")
    if new.trained_at is not None and (old is None or old.trained_at is None):
        yield Happening("Training", f"{what} has reported its first step")
    if new.state is AttemptState.STOPPING and (old is None or old.state is not AttemptState.STOPPING):
        yield Happening("Stopping", f"{what} is asked to save and end: {(new.stop or '').lower()}")
    if new.cause is not None and (old is None or old.cause is None):
        reason = "Preempted" if new.cause is Cause.PREEMPTED else f"Attempt{new.cause}"
        text = f"{what}: {new.message or new.cause.lower()}"
        yield Happening(reason, text, warning=new.cause in _BAD)


def _flips(old: Status | None, new: Status) -> Iterator[Happening]:
    """Conditions that have become true or false and that no attempt's event tells of."""
    for kind, reason in _TOLD.items():
        now, was = new.condition(kind), old.condition(kind) if old else None
        if now is None or (was is not None and was.status is now.status):
            continue
        text = now.message or _WORDS.get(now.reason) or f"{kind}: {now.reason}"
        if now.status is Truth.TRUE and kind is not ConditionType.VALIDATED:
            yield Happening(reason, text, key=str(now.last_transition))
        elif now.status is Truth.FALSE and kind in (ConditionType.VALIDATED, ConditionType.PARENTS_READY):
            warning = kind is ConditionType.VALIDATED
            yield Happening(str(now.reason), text, warning, str(now.last_transition))


_WORDS = {
    Reason.NO_PARENTS: "waits for no other job",
    Reason.PARENTS_COMPLETE: "all jobs that it waits for are complete",
    Reason.NOT_GATED: "it has no gate",
}
_TOLD = {
    ConditionType.VALIDATED: "Valid",
    ConditionType.PARENTS_READY: "ParentsReady",
    ConditionType.EVALUATED: "Evaluated",
    ConditionType.PROMOTED: "Promoted",
    ConditionType.SUSPENDED: "Suspended",
}
