"""Post-mortems, written beside everything else: reading the logs of a thousand ranks takes seconds. Whatever is lost
with the process is begun again by the next look, since a failure without a bundle shows that it is wanted.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.objects import attempt_of, key_of, uid_of
from dinoctl.cluster.pods import broke
from dinoctl.cluster.postmortem.bundle import Case, write_bundle
from dinoctl.cluster.postmortem.digest import time_of
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.resources import DINOJOBS, EVENTS
from dinoctl.lifecycle import Cause
from dinoctl.spec import names

_log = logging.getLogger("dinoctl.operator")
_AT_ONCE = 2
_AGAIN_S = 300.0
"""After a try that failed: most often because the storage is down, which is what the attempt has ended of."""
_MARKS = 4096
_SUSPECTS = 16
"""Pods whose own events are asked for, a request each."""


class Reports:
    """Writes bundles. ``clock`` is monotonic."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="post-mortem")
        self._lock = threading.Lock()
        self._due: OrderedDict[tuple[str, int], float] = OrderedDict()  # when each may be tried (again)

    def want(self, body: Object, record: Record, pods: Sequence[Object]) -> None:
        """Sees to it that the last failure gets its bundle. ``pods``: those of its attempt, if they are still known."""
        failure = record.last_failure
        if not failure or failure.get("bundle") or not record.storage:
            return
        mark = (uid_of(body), int(failure["attempt"]))
        with self._lock:
            if self._clock() < self._due.get(mark, 0.0):
                return
            self._due[mark] = math.inf
            while len(self._due) > _MARKS:
                self._due.popitem(last=False)
        mine = [pod for pod in pods if attempt_of(pod) == mark[1]]
        self._pool.submit(self._write, body, _case(body, record, failure, mine))

    def close(self) -> None:
        """Waits for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, body: Object, case: Case) -> None:
        try:
            uri, failure = write_bundle(replace(case, events=self._events(case)))
            told = {"class": str(failure.kind), "message": failure.line or case.message, "bundle": uri}
            self._tell(body, case.attempt, told | ({"node": failure.node} if failure.node else {}))
            return
        except (ApiError, OSError, ValueError) as error:
            _log.warning("no post-mortem: %s", error, extra={"namespace": case.namespace, "job": case.job})
        except Exception:
            _log.exception("no post-mortem", extra={"namespace": case.namespace, "job": case.job})
        with self._lock:
            self._due[(uid_of(body), case.attempt)] = self._clock() + _AGAIN_S

    def _events(self, case: Case) -> Sequence[Object]:
        """Ours, and what Kubernetes says of the RayJob and of those pods that most likely tell: theirs bear no label of
        a job, and all events of a namespace may be very many.
        """
        found, _ = self._api.list(EVENTS, case.namespace, labels=f"{names.JOB}={case.job}")
        pods = sorted(case.pods, key=lambda pod: not broke(pod))[:_SUSPECTS]
        for name in filter(None, (case.rayjob, *(pod["metadata"]["name"] for pod in pods))):
            found += self._api.list(EVENTS, case.namespace, fields=f"involvedObject.name={name}")[0]
        return sorted(found, key=time_of)

    def _tell(self, body: Object, attempt: int, told: Mapping[str, Any]) -> None:
        """Compare and set, as everything in the status; whoever was quicker is looked at again."""
        key = key_of(body)
        for _ in range(5):
            found = self._api.get(DINOJOBS, *key)
            failure = (found.get("status") or {}).get("lastFailure") or {}
            if uid_of(found) != uid_of(body) or failure.get("attempt") != attempt:
                return
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
            patch = {"metadata": version, "status": {"lastFailure": {**failure, **told}}}
            try:
                self._api.patch(DINOJOBS, key.namespace, key.name, patch, subresource="status")
            except ApiError as error:
                if error.status != 409:
                    raise
                continue
            return
        raise ApiError(f"status of DinoJob {key.namespace}/{key.name}", "changed by others five times in a row")


def _case(body: Object, record: Record, failure: Mapping[str, Any], pods: Sequence[Object]) -> Case:
    attempts = record.status.attempts if record.status else ()
    number = int(failure["attempt"])
    good = [a.number for a in attempts if a.number < number and (a.end_step is not None or a.cause is Cause.SUCCEEDED)]
    key = key_of(body)
    of = next((a for a in attempts if a.number == number), None)
    rayjob = names.rayjob_name(key.name, of.spec_hash, number) if of else ""
    return Case(
        namespace=key.namespace,
        job=key.name,
        attempt=number,
        storage_uri=record.storage,
        cause=str(failure["class"]),
        message=str(failure["message"]),
        rayjob=rayjob,
        pods=tuple(pods),
        good_attempt=max(good, default=None),
    )
