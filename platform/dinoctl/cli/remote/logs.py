"""Logs of a job: the driver's from its pod while that lives, all from storage, also when the cluster is gone.

Ranks write their logs to the job's storage every few seconds, so theirs are read there in any case.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from dinoctl.cli.remote.rows import ENDED, state
from dinoctl.cli.remote.target import Cluster, told
from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import PODS
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.attempts import ATTEMPTS, AttemptStore, LogPosition
from dinoctl.spec import names
from dinoctl.spec.errors import UserError

DRIVER = "driver"
_EVERY_S = 2.0
_LATE_S = 15.0
"""How long after an attempt's end its last lines may still come."""


@dataclass(frozen=True)
class Log:
    """One source's log of one attempt in storage."""

    store: AttemptStore
    source: str
    name: str

    def lines(self) -> Iterator[str]:
        """All that there is.

        Raises:
            UserError: when there is nothing of this source; names those that there are.

        """
        sources = self.store.sources()
        if self.source not in sources:
            raise UserError(_nothing(self.name, self.store.number, self.source, sources))
        yield from self.store.logs(self.source)

    def follow(self) -> Iterator[str]:
        """As they come, until the attempt has left its outcome."""
        position, rest, over = LogPosition(), b"", 0.0
        while True:
            data, position = self.store.read_log(self.source, position)
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if not data and self.store.outcome() is not None:
                over = over or time.monotonic()
                if time.monotonic() - over > _LATE_S:
                    return
            time.sleep(_EVERY_S)


def stored(uri: str, source: str, attempt: int | None, *, name: str = "") -> Log:
    """Of the storage of one job, without any cluster.

    Raises:
        UserError: when there is no such attempt.

    """
    storage = open_storage(uri.rstrip("/"))
    numbers = _numbers(storage)
    if not numbers:
        raise UserError(
            f"{uri}: no attempts here; give the storage of one job, as in its status ({ATTEMPTS}/ lies in it)"
        )
    if attempt is not None and attempt not in numbers:
        raise UserError(f"{name or uri} has no attempt {attempt}; attempts: {', '.join(map(str, numbers))}")
    number = numbers[-1] if attempt is None else attempt
    return Log(AttemptStore(storage, number), source, name or uri)


def _numbers(storage: Storage) -> list[int]:
    """Of the attempts that have left something."""
    return sorted({int(key.split("/")[1]) for key in storage.list(f"{ATTEMPTS}/") if key.count("/") > 1})


def read(cluster: Cluster, name: str, source: str, attempt: int | None) -> Iterator[str]:
    """What there is of a job's log now.

    Raises:
        UserError: when there is nothing.

    """
    job = cluster.job(name)
    newest = (job.get("status") or {}).get("attempt")
    number = attempt or newest
    if number is None:
        raise UserError(
            f"{name} has not started yet, so it has no log; see dinoctl status {name} -n {cluster.namespace}"
        )
    pod = _submitter(cluster, name, number) if source == DRIVER else None
    if pod is not None:
        with told():
            yield from cluster.api.logs(cluster.namespace, pod["metadata"]["name"])
        return
    if number == newest and number not in (older := _numbers(open_storage(_storage(job)))):
        have = f"; --attempt shows those of {', '.join(map(str, older))}" if older else ""
        raise UserError(
            f"attempt {number} of {name} has left no log yet; see dinoctl status {name} -n {cluster.namespace}{have}"
        )
    yield from stored(_storage(job), source, number, name=name).lines()


def follow(cluster: Cluster, name: str, source: str, attempt: int | None) -> Iterator[str]:
    """Goes on as the log grows, through all attempts until the job has ended, unless one attempt was asked for."""
    seen = 0
    while True:
        job = cluster.job(name)
        number = attempt or (job.get("status") or {}).get("attempt") or 0
        if number > seen:
            yield from _follow_attempt(cluster, job, source, number)
            seen = number
        elif state(job) in ENDED or attempt is not None:
            return
        else:
            time.sleep(_EVERY_S)


def _follow_attempt(cluster: Cluster, job: Object, source: str, number: int) -> Iterator[str]:
    name = job["metadata"]["name"]
    pod = _submitter(cluster, name, number) if source == DRIVER else None
    if pod is not None:
        try:
            yield from cluster.api.logs(cluster.namespace, pod["metadata"]["name"], follow=True)
            return
        except ApiError:  # not started yet, or just gone: storage has it
            pass
    while "storage" not in (job.get("status") or {}):
        time.sleep(_EVERY_S)
        job = cluster.job(name)
    yield from Log(AttemptStore(open_storage(_storage(job)), number), source, name).follow()


def _submitter(cluster: Cluster, name: str, attempt: int) -> Object | None:
    """The pod that runs, or only prints, the driver; while it has a log."""
    labels = f"{names.JOB}={name},{names.ATTEMPT}={attempt},{names.ROLE}=submitter"
    with told():
        pods, _ = cluster.api.list(PODS, cluster.namespace, labels=labels)
    begun = [pod for pod in pods if (pod.get("status") or {}).get("phase") in ("Running", "Succeeded", "Failed")]
    return max(begun, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None)


def _storage(job: Object) -> str:
    uri = (job.get("status") or {}).get("storage")
    if not uri:
        raise UserError(f"{job['metadata']['name']} has no storage yet; see dinoctl status {job['metadata']['name']}")
    return str(uri)


def _nothing(name: str, attempt: int, source: str, sources: list[str]) -> str:
    if not sources:
        return f"attempt {attempt} of {name} has left no log; see dinoctl explain {name}, dinoctl events {name}"
    ranks = [one for one in sources if one != DRIVER]
    have = f"ranks 0 to {len(ranks) - 1}" if len(ranks) > 1 else ", ".join(sources)
    return f"attempt {attempt} of {name} has no log of {source}; there are those of {have}"
