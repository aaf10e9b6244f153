"""What Prometheus is told about the operator and its jobs."""

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dinoctl.cluster.cache import Name
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import live_attempt
from dinoctl.spec import names
from dinoctl.spec.job import TRAINING

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WASTE = {"queue": "queueSeconds", "start": "startSeconds", "replay": "replaySeconds"}
_CAUSES = ("infrastructure", "application", "preemptions")


class Metrics:
    """One registry an operator."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.jobs = JobFigures()
        registry.register(self.jobs)
        self.reconcile = Histogram(
            "dinoctl_reconcile_seconds", "Time of one look at a job.", registry=registry, buckets=_BUCKETS
        )
        self.errors = Counter("dinoctl_reconcile_errors_total", "Looks that failed.", ["kind"], registry=registry)
        self.latency = Histogram(
            "dinoctl_event_to_action_seconds",
            "From an event's arrival to the end of the look that it caused, its actions included.",
            registry=registry,
            buckets=_BUCKETS,
        )
        self.requests = Counter(
            "dinoctl_api_requests_total", "Requests to the API server.", ["verb", "resource", "code"], registry=registry
        )
        self.restarts = Counter(
            "dinoctl_watch_restarts_total", "Watches begun again.", ["resource", "reason"], registry=registry
        )
        self.ended = Counter("dinoctl_attempts_ended_total", "Attempts that ended.", ["cause"], registry=registry)
        self.leader = Gauge("dinoctl_leader", "1 while this replica holds the lease.", registry=registry)

    def request(self, verb: str, resource: str, code: str) -> None:
        """For ``Transport.counter``."""
        self.requests.labels(verb, resource, code).inc()

    def restarted(self, resource: str, reason: str) -> None:
        """For ``caches.build``."""
        self.restarts.labels(resource, reason).inc()

    def attempt_ended(self, cause: str) -> None:
        """An attempt has ended; "" as cause: well."""
        self.ended.labels(cause).inc()

    def watch_value(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def watch_values(self, name: str, text: str, label: str, values: dict[str, Callable[[], float]]) -> None:
        """The same, with a label."""
        gauge = Gauge(name, text, [label], registry=self.registry)
        for key, value in values.items():
            gauge.labels(key).set_function(value)


@dataclass(frozen=True)
class _Job:
    state: str
    waste: tuple[float, ...]
    failures: tuple[float, ...]
    attempt: int
    progress: float
    starting: float
    """Since when its attempt has its machines and has not trained yet; 0: it has none, or trains."""
    checkpoint: float
    """Since when an attempt that trains has committed nothing; 0: it doesn't train."""


class JobFigures(Collector):
    """What is known of jobs, kept up to date by their events, so that a scrape reads no job and leaves no series of
    jobs that are gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Name, _Job] = {}
        self.states: Tally[str] = Tally()

    def changed(self, body: Object, *, gone: bool) -> None:
        """A DinoJob is new, changed or gone."""
        meta = body["metadata"]
        name = (meta.get("namespace") or "", meta["name"])
        with self._lock:
            before = self._known.pop(name, None)
            if before is not None:
                self.states[before.state] -= 1
            if not gone:
                now = self._known[name] = _job(body.get("status") or {})
                self.states[now.state] += 1

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        with self._lock:
            known, states = dict(self._known), {state: count for state, count in self.states.items() if count}
        yield _family("dinoctl_jobs", "Jobs by state.", "state", states)
        yield from _sums(list(known.values()))
        yield from _ages(known)


def _job(status: Object) -> _Job:
    waste, failures = _fields(status.get("waste")), _fields(status.get("failures"))
    memory = _fields(status.get("lifecycle"))
    live, head = live_attempt(status), _fields(memory.get("head"))
    began = _number(live.get("startedAt"))
    return _Job(
        str(status.get("state") or "Pending"),
        tuple(_number(waste.get(key)) for key in _WASTE.values()),
        tuple(_number(failures.get(key)) for key in _CAUSES),
        int(_number(status.get("attempt"))),
        _moment(status.get("lastProgressTime")),
        0.0 if live.get("trainedAt") else began,
        max(_number(live.get("trainedAt")), _number(head.get("at"))) if status.get("stage") in TRAINING else 0.0,
    )


def _sums(jobs: list[_Job]) -> Iterator[GaugeMetricFamily]:
    waste = {key: sum(job.waste[number] for job in jobs) for number, key in enumerate(_WASTE)}
    yield _family("dinoctl_waste_seconds", "Time that jobs lost to queue, start and replay.", "kind", waste)
    failures = {key: sum(job.failures[number] for job in jobs) for number, key in enumerate(_CAUSES)}
    yield _family("dinoctl_failures", "Attempts of all jobs that ended badly.", "cause", failures)


def _ages(known: dict[Name, _Job]) -> Iterator[GaugeMetricFamily]:
    now, labels = time.time(), ["namespace", "job"]
    starting = GaugeMetricFamily(
        "dinoctl_starting_age_seconds",
        "Time since an attempt got its machines, while it has not trained.",
        labels=labels,
    )
    progress = GaugeMetricFamily(
        "dinoctl_progress_age_seconds", "Time since a running job reported progress.", labels=labels
    )
    checkpoint = GaugeMetricFamily(
        "dinoctl_checkpoint_age_seconds",
        "Time since a running job's newest checkpoint, or since its attempt began to train.",
        labels=labels,
    )
    attempts = GaugeMetricFamily("dinoctl_attempts", "Number of an unfinished job's attempt.", labels=labels)
    for name, job in known.items():
        if job.attempt and job.state not in names.ENDED_STATES:
            attempts.add_metric(name, job.attempt)
        if job.starting:
            starting.add_metric(name, max(0.0, now - job.starting))
        if job.state == "Running" and job.progress:
            progress.add_metric(name, max(0.0, now - job.progress))
        if job.state == "Running" and job.checkpoint:
            checkpoint.add_metric(name, max(0.0, now - job.checkpoint))
    yield from (starting, progress, checkpoint, attempts)


def _family(name: str, text: str, label: str, values: dict[str, float] | dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _fields(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _moment(value: Any) -> float:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return 0.0
