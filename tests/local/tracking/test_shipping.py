"""The shipper against a real store, with a transport that fails before or after the request has had its effect."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from dinoctl.tracking import shipper as shipper_module
from dinoctl.tracking.client import connect
from dinoctl.tracking.mlflow_runs import ensure_run
from dinoctl.tracking.shipper import Shipper
from dinoctl.tracking.spool import Spool

KEYS = ("loss", "lr", "knn top1@10")


class Transport:
    """A real client behind a line that breaks at the given calls of `log_batch`, before or after the store has it."""

    def __init__(self, client: MlflowClient, breaks: dict[int, str], error: BaseException) -> None:
        self.client, self.breaks, self.error, self.calls = client, breaks, error, 0

    def log_batch(self, run_id: str, metrics: Sequence[Metric]) -> None:
        self.calls += 1
        if self.breaks.get(self.calls) == "before":
            raise self.error
        # Another clock at every attempt, or the SQL store would filter identical points out and hide a repeated one.
        late = [Metric(metric.key, metric.value, metric.timestamp + self.calls, metric.step) for metric in metrics]
        self.client.log_batch(run_id, metrics=late)
        if self.breaks.get(self.calls) == "after":
            raise self.error

    def get_run(self, run_id: str) -> Any:
        return self.client.get_run(run_id)


class Killed(BaseException):
    pass


@pytest.fixture
def run_id(uri: str, fresh: Callable[[str], str]) -> str:
    return ensure_run(uri, fresh("exp"), "digits", "pretrain", "hash-1").child


def steps_on_server(uri: str, run_id: str) -> dict[str, list[int]]:
    client = connect(uri)
    keys = client.get_run(run_id).data.metrics
    return {key: [metric.step for metric in client.get_metric_history(run_id, key)] for key in keys}


def write(folder: Path, attempt: int, steps: range) -> None:
    with Spool(folder / "spool", attempt=attempt) as spool:
        for step in steps:
            spool.append(step, dict.fromkeys(KEYS, 0.5), time_s=step)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("error", [ConnectionError("down"), Killed()], ids=["outage", "killed"])
def test_every_point_is_on_the_server_once(
    uri: str,
    run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    call: int,
    error: BaseException,
) -> None:
    monkeypatch.setattr(shipper_module, "BATCH", 100)
    write(tmp_path, 1, range(120))
    transport = Transport(connect(uri), {call: moment}, error)

    def sender() -> Shipper:
        return Shipper(tmp_path / "spool", lambda: transport, run_id, tmp_path / "cursor.json")

    shipper = sender()
    try:
        assert not shipper.ship().complete
    except Killed:
        shipper = sender()
    write(tmp_path, 2, range(100, 130))
    assert shipper.ship(final=True).complete
    assert steps_on_server(uri, run_id) == {key.replace("@", "_at_"): list(range(130)) for key in KEYS}


def test_a_resume_on_another_machine_asks_the_server(uri: str, run_id: str, tmp_path: Path) -> None:
    for name, attempt, steps in (("a", 1, range(50)), ("b", 2, range(20, 70))):
        write(tmp_path / name, attempt, steps)
        shipper = Shipper(tmp_path / name / "spool", lambda: connect(uri), run_id, tmp_path / name / "cursor.json")
        assert shipper.ship().sent == (150 if name == "a" else 60)
    assert set(map(tuple, steps_on_server(uri, run_id).values())) == {tuple(range(70))}


def test_a_server_that_is_not_there_costs_an_outcome_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(tmp_path, 1, range(3))
    shipper = Shipper(tmp_path / "spool", lambda: connect("http://127.0.0.1:9"), "run", tmp_path / "cursor.json")
    outcome = shipper.ship()
    assert outcome.sent == 0
    assert "MlflowException" in outcome.error
