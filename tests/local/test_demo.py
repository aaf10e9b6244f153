"""The main job, whole: digits packed, a teacher, its high-resolution version, a student, an evaluation, promotions."""

import json
from pathlib import Path

import pytest

from support.runs import Runs

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.yaml"
TRAINED = {"digits-pretrain": "digits-teacher", "digits-highres": "digits-highres", "digits-distill": "digits-student"}


pytestmark = pytest.mark.timeout(2400)  # the fixture runs the whole demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("demo"), DIGITS.read_text(encoding="utf-8"), limit_s=1500.0)
    code, output = runs.run()
    assert code == 0, output
    runs.output = output
    return runs


def states(runs: Runs) -> dict[str, dict[str, object]]:
    code, output = runs.call("status", "-o", "json")
    assert code == 0, output
    return {row["name"]: row for row in json.loads(output)}


def test_every_job_is_complete_in_one_attempt(demo: Runs) -> None:
    rows = states(demo)
    assert {row["state"] for row in rows.values()} == {"Complete"}
    assert {row["attempt"] for row in rows.values()} == {1}


@pytest.mark.parametrize("job", TRAINED)
def test_knn_is_good_and_far_above_the_untrained_backbone(demo: Runs, job: str) -> None:
    row = states(demo)[job]
    knn, untrained = float(str(row["knn_top1"])), float(str(row["random_knn_top1"]))
    assert knn >= 0.80
    assert knn >= untrained + 0.25


def test_models_are_registered_with_evidence_and_alias(demo: Runs) -> None:
    from dinoctl.model import load_export
    from dinoctl.tracking.registry import champion, resolve_model

    uri = f"sqlite:///{demo.state}/mlflow.db"
    for job, model in TRAINED.items():
        reference = resolve_model(uri, f"models:/{model}@champion")
        assert reference.version == "1"
        holder = champion(uri, model)
        assert holder is not None
        assert holder.metrics["knn_top1"] == pytest.approx(float(str(states(demo)[job]["knn_top1"])))
        exported = load_export(Path(reference.source))
        assert exported.metadata["job"] == job
        assert set(exported.heads) == {"dino_head", "ibot_head"}


def test_metrics_arrived_once(demo: Runs) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{demo.state}/mlflow.db")
    experiment = client.get_experiment_by_name("jobs")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["digits-pretrain"].info.status == "FINISHED"
    history = client.get_metric_history(runs["digits-pretrain"].info.run_id, "loss")
    steps = [point.step for point in history]
    assert len(steps) == len(set(steps))
    assert max(steps) == states(demo)["digits-pretrain"]["steps"]


def test_report_and_hints(demo: Runs) -> None:
    report = (demo.state / "report.html").read_text(encoding="utf-8")
    for job in TRAINED:
        assert job in report
    assert "data:image/png;base64," in report or "data:image/webp;base64," in report
    assert "mlflow ui --backend-store-uri" in demo.output
    assert str(demo.state / "report.html") in demo.output
    assert "digits-student/1" in demo.output


def test_the_same_command_does_nothing_again(demo: Runs) -> None:
    before = {job: demo.export_hash(job) for job in TRAINED}
    code, output = demo.run()
    assert code == 0, output
    assert {job: demo.export_hash(job) for job in TRAINED} == before
    assert all(len(demo.attempts(job)) == 1 for job in TRAINED)
