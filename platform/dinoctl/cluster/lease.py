"""Which of several replicas works: a Lease object that its holder renews, and nobody else's clock is trusted.

A holder may write only until ``renew_deadline`` after the beginning of its last renewal that came through, by its own
monotonic clock; another may take the lease over only when it has seen it unchanged for the longer ``duration``, by
*its* monotonic clock. So the old holder has fallen silent before the new one begins, however clocks are set. A process
that is frozen between the check and the write can still be late: creates have deterministic names and status is written
by compare and set, so even two that write make no twins.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from dinoctl.cluster.errors import ApiError, Conflict, Exists, NotFound, NotLeading
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.resources import LEASES

_log = logging.getLogger("dinoctl.operator")


@dataclass(frozen=True)
class Terms:
    """Seconds. ``renew_deadline`` must be shorter than ``duration``: the difference is the safety."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class Lease:
    """Runs in its own thread. ``began`` is called when leadership begins, ``ended`` when it is over."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        began: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
        terms: Terms = Terms(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._namespace, self._name, self._terms, self._clock = api, namespace, name, terms, clock
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"  # a restarted pod has the same name
        self._began, self._ended = began, ended
        self._deadline = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)
        self._leading = False
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def held(self) -> bool:
        """May this replica write now?"""
        return self._leading and self._clock() < self._deadline

    def check(self) -> None:
        """Before every write.

        Raises:
            NotLeading: when it may not.

        """
        if not self.held():
            raise NotLeading(
                f"lease {self._namespace}/{self._name}", "another replica may hold it now; nothing written"
            )

    def start(self) -> None:
        """Begins to ask for the lease."""
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread and gives the lease back, after the last write: another replica need not wait."""
        self._stopping.set()
        self.thread.join(self._terms.renew_deadline)
        if self._leading:
            self._lose("released")
            try:
                self._give_back()
            except ApiError as error:
                _log.warning("the lease was not given back, it will expire: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step()
            except Exception:  # whatever it is, a replica that can't renew falls silent by its deadline
                _log.exception("the lease could not be looked at")
            if self._leading and not self.held():
                self._lose("not renewed in time")
            self._stopping.wait(self._terms.retry)

    def step(self) -> None:
        """One try to get or renew the lease."""
        begin = self._clock()
        try:
            mine = self._claimed()
        except (Conflict, Exists):
            return  # another was faster, or an answer was lost: the next step sees which
        except ApiError as error:
            _log.warning("%s", error, extra={"reason": "LeaseFailed"})
            return
        if mine:
            self._deadline = begin + self._terms.renew_deadline
        elif self._leading:
            self._lose("taken by another replica")
        if mine and not self._leading and self._clock() < self._deadline:
            self._began()  # if it fails, the next step tries again
            self._leading = True
            _log.info("leading as %s", self.identity, extra={"reason": "LeaseAcquired"})

    def _claimed(self) -> bool:
        try:
            lease = self._api.get(LEASES, self._namespace, self._name)
        except NotFound:
            self._create()
            return True
        if not self._free(lease):
            return False
        self._api.patch(LEASES, self._namespace, self._name, self._claim(lease))
        return True

    def _create(self) -> None:
        spec = self._claim({"spec": {}})["spec"]
        body: Object = {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": spec,
        }
        self._api.create(LEASES, self._namespace, body)

    def _free(self, lease: Object) -> bool:
        """Ours, nobody's, or not renewed for its whole duration while we watched."""
        spec, version = lease.get("spec") or {}, lease["metadata"]["resourceVersion"]
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self.identity):
            return True
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        duration = max(float(spec.get("leaseDurationSeconds") or 0), self._terms.duration)
        return self._clock() - self._seen[1] > duration

    def _claim(self, lease: Object) -> Object:
        spec = lease.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # for people; nobody here compares it
        new = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._terms.duration)),
            "renewTime": now,
        }
        if spec.get("holderIdentity") != self.identity:
            new |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        version = (lease.get("metadata") or {}).get("resourceVersion")
        return {"metadata": {"resourceVersion": version}, "spec": new}

    def _give_back(self) -> None:
        lease = self._api.get(LEASES, self._namespace, self._name)
        if lease["spec"].get("holderIdentity") == self.identity:
            version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
            body = {"metadata": version, "spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}
            self._api.patch(LEASES, self._namespace, self._name, body)

    def _lose(self, why: str) -> None:
        self._leading, self._deadline = False, float("-inf")
        _log.warning("no longer leading: %s", why, extra={"reason": "LeaseLost"})
        self._ended()
