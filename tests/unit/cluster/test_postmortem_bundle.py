"""A bundle holds what is needed when the cluster is gone, for many ranks and long logs too, and nothing secret."""

import json
from pathlib import Path

import pytest

from dinoctl.cluster.postmortem.bundle import Case, bundled_attempts, read_bundle, write_bundle
from dinoctl.cluster.postmortem.failure import Kind
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.outcome import Outcome

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
POD = {
    "metadata": {"name": "w-0"},
    "spec": {"nodeName": "gpu-7", "containers": [{"env": [{"name": "TOKEN", "value": "hunter2"}]}]},
    "status": {
        "phase": "Failed",
        "containerStatuses": [{"name": "ray-worker", "state": {"terminated": {"reason": "Error", "exitCode": 1}}}],
    },
}
EVENT = {
    "metadata": {"name": "e", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "type": "Warning",
    "reason": "BackOff",
    "message": "Back-off restarting\nfailed container",
    "involvedObject": {"kind": "Pod", "name": "w-0"},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "run-0001")


def attempt(storage: Storage, number: int, workers: int = 2, steps: int = 100) -> AttemptStore:
    spec = {"compute": {"workers": workers}, "pretrain": {"steps": steps}}
    storage.child(f"attempts/{number:04d}").write("attempt.json", json.dumps({"spec": spec}).encode())
    return AttemptStore(storage, number)


def case(storage: Storage, number: int = 2, **more: object) -> Case:
    return Case("team", "vitg", number, storage.uri, "Application", "the driver failed", **more)  # type: ignore[arg-type]


def test_a_bundle_says_what_why_and_what_was_other(storage: Storage) -> None:
    attempt(storage, 1)
    store = attempt(storage, 2, workers=4)
    store.write_outcome(Outcome(2, "failed", "Application", f"{OOM} (loop.py:88)", node="gpu-3"))
    store.write_log("driver", 0, b"starting\n")
    store.write_log("rank-00000", 0, b"step 1\n")
    store.write_log("rank-00001", 0, f"step 1\n{OOM}\n".encode())
    store.write_metrics([{"step": step, "time": 1.0, "metrics": {"loss": 9.0}} for step in range(50)])
    uri, failure = write_bundle(case(storage, pods=[POD], events=[EVENT], good_attempt=1))
    assert uri == f"{storage.uri}/attempts/0002/postmortem.json"
    assert (failure.kind, failure.node) == (Kind.CUDA_OUT_OF_MEMORY, "gpu-3")
    found = read_bundle(storage, 2)
    assert found is not None
    assert found["failure"]["kind"] == "CudaOutOfMemory"
    assert found["changes"] == ["spec.compute.workers was 2, is 4"]
    assert found["goodAttempt"] == 1
    assert found["spec"]["compute"] == {"workers": 4}
    assert [point["step"] for point in found["metrics"]] == list(range(30, 50))
    assert found["pods"][0]["containers"][0]["exitCode"] == 1
    assert found["events"][0]["message"] == "Back-off restarting failed container"
    assert found["logs"] == ["driver", "rank-00000", "rank-00001"]
    assert found["tails"]["rank-00001"][-1] == OOM
    assert "hunter2" not in json.dumps(found)


def test_of_many_ranks_the_one_that_failed_is_found_and_few_tails_are_kept(storage: Storage) -> None:
    store = attempt(storage, 2)
    for rank in range(300):
        store.write_log(f"rank-{rank:05d}", 0, b"RuntimeError: Connection closed by peer [10.0.0.1]:1\n")
    store.write_log("rank-00217", 1, f"{OOM}\n".encode())
    store.write_nodes([f"gpu-{rank // 8}" for rank in range(300)])
    _, failure = write_bundle(case(storage))
    assert failure.node == "gpu-27"
    assert (failure.kind, failure.source) == (Kind.CUDA_OUT_OF_MEMORY, "rank-00217")
    found = read_bundle(storage, 2)
    assert found is not None
    assert len(found["logs"]) == 300
    assert set(found["tails"]) == {"rank-00217", "rank-00000", "rank-00001", "rank-00002"}


def test_an_attempt_that_left_nothing_has_a_bundle_too(storage: Storage) -> None:
    uri, failure = write_bundle(case(storage, good_attempt=1))
    assert (failure.kind, failure.line, failure.source) == (Kind.UNKNOWN, "the driver failed", "operator")
    found = read_bundle(storage, 2)
    assert found is not None
    assert (found["spec"], found["goodAttempt"], found["outcome"]) == (None, None, None)
    assert uri.endswith("/attempts/0002/postmortem.json")


def test_the_word_of_a_rank_counts_where_the_driver_could_say_nothing(storage: Storage) -> None:
    store = attempt(storage, 2)
    store.write_rank_error(1, ValueError("bad label 12"), "gpu-9")
    store.write_rank_error(0, RuntimeError("Connection closed by peer"), "gpu-8")
    _, failure = write_bundle(case(storage))
    assert (failure.kind, failure.node) == (Kind.USER_CODE, "gpu-9")
    assert "bad label 12" in failure.line


def test_bundles_are_found_and_foreign_files_refused(storage: Storage) -> None:
    assert read_bundle(storage, 2) is None
    assert bundled_attempts(storage) == []
    for number in (2, 10):
        attempt(storage, number)
        write_bundle(case(storage, number))
    assert bundled_attempts(storage) == [2, 10]
    storage.child("attempts/0002").write("postmortem.json", b'{"format": "other/v2"}')
    with pytest.raises(ValueError, match=r"postmortem\.json is not a dinoctl\.postmortem/v1 file"):
        read_bundle(storage, 2)
