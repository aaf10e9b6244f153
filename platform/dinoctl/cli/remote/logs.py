"""Logs of a job: the driver's from its pod while that lives, all from storage, also when the cluster is gone.

Ranks write their logs to the job's storage every few seconds, so theirs are read there in any case.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dinoctl.cli.remote.rows import ended, live, state
from dinoctl.cli.remote.target import Cluster, told
from dinoctl.cluster.errors import ApiError, Unavailable
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
_LATER_S = 30.0
_PATIENCE_S = 600.0
_ENDS_SOON = 3
"""Looks at a pod whose log has ended, until its phase says so too."""


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

    def follow(self, over: Callable[[], bool], late: float | None = None) -> Iterator[str]:
        """As they come, until the attempt has left its outcome, or is over without one: killed, lost, never begun; and
        then for ``late`` seconds more, by default what a companion takes for its last words.
        """
        ended: float | None = None
        position, rest = LogPosition(), b""
        while True:
            data, position = self.store.read_log(self.source, position)
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if not data:
                gone = self.store.outcome() is not None or over()
                ended = (ended or time.monotonic()) if gone else None
                if ended is not None and time.monotonic() - ended >= (_LATE_S if late is None else late):
                    break
            time.sleep(_EVERY_S)
        if rest:
            yield rest.decode(errors="replace")


class _Said:
    """A driver's lines that came from its pod, so that storage, which has them from their beginning, says only the
    rest. A pod's log has lines of Ray's between them, which storage doesn't have.
    """

    def __init__(self) -> None:
        self._lines: Counter[str] = Counter()

    def hear(self, lines: Iterable[str]) -> Iterator[str]:
        """All of these, and remembers them."""
        for line in lines:
            self._lines[line] += 1
            yield line

    def rest(self, lines: Iterable[str]) -> Iterator[str]:
        """Those of these that were not heard. Remembers none: a job is followed for weeks."""
        for line in lines:
            if self._lines[line] > 0:
                self._lines[line] -= 1
                continue
            self._lines.clear()  # from here on all are new
            yield line


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


def follow_stored(uri: str, source: str, attempt: int | None) -> Iterator[str]:
    """Goes on as the log grows, and unless one attempt was asked for, with a later one where that has begun. Without a
    cluster nobody can tell whether one will, and an attempt that was killed is over when a later one begins.

    Raises:
        UserError: when there is no such attempt.

    """
    number = attempt
    while True:
        log = stored(uri, source, number)
        later = _Later(uri, log.store.number)
        yield from log.follow(lambda: later() is not None)  # noqa: B023 - called before the next one
        number = later(at_once=True)
        if attempt is not None or number is None:
            return


class _Later:
    """The next attempt after ``number`` that has begun; some never do. Looked for rarely: storage lists every log."""

    def __init__(self, uri: str, number: int) -> None:
        self._storage, self._number = open_storage(uri.rstrip("/")), number
        self._asked = time.monotonic()
        self._found: int | None = None

    def __call__(self, *, at_once: bool = False) -> int | None:
        if self._found is None and (at_once or time.monotonic() - self._asked >= _LATER_S):
            self._asked = time.monotonic()
            self._found = next((number for number in _numbers(self._storage) if number > self._number), None)
        return self._found


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


def follow(cluster: Cluster, name: str, source: str, attempt: int | None, seen: int = 0) -> Iterator[str]:
    """Goes on as the log grows, through all attempts after ``seen`` until the job has ended, unless one attempt was
    asked for.

    Raises:
        UserError: when there is no such job, or it has ended without the attempt that was asked for.

    """
    job = cluster.job(name)
    while True:
        newest = _number(job)
        number = attempt or newest
        if seen < number <= newest:
            yield from _follow_attempt(cluster, job, source, number)
            seen = number
        elif attempt is not None and attempt == seen:
            return
        elif ended(job):
            if attempt is not None:
                raise UserError(f"{name} is {state(job)} and has no attempt {attempt}; its last one is {newest}")
            return
        else:
            time.sleep(_EVERY_S)
        job = _patiently(cluster, name)


def _patiently(cluster: Cluster, name: str) -> Object:
    """The job, from a server that may be away for some minutes: what trains goes on meanwhile."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return cluster.job(name)
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(_EVERY_S)


def _follow_attempt(cluster: Cluster, job: Object, source: str, number: int) -> Iterator[str]:
    """The driver's from its pod, as it speaks; when that breaks off, or isn't there yet, from storage."""
    name, said = job["metadata"]["name"], _Said()
    try:
        pod = _submitter(cluster, name, number) if source == DRIVER else None
        if pod is not None:
            yield from said.hear(cluster.api.logs(cluster.namespace, pod["metadata"]["name"], follow=True))
            if _succeeds(cluster, name, number):
                return
    except ApiError:  # not started yet, just gone, or its node is, or the API server for now
        pass
    log = Log(AttemptStore(open_storage(_storage(job)), number), source, name)
    late = _LATE_S if _number(job) == number and not ended(job) else 0.0
    yield from said.rest(log.follow(lambda: _over(cluster, name, number), late))


def _succeeds(cluster: Cluster, name: str, number: int) -> bool:
    """The pod whose log has ended has said all: it is not that the connection to it, or its own to Ray, was closed."""
    for _ in range(_ENDS_SOON):
        pod = _submitter(cluster, name, number)
        phase = (pod.get("status") or {}).get("phase") if pod else None
        if phase != "Running":
            return phase == "Succeeded"
        time.sleep(_EVERY_S)
    return False


def _over(cluster: Cluster, name: str, number: int) -> bool:
    """Whether an attempt has ended, as the operator knows it. Unknown is not over."""
    try:
        job = cluster.job(name)
    except ApiError:
        return False
    except UserError:  # deleted
        return True
    return live(job) != number


def _number(job: Object) -> int:
    """Of its newest attempt."""
    return (job.get("status") or {}).get("attempt") or 0


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
