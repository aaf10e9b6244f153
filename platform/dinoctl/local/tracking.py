"""MLflow for a local run: runs, shipped metrics, promotion. All of it idempotent, none of it in training's way."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from dinoctl.data.storage import open_storage
from dinoctl.handover import promotion
from dinoctl.handover.judgement import Champions
from dinoctl.lifecycle import Status
from dinoctl.local.state import JobState, StateDir, write_atomic
from dinoctl.spec.errors import EnvironmentProblem, redacted
from dinoctl.spec.resolve import ResolvedJob, decisive
from dinoctl.tracking.gate import Champion

P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate["Tracking", P], R]
_FLUSH_S = 30.0


@contextmanager
def _store(uri: str) -> Iterator[None]:
    """Trouble with MLflow's store is the surroundings': nothing is lost, the next run does what this one could not."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("mlflow", "sqlalchemy", "sqlite3")):
            raise
        line = str(error).strip().splitlines()[0]
        what = redacted(f"MLflow at {uri} failed: {line}")
        raise EnvironmentProblem(f"{what}; mend it, then run the same command again") from None


def _guarded(method: Method[P, R]) -> Method[P, R]:
    @wraps(method)
    def call(self: "Tracking", /, *arguments: P.args, **named: P.kwargs) -> R:
        with _store(self._uri):
            return method(self, *arguments, **named)

    return call


class Tracking:
    """The tracking side of one ``dinoctl run``. MLflow is imported at first use: it takes seconds."""

    def __init__(self, state: StateDir, pipeline: str) -> None:
        self._state, self._uri, self._pipeline = state, state.tracking_uri, pipeline
        self._shippers: dict[str, Any] = {}
        self._runs: dict[str, str] = {}
        self._parent = ""

    @_guarded
    def begin(self, job: ResolvedJob, state: JobState, status: Status, attempt: int) -> str:
        """The job's run id; starts shipping its metrics."""
        from dinoctl.tracking.mlflow_runs import log_params

        tags = {**job.labels, "dinoctl.attempt": str(attempt), "dinoctl.stage": job.kind}
        tags["dinoctl.compute"] = json.dumps(job.to_dict()["spec"]["compute"], sort_keys=True)
        run_id = self._run(job, state, status, tags)
        log_params(self._uri, run_id, decisive(job.spec))
        self._ship(job.name, state.spool(status), run_id)
        return run_id

    def _ship(self, name: str, spool: Path, run_id: str) -> None:
        from dinoctl.tracking.background import BackgroundShipper
        from dinoctl.tracking.client import connect
        from dinoctl.tracking.shipper import Shipper

        self.pause(name)
        spool.mkdir(parents=True, exist_ok=True)
        shipper = Shipper(spool, lambda: connect(self._uri), run_id, spool / "shipped.json")
        self._shippers[name] = BackgroundShipper(shipper)
        self._shippers[name].start()

    def pause(self, name: str) -> None:
        """Ships what is there and ends the shipping of a job."""
        if shipper := self._shippers.pop(name, None):
            shipper.stop(_FLUSH_S)

    @_guarded
    def champions(self, job: ResolvedJob) -> dict[str, Champion | None]:
        """See ``handover.promotion``."""
        return promotion.champions(self._uri, job)

    @_guarded
    def promote(self, job: ResolvedJob, state: JobState, status: Status, champions: Champions) -> None:
        """Registers the exports, then leaves the mark that the lifecycle looks for."""
        storage = open_storage(state.storage_uri(status))
        mark = promotion.promote(self._uri, job, storage, self._run(job, state, status), champions)
        if mark is not None:
            self._mark(state, status, "promotion.json", mark)

    @_guarded
    def finalize(self, job: ResolvedJob, state: JobState, status: Status, *, complete: bool) -> None:
        """Ships the rest and closes the run."""
        run_id = self._run(job, state, status)
        self._ship(job.name, state.spool(status), run_id)
        self.pause(job.name)
        promotion.close(self._uri, job, open_storage(state.storage_uri(status)), run_id, complete=complete)
        self._mark(state, status, "finalized", {"complete": complete})

    def close(self, statuses: Mapping[str, Status | None]) -> None:
        """Ships what is there and closes the pipeline's run."""
        for name in list(self._shippers):
            self.pause(name)
        if self._parent:
            from dinoctl.tracking.mlflow_runs import close_run

            ends = [status.outcome for status in statuses.values() if status is not None]
            complete = len(ends) == len(statuses) and all(end is not None and end.complete for end in ends)
            close_run(self._uri, self._parent, "FINISHED" if complete else "FAILED")

    def _run(self, job: ResolvedJob, state: JobState, status: Status, tags: Mapping[str, str] | None = None) -> str:
        """The job's run. A restart of the same document is another life, and has a run of its own."""
        from dinoctl.tracking.mlflow_runs import ensure_run

        if job.name not in self._runs or tags is not None:
            life = job.spec_hash if status.first_attempt == 1 else f"{job.spec_hash}/{state.life(status)}"
            ids = ensure_run(self._uri, self._pipeline, self._pipeline, job.name, life, tags)
            self._runs[job.name], self._parent = ids.child, ids.parent
        return self._runs[job.name]

    @staticmethod
    def _mark(state: JobState, status: Status, name: str, content: Mapping[str, object]) -> None:
        directory = state.directory / state.life(status)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, json.dumps(content))
