"""From the spool to MLflow, every (run, metric, step) exactly once, at whatever moment something dies.

MLflow's metric history is append-only and has no uniqueness over (key, step), so a repeated send shows as a doubled
point. Before a batch goes out the cursor says so on disk (intent); after the answer it says what is sent. A crash or an
error in between leaves the intent, and then the server is asked before anything else is sent: its latest step of every
metric. The same question is asked when there is no cursor at all (the disk went with the machine; what it had not sent
is a gap in MLflow's curve, and stays one). A batch is one transaction on the server.

Points of steps that a resumed attempt runs again are not sent a second time: the first value stays, MLflow cannot
replace it. Infinite values are left out and counted, because MLflow stores them as 1.797e308; nan is sent. Names that
MLflow refuses are changed by `dinoctl.tracking.client.mlflow_name` (`top1@10` is `top1_at_10` there).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dinoctl.tracking import cursor as cursors
from dinoctl.tracking.client import mlflow_name
from dinoctl.tracking.spool import Point
from dinoctl.tracking.spool_files import Line, attempt_files, owned_steps, read_lines, start_of

if TYPE_CHECKING:
    from mlflow.entities import Metric

BATCH = 1000  # mlflow.utils.validation.MAX_METRICS_PER_BATCH


class MetricClient(Protocol):
    """The part of `mlflow.MlflowClient` that is used here."""

    def log_batch(self, run_id: str, metrics: Sequence[Metric]) -> Any:
        """Add points in one transaction."""

    def get_run(self, run_id: str) -> Any:
        """The run with its latest metrics."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """Outcome of one call: points sent now, infinite values left out so far, and why it stopped early ("" if it did
    not).
    """

    sent: int
    skipped: int
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether the server has everything that the spool held."""
        return not self.error


class Shipper:
    """Ships one run. `client_factory` is called at the first send and again after every failure.

    `final_budget_s` bounds the retries of `ship(final=True)`, in seconds, apart from the client's own timeout.
    """

    def __init__(
        self,
        spool_dir: Path,
        client_factory: Callable[[], MetricClient],
        run_id: str,
        cursor_path: Path,
        *,
        final_budget_s: float = 60.0,
    ) -> None:
        self._spool_dir, self._connect, self._path = spool_dir, client_factory, cursor_path
        self._budget = final_budget_s
        self._cursor = cursors.load(cursor_path, run_id)
        self._client: MetricClient | None = None
        self._lock = threading.Lock()

    def ship(self, final: bool = False) -> Shipped:
        """Send what is new. An outage ends the call with `error` set and loses nothing: the next call goes on.

        With `final` an outage is retried, with growing delays and jitter, until the budget is spent. Never raises for a
        server that is down or a disk that is full; the points stay in the spool.
        """
        with self._lock:
            return self._retrying() if final else self._once()

    def _retrying(self) -> Shipped:
        from tenacity import Retrying, retry_if_result, stop_before_delay, wait_random_exponential

        outcomes: list[Shipped] = []
        retrying = Retrying(
            retry=retry_if_result(lambda _: not outcomes[-1].complete),
            stop=stop_before_delay(self._budget),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            retry_error_callback=lambda _: outcomes[-1],
        )
        retrying(lambda: outcomes.append(self._once()))
        return replace(outcomes[-1], sent=sum(outcome.sent for outcome in outcomes))

    def _once(self) -> Shipped:
        sent, error = 0, ""
        try:
            self._settle()
            for batch in self._batches():
                sent += self._deliver(batch)
        except Exception as failure:  # mlflow, requests, sqlalchemy, OSError: training goes on whatever it is
            self._client, error = None, f"{type(failure).__name__}: {failure}"
        return Shipped(sent, self._cursor.skipped, error)

    def _settle(self) -> None:
        """Ask the server what it has, if the cursor cannot know. Its latest metrics are those of the highest step."""
        if not self._cursor.in_doubt:
            return
        for metric in self._server().get_run(self._cursor.run_id).data.to_proto().metrics:
            self._cursor.sent[metric.key] = max(metric.step, self._cursor.sent.get(metric.key, -1))
        self._cursor.known, self._cursor.intent = True, None
        self._save()

    def _deliver(self, batch: _Batch) -> int:
        for start in range(
            0, len(batch.points), BATCH
        ):  # more than one round only for a line of more than 1,000 metrics
            self._send(batch.points[start : start + BATCH])
        self._cursor.offsets |= batch.offsets
        self._cursor.skipped += batch.skipped
        self._save()
        return len(batch.points)

    def _send(self, points: list[Point]) -> None:
        """One request: intent to disk, request, acknowledgement in memory (the caller or the next intent stores it)."""
        self._cursor.intent = {point.key: point.step for point in points}
        self._save()
        self._server().log_batch(self._cursor.run_id, metrics=_metrics(points))
        self._cursor.sent |= self._cursor.intent
        self._cursor.intent = None

    def _batches(self) -> Iterator[_Batch]:
        """Unsent points of the merged history, whole lines, about 1,000 at a time. Lines that are behind us are not
        read again.
        """
        queued, batch = dict(self._cursor.sent), _Batch()
        files = attempt_files(self._spool_dir)
        for attempt, owned in owned_steps({number: start_of(path) for number, path in files.items()}).items():
            for line in read_lines(files[attempt], self._cursor.offsets.get(files[attempt].name, 0)):
                points = _unsent(attempt, line, queued) if line.step in owned else []
                if batch.points and len(batch.points) + len(points) > BATCH:
                    yield batch
                    batch = _Batch()
                batch.add(points, files[attempt].name, line.end)
        if batch.offsets:
            yield batch

    def _server(self) -> MetricClient:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _save(self) -> None:
        cursors.save(self._path, self._cursor)


@dataclass(slots=True)
class _Batch:
    """Points to send, and what the cursor may forget once they are sent."""

    points: list[Point] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def add(self, points: list[Point], file: str, end: int) -> None:
        finite = [point for point in points if not math.isinf(point.value)]
        self.points += finite
        self.skipped += len(points) - len(finite)
        self.offsets[file] = end


def _unsent(attempt: int, line: Line, queued: dict[str, int]) -> list[Point]:
    """The line's points that are neither sent nor `queued` (metric -> highest step), which they join."""
    points = []
    for name, value in ((mlflow_name(key), value) for key, value in line.metrics.items()):
        if line.step > queued.get(name, -1):
            queued[name] = line.step
            points.append(Point(attempt, line.step, name, value, line.time_s))
    return points


def _metrics(points: list[Point]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(point.key, point.value, int(point.time_s * 1000), point.step) for point in points]
