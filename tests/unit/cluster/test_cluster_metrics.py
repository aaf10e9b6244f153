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


def test_a_checkpoint_grows_old_until_the_next_one(monkeypatch) -> None:
    metrics, now = Metrics(), time.time()

    def age(at: float, **status: object) -> float | None:
        monkeypatch.setattr("dinoctl.cluster.metrics.time.time", lambda: now + at)
        metrics.jobs.changed(_job("a", state="Running", **status), gone=False)
        return _value(metrics, "dinoctl_checkpoint_age_seconds", namespace="n", job="a")

    assert age(0, attempt=1, checkpointStep=5) == 0
    assert age(60, attempt=1, checkpointStep=5, step=7) == 60
    assert age(70, attempt=1, checkpointStep=10) == 0
    assert age(90, attempt=2, checkpointStep=10) == 0


def test_damaged_figures_do_not_end_the_scrape() -> None:
    metrics = Metrics()
    bad = _job("a", state="Running", waste={"queueSeconds": "much"}, lastProgressTime="soon", attempt="one")
    metrics.jobs.changed(bad, gone=False)
    assert _value(metrics, "dinoctl_waste_seconds", kind="queue") == 0
