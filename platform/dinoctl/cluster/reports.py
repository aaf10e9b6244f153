"""Post-mortems, written beside everything else: reading the logs of a thousand ranks takes seconds. Whatever is lost
with the process is begun again by the next look, since a failure without a bundle shows that it is wanted.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.objects import attempt_of, key_of, uid_of
from dinoctl.cluster.postmortem.bundle import Case, write_bundle
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.resources import DINOJOBS, EVENTS
from dinoctl.cluster.view import View
from dinoctl.lifecycle import Cause
from dinoctl.spec import names

_log = logging.getLogger("dinoctl.operator")
_AT_ONCE = 2


class Reports:
    """Writes bundles, each once a process."""

    def __init__(self, api: Api, view: View) -> None:
        self._api, self._view = api, view
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="post-mortem")
        self._lock = threading.Lock()
        self._tried: set[tuple[str, int]] = set()

    def want(self, body: Object, record: Record, pods: Sequence[Object]) -> None:
        """Sees to it that the last failure gets its bundle. ``pods``: those of its attempt, if they are still known."""
        failure = record.last_failure
        if not failure or failure.get("bundle") or not record.storage:
            return
        mark = (uid_of(body), int(failure["attempt"]))
        with self._lock:
            if mark in self._tried:
                return
            self._tried.add(mark)
        mine = [pod for pod in pods if attempt_of(pod) == mark[1]]
        self._pool.submit(self._write, body, _case(body, record, failure, mine))

    def close(self) -> None:
        """Waits for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(self, body: Object, case: Case) -> None:
        try:
            events, _ = self._api.list(EVENTS, case.namespace, labels=f"{names.JOB}={case.job}")
            uri, failure = write_bundle(replace(case, events=events))
            told = {"class": str(failure.kind), "message": failure.line or case.message, "bundle": uri}
            self._tell(body, case.attempt, told | ({"node": failure.node} if failure.node else {}))
        except (ApiError, OSError, ValueError) as error:
            _log.warning("no post-mortem: %s", error, extra={"namespace": case.namespace, "job": case.job})
        except Exception:
            _log.exception("no post-mortem", extra={"namespace": case.namespace, "job": case.job})

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


def _case(body: Object, record: Record, failure: Mapping[str, Any], pods: Sequence[Object]) -> Case:
    attempts = record.status.attempts if record.status else ()
    number = int(failure["attempt"])
    good = [a.number for a in attempts if a.number < number and (a.end_step is not None or a.cause is Cause.SUCCEEDED)]
    key = key_of(body)
    return Case(
        namespace=key.namespace,
        job=key.name,
        attempt=number,
        storage_uri=record.storage,
        cause=str(failure["class"]),
        message=str(failure["message"]),
        pods=tuple(pods),
        good_attempt=max(good, default=None),
    )
