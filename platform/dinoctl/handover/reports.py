"""What an attempt reports while it runs on a cluster: progress to its ConfigMap, metric points to MLflow, and the last
of them to the storage for who asks afterwards. All of it from files that training leaves on the disk of its machine,
so none of it is in training's way; whatever can't be reached now is told once and tried again.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import FencedError, check_fences
from dinoctl.handover.progress import read_progress
from dinoctl.handover.progress_map import ProgressMap, ReplacedError
from dinoctl.handover.runs import run_key
from dinoctl.handover.spools import fetch_spools, keep_spool
from dinoctl.spec.resolve import decisive
from dinoctl.tracking.background import BackgroundShipper
from dinoctl.tracking.shipper import Shipper
from dinoctl.tracking.spool_files import attempt_files

if TYPE_CHECKING:
    from mlflow.entities import Metric

_NEWS_S, _EVERY_S, _RARELY_S = 5.0, 15.0, 60.0
"""Between patches of the progress: when something has happened, when only steps were counted (a thousand jobs do that
at one API server), and at most while they fail.
"""
_LOOK_S = 0.5
_METRICS_S = 10.0
_POINTS, _TAIL = 200, 512 * 2**10
_END_S = 15.0  # for MLflow to take the rest
Say = Callable[[str], None]


class Reports:
    """Runs from its making to ``join``. ``say``: a line for the log."""

    def __init__(self, attempt: Attempt, say: Say) -> None:
        assert attempt.cluster is not None  # noqa: S101 - only who is on a cluster has a companion
        self._attempt, self._say, self._cluster = attempt, say, attempt.cluster
        self._ending = threading.Event()
        self._run_id = ""
        self._shipper = BackgroundShipper(self._make_shipper) if attempt.tracking_uri else None
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._progress, self._metrics)]
        for thread in self._threads:
            thread.start()
        if self._shipper is not None:
            self._shipper.start()

    def end(self) -> None:
        """Asks for an end, and for the rest to be sent before."""
        self._ending.set()

    def join(self) -> None:
        """Waits for it, some seconds at most; points that are left are kept in the storage."""
        if self._shipper is not None:
            shipped = self._shipper.stop(0.0 if self._replaced() else _END_S)
            if not shipped.complete:
                self._say(f"MLflow has not taken all metrics, they are kept: {shipped.error}")
                with suppress(OSError):
                    keep_spool(self._attempt.storage, self._attempt.spool, self._attempt.number)
        for thread in self._threads:
            thread.join(_END_S)

    def _replaced(self) -> bool:
        """Then nothing more is to be sent, and the machine may be waited for."""
        try:
            check_fences(self._attempt.storage, self._attempt.number)
        except FencedError:
            return True
        except OSError:
            return False
        return False

    def _progress(self) -> None:
        cluster = self._cluster
        place = ProgressMap(cluster.namespace, cluster.progress, self._attempt.number)
        written: dict[str, Any] | None = None
        failures, wrote_at = 0, -_RARELY_S
        while True:
            ending = self._ending.wait(_LOOK_S)
            said, silent = self._latest(), time.monotonic() - wrote_at
            if said is not None and said != written and (ending or silent >= _pause(written, said, failures)):
                try:
                    place.write(said)
                    written, failures = said, 0
                except ReplacedError as error:
                    self._say(f"progress is no longer reported: {error}")
                    return
                except OSError as error:
                    failures += 1
                    if failures == 1:
                        self._say(f"progress can't be reported, tried again: {error}")
                wrote_at = time.monotonic()
            if ending:
                return

    def _latest(self) -> dict[str, Any] | None:
        said = read_progress(self._attempt.scratch)
        return None if said is None else {**said, "runId": self._run_id}

    def _metrics(self) -> None:
        store, size = AttemptStore.of(self._attempt), 0
        while True:
            ending = self._ending.wait(_METRICS_S)
            path = attempt_files(self._attempt.spool).get(self._attempt.number)
            if path is not None and path.stat().st_size != size:
                size = path.stat().st_size
                with suppress(OSError):  # the log says it already when the storage can't be reached
                    store.write_metrics(_last_points(path))
            if ending:
                return

    def _make_shipper(self) -> Shipper:
        """Only now the run is looked for, in the shipper's own thread: MLflow may be down for hours."""
        attempt = self._attempt
        fetch_spools(attempt.storage, attempt.spool, self._cluster.first_attempt, attempt.number - 1)
        self._run_id = self._open_run()
        return Shipper(
            attempt.spool,
            lambda: _Fenced(attempt),
            self._run_id,
            attempt.spool / "shipped.json",
            final_budget_s=_END_S,
        )

    def _open_run(self) -> str:
        from dinoctl.tracking.mlflow_runs import log_params

        attempt, cluster, spec = self._attempt, self._cluster, self._attempt.spec
        uri = attempt.tracking_uri or ""
        tags = {**cluster.labels, "dinoctl.attempt": str(attempt.number), "dinoctl.stage": spec.kind}
        tags["dinoctl.compute"] = spec.compute.model_dump_json(by_alias=True)
        run_id = run_key(cluster.namespace, attempt.name, cluster.run_life).ensure(uri, tags)
        try:
            log_params(uri, run_id, decisive(spec))
        except ValueError as error:  # metrics are worth more than a parameter that says something else
            self._say(str(error))
        return run_id


def _pause(written: dict[str, Any] | None, said: dict[str, Any], failures: int) -> float:
    least = _NEWS_S if written is None or _news(written) != _news(said) else _EVERY_S
    return min(_RARELY_S, least * 2.0 ** min(failures, 10))


def _news(said: dict[str, Any]) -> tuple[Any, ...]:
    """What somebody may be waiting for."""
    return said.get("phase"), bool(said.get("warning")), said.get("head"), said.get("runId")


class _Fenced:
    """MLflow for the newest attempt alone: steps that a successor runs again are for it to send."""

    def __init__(self, attempt: Attempt) -> None:
        from dinoctl.tracking.client import connect

        self._attempt, self._client = attempt, connect(attempt.tracking_uri or "")

    def log_batch(self, run_id: str, metrics: "Sequence[Metric]") -> None:
        """See MetricClient."""
        check_fences(self._attempt.storage, self._attempt.number)
        self._client.log_batch(run_id, metrics=metrics)

    def get_run(self, run_id: str) -> Any:
        """See MetricClient."""
        return self._client.get_run(run_id)


def _last_points(path: Path) -> list[dict[str, Any]]:
    """As they lie in the spool."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().splitlines(keepends=True)
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the first one is cut, the last one perhaps not whole
        if "metrics" in record:
            found.append(record)
    return found[-_POINTS:]
