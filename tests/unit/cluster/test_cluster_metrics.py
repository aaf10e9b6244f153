"""Metrics: the names that the chart's rules and dashboard use, and figures of jobs that come and go."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import generate_latest

from dinoctl.cluster.metrics import Metrics
from dinoctl.cluster.operator import Operator
from dinoctl.spec.profile import OperatorConfig
from support.kube.memory import MemoryApi, MemoryServer

ROOT = Path(__file__).resolve().parents[3]
CONFIG = OperatorConfig.model_validate(
    {"profiles": {"p": {"image": "x", "allowTags": True, "storage": "s3://b/p", "trackingUri": "http://m"}}}
)


class Idle:
    def lead(self) -> None: ...

    def reconcile(self, key: tuple[str, str]) -> float | None: ...

    def children(self, namespace: str, job: str) -> list[str]:
        return []

    def close(self) -> None: ...


def _exported(metrics: Metrics) -> set[str]:
    text = generate_latest(metrics.registry).decode()
    return set(re.findall(r"^# TYPE (dinoctl_\w+) ", text, re.MULTILINE))


def test_the_chart_uses_metrics_that_there_are() -> None:
    metrics = Metrics()
    api = MemoryApi(MemoryServer())
    Operator(api, CONFIG, lambda *_: Idle(), namespace="n", identity="i", metrics=metrics)
    used = {
        name
        for path in (ROOT / "helm").rglob("*")
        if path.is_file()
        for name in re.findall(r"\bdinoctl_[a-z]\w+", path.read_text())
    }
    assert used
    plain = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used}
    assert plain - _exported(metrics) == set()


def _job(name: str, **status: object) -> dict:
    return {"metadata": {"namespace": "n", "name": name}, "status": status}


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_ages_are_of_running_jobs_and_go_with_them() -> None:
    metrics = Metrics()
    then = datetime.fromtimestamp(time.time() - 100, UTC).isoformat()
    running = _job("a", state="Running", attempt=1, lastProgressTime=then, checkpointStep=5)
    metrics.jobs.changed(running, gone=False)
    metrics.jobs.changed(_job("b", state="Queued", lastProgressTime=then), gone=False)
    age = _value(metrics, "dinoctl_progress_age_seconds", namespace="n", job="a")
    assert age is not None
    assert 100 <= age < 110
    assert _value(metrics, "dinoctl_progress_age_seconds", namespace="n", job="b") is None
    assert _value(metrics, "dinoctl_jobs", state="Queued") == 1
    metrics.jobs.changed(_job("a", state="Complete", attempt=1), gone=False)
    assert _value(metrics, "dinoctl_progress_age_seconds", namespace="n", job="a") is None
    assert _value(metrics, "dinoctl_jobs", state="Complete") == 1
    assert _value(metrics, "dinoctl_jobs", state="Running") is None
    for name in ("a", "b"):
        metrics.jobs.changed(_job(name), gone=True)
    assert _value(metrics, "dinoctl_jobs", state="Complete") is None


def _remembered(number: int = 1, head: float | None = None, **attempt: float) -> dict:
    """As the operator's status.lifecycle has it."""
    memory: dict = {"attempts": [{"number": number, **attempt}]}
    return memory | ({"head": {"step": 5, "at": head, "attempt": number}} if head else {})


def test_a_checkpoint_grows_old_until_the_next_one_also_for_an_operator_that_is_new() -> None:
    now = time.time()

    def age(stage: str = "pretrain", **memory: float) -> float:
        metrics = Metrics()  # a new process
        status = {"state": "Running", "attempt": 1, "stage": stage, "lifecycle": _remembered(**memory)}
        metrics.jobs.changed(_job("a", **status), gone=False)
        return _value(metrics, "dinoctl_checkpoint_age_seconds", namespace="n", job="a") or 0.0

    assert 500 <= age(startedAt=now - 900, trainedAt=now - 500) < 510
    assert 60 <= age(startedAt=now - 900, trainedAt=now - 500, head=now - 60) < 70
    assert 30 <= age(startedAt=now - 90, trainedAt=now - 30, head=now - 5000) < 40, "its own work is not older"
    assert age(startedAt=now - 90) == 0, "not begun: nothing to lose"
    assert age("pack", startedAt=now - 900, trainedAt=now - 500) == 0, "has none"


def test_a_job_that_has_its_machines_and_does_not_train_grows_old() -> None:
    metrics, now = Metrics(), time.time()

    def age(state: str, **attempt: float) -> float | None:
        status = {"state": state, "attempt": 1, "lifecycle": _remembered(**attempt)}
        metrics.jobs.changed(_job("a", **status), gone=False)
        return _value(metrics, "dinoctl_starting_age_seconds", namespace="n", job="a")

    assert age("Queued", intendedAt=now - 5000) is None
    for state in ("Starting", "Unknown", "Stopping"):
        found = age(state, startedAt=now - 100)
        assert found is not None
        assert 100 <= found < 110
    assert age("Running", startedAt=now - 100, trainedAt=now - 10) is None
    assert age("Retrying", startedAt=now - 100, endedAt=now - 10) is None


def test_attempts_are_counted_until_a_job_has_ended() -> None:
    """One that dies before its first step is never Running."""
    metrics = Metrics()
    for attempt, state in enumerate(("Queued", "Starting", "Stopping", "Retrying", "Unknown", "Suspended"), 1):
        metrics.jobs.changed(_job("a", state=state, attempt=attempt), gone=False)
        assert _value(metrics, "dinoctl_attempts", namespace="n", job="a") == attempt
    for state in ("Complete", "Failed", "Cancelled"):
        metrics.jobs.changed(_job("a", state=state, attempt=7), gone=False)
        assert _value(metrics, "dinoctl_attempts", namespace="n", job="a") is None


def test_damaged_figures_do_not_end_the_scrape() -> None:
    metrics = Metrics()
    bad = _job("a", state="Running", waste={"queueSeconds": "much"}, lastProgressTime="soon", attempt="one")
    bad["status"]["lifecycle"] = {"attempts": ["one"], "head": 7}
    metrics.jobs.changed(bad, gone=False)
    assert _value(metrics, "dinoctl_waste_seconds", kind="queue") == 0
