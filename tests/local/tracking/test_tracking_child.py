"""MLflow in a child process, as the operator uses it: a real store, a server that hangs, one that isn't there."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cluster.documents import load_object
from dinoctl.cluster.tracking_child import Tracking, TrackingProblem, answer
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import CHECKPOINTS, Commit, Ledger
from dinoctl.handover.output import Output, write_output
from dinoctl.handover.runs import life_key, run_key
from dinoctl.handover.spools import keep_spool
from dinoctl.spec.resolve import ResolvedJob, resolve
from dinoctl.tracking.gate import Evidence
from dinoctl.tracking.spool import Spool

Fresh = Callable[[str], str]


def gated(model: str, *, margin: float | None = 0.1) -> ResolvedJob:
    gate: dict[str, Any] = {"min": 0.5, "dataset": "s3://b/d", "promote": {"model": model}}
    if margin is not None:
        gate["championMargin"] = margin
    spec = {"pretrain": {"data": {"source": "s3://b/d"}, "steps": 100, "globalBatch": 8}, "gate": gate}
    body = {"metadata": {"name": "job", "namespace": "team", "labels": {"team": "vision"}}, "spec": spec}
    return resolve([load_object(body)])[0]


def finish(job: ResolvedJob, folder: Path, accuracy: float = 0.9) -> str:
    storage = open_storage(folder)
    commit = Commit(100, 1, 1, job.spec_hash, "", 0, time.time(), {}, {})
    Ledger(storage.child(CHECKPOINTS)).create(commit)
    proof = Evidence({"knn_top1": accuracy}, "data-hash", f"export-{accuracy}", job.spec_hash)
    write_output(storage, Output("pretrain", job.spec_hash, 1, 100, "hash", {"dataset_hash": "data-hash"}), proof)
    return storage.uri


def test_promoted_once_and_closed(uri: str, fresh: Fresh, tmp_path: Path) -> None:
    from dinoctl.tracking.client import connect
    from dinoctl.tracking.registry import resolve_model

    model = fresh("model")
    job, tracking = gated(model), Tracking(uri)
    storage = finish(job, tmp_path / "job")
    key = run_key(fresh("team"), job.name, life_key(job.spec_hash, "uid", 1))
    assert tracking.champions(job) == {"": None}
    first, again = (tracking.promote(job, storage, key) for _ in range(2))
    assert first == again
    assert first["promotion"] == {
        "model": model,
        "version": "1",
        "alias": "champion",
        "spec_hash": job.spec_hash,
        "attempt": 1,
    }
    held = tracking.champions(job)[""]
    assert held is not None
    assert held.metrics["knn_top1"] == 0.9
    assert resolve_model(uri, f"models:/{model}@champion").tags["dinoctl.checkpoint_step"] == "100"
    assert Ledger(open_storage(storage).child(CHECKPOINTS)).pinned() == {100}
    spool = Spool(tmp_path / "spool", attempt=2)
    spool.append(7, {"loss": 0.5}, time.time())
    spool.close()
    keep_spool(open_storage(storage), tmp_path / "spool", 2)  # MLflow was down when attempt 2 ended
    for complete in (False, True):
        closed = tracking.close(job, storage, key, complete=complete, attempts=(1, 2))
    assert closed["runId"] == first["runId"]
    run = connect(uri).get_run(first["runId"])
    assert run.info.status == "FINISHED"
    history = connect(uri).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(7, 0.5)]
    assert run.data.tags["team"] == "vision"
    assert run.data.tags["dinoctl.dataset_hash"] == "data-hash"


@pytest.fixture
def childless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child does, in this process: it has MLflow already."""

    def ask(self: Tracking, request: dict[str, Any]) -> dict[str, Any]:
        return answer(json.loads(json.dumps({**request, "uri": self.uri})))

    monkeypatch.setattr(Tracking, "_ask", ask)


def test_a_refused_model_is_not_registered(childless: None, uri: str, fresh: Fresh, tmp_path: Path) -> None:
    job = gated(fresh("model"))
    storage = finish(job, tmp_path / "job", accuracy=0.3)
    key = run_key(fresh("team"), job.name, "life")
    made = Tracking(uri).promote(job, storage, key)
    why = "not registered, the gate refused: knn_top1 0.3 < 0.5; there is no champion to compare with"
    assert (made["promotion"], made["refused"]) == (None, why)


def test_overtaken_before_and_after_its_promotion(childless: None, uri: str, fresh: Fresh, tmp_path: Path) -> None:
    """What was champion stays promoted, whoever came after it; what comes too late is refused, and moves no alias."""
    model = fresh("model")
    job, tracking, key = gated(model, margin=0.01), Tracking(uri), run_key(fresh("team"), "job", "life")
    first = tracking.promote(job, finish(job, tmp_path / "first", 0.8), key)
    assert tracking.promote(job, finish(job, tmp_path / "better", 0.95), key)["promotion"]["version"] == "2"
    assert tracking.promote(job, open_storage(tmp_path / "first").uri, key) == first
    late = tracking.promote(job, finish(job, tmp_path / "late", 0.7), key)
    assert late["promotion"] is None
    assert "champion version 2 less the margin" in late["refused"]
    held = tracking.champions(job)[""]
    assert held is not None
    assert held.version == "2"


def test_no_champion_is_asked_for_where_none_counts() -> None:
    assert Tracking("http://127.0.0.1:1").champions(gated("model", margin=None)) == {}


def test_a_server_that_hangs_is_left_in_time(tmp_path: Path) -> None:
    job = gated("model")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(TrackingProblem, match="no answer within 6 s") as caught:
            Tracking(uri, timeout=6.0).champions(job)
        assert time.monotonic() - begun < 30
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TrackingProblem, match=r"MLflow at http://127\.0\.0\.1.*Max retries exceeded") as caught:
        Tracking(f"http://127.0.0.1:{port}").champions(gated("model"))
    assert "\n" not in str(caught.value)
