"""What an attempt leaves behind: claimed once, the telling error of all ranks, logs that grow."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from test_handover_files import CLUSTER, attempt

from dinoctl.data.local import LocalStorage
from dinoctl.data.storage import Storage
from dinoctl.handover.attempts import AttemptStore, LogPosition
from dinoctl.handover.outcome import Outcome, classify
from dinoctl.spec.errors import UserError


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path)


@pytest.fixture
def store(storage: Storage) -> AttemptStore:
    return AttemptStore(storage, 3)


def test_where_it_lies(tmp_path: Path) -> None:
    """On a cluster in the job's storage; on one machine in scratch, where the local executor looks."""
    done = Outcome(2, "succeeded", step=60)
    AttemptStore.of(attempt(tmp_path)).write_outcome(done)
    assert Outcome.read(tmp_path) == done
    on_cluster = attempt(tmp_path, cluster=CLUSTER)
    assert AttemptStore.of(on_cluster).outcome() is None
    AttemptStore.of(on_cluster).write_outcome(done)
    assert (tmp_path / "out/attempts/0002/outcome.json").exists()
    assert AttemptStore(on_cluster.storage, 2).outcome() == done


def test_one_of_many_claims_it(store: AttemptStore, storage: Storage) -> None:
    assert store.claimed() is None
    won: list[str] = []
    barrier = threading.Barrier(8)

    def race(pod: str) -> None:
        barrier.wait()
        if AttemptStore(storage, 3).claim({"pod": pod}):
            won.append(pod)

    threads = [threading.Thread(target=race, args=(f"pod-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.claimed() == {"pod": won[0]}
    assert not store.claim({"pod": won[0]}), "not even twice by the same one"
    assert AttemptStore(storage, 4).claim({"pod": "another attempt"})


def test_who_came_second_does_not_overwrite_the_first(store: AttemptStore) -> None:
    refused = Outcome(3, "failed", "Preempted", "started twice")
    store.refuse(refused)
    assert store.outcome() == refused, "the first one was killed and has said nothing"
    stopped = Outcome(3, "stopped", "Preempted", "step 7 committed", 7)
    store.write_outcome(stopped)
    store.refuse(refused)
    assert store.outcome() == stopped


def test_result_and_errors_of_ranks(store: AttemptStore) -> None:
    assert (store.result(), store.rank_error()) == (None, None)
    store.write_result(Outcome(3, "succeeded", step=5))
    assert store.result() == Outcome(3, "succeeded", step=5)
    store.write_rank_error(0, RuntimeError("[gloo] Connection closed by peer"), "node-a")
    store.write_rank_error(1, SystemExit(1), "node-a")
    assert store.rank_errors()[0].node == "", "another rank's end is no fault of this node"
    bug = ValueError("shape")
    store.write_rank_error(2, bug, "node-b")
    assert store.rank_error() == classify(3, bug, "node-b")
    assert store.outcome() == Outcome(3, "succeeded", step=5), "the driver is gone: rank 0's word stands"
    store.write_rank_error(17, UserError("bad value"), "node-c")
    told = store.rank_error()
    assert told is not None
    assert (told.cause, told.message, told.node) == ("Spec", "bad value", "node-c")


def test_where_ranks_run(store: AttemptStore) -> None:
    assert store.nodes() == []
    store.write_nodes(["node-b", "node-a", "node-a"])
    assert store.nodes() == ["node-b", "node-a", "node-a"]


def test_a_log_is_followed_while_it_grows(store: AttemptStore) -> None:
    assert store.sources() == []
    assert list(store.logs("driver")) == []
    assert store.read_log("driver", LogPosition()) == (b"", LogPosition())
    store.write_log("driver", 0, b"one\n")
    store.write_log("rank-00001", 0, b"other\n")
    data, at = store.read_log("driver", LogPosition())
    assert data == b"one\n"
    store.write_log("driver", 0, "one\nzwölf\n".encode())
    store.write_log("driver", 1, b"three\n")
    data, at = store.read_log("driver", at)
    assert data.decode() == "zwölf\nthree\n"
    assert store.read_log("driver", at) == (b"", at)
    assert list(store.logs("driver")) == ["one", "zwölf", "three"]
    assert store.sources() == ["driver", "rank-00001"]
    store.delete_log("driver", 0)
    assert list(store.logs("driver")) == ["three"]
    assert store.read_log("driver", LogPosition(0, 3)) == (b"three\n", LogPosition(1, 6)), "what is gone is passed over"


def test_what_it_was_to_do(tmp_path: Path) -> None:
    made = attempt(tmp_path, cluster=CLUSTER)
    store = AttemptStore.of(made)
    assert store.document() is None
    store.write_document(made)
    assert store.document() == json.loads(made.to_json())


def test_last_metrics(store: AttemptStore) -> None:
    assert store.metrics() == []
    points = [{"step": 1, "time": 2.0, "metrics": {"loss": 3.0}}]
    store.write_metrics(points)
    assert store.metrics() == points


def test_no_secret_is_in_what_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors quote what they were given; on a cluster they come into status and events."""
    monkeypatch.setenv("API_TOKEN", "hunter2-hunter2")
    store = AttemptStore.of(attempt(tmp_path, cluster=CLUSTER))
    store.write_rank_error(1, ValueError("http://me:pw@host refused hunter2-hunter2"))
    found = store.rank_errors()[1]
    assert found.message == "ValueError: http://***@host refused ***"


@pytest.mark.parametrize(
    ("said", "outcome", "expected"),
    [
        (
            "preempted",
            Outcome(2, "stopped", step=3),
            ("stopped", "Preempted", "preempted; what is done so far is kept"),
        ),
        ("preempted", Outcome(2, "stopped", "Preempted", "step 3"), ("stopped", "Preempted", "step 3")),
        (
            *("preempted", Outcome(2, "failed", "Infrastructure", "reset")),
            ("failed", "Preempted", "preempted before a checkpoint was committed: reset"),
        ),
        ("preempted", Outcome(2, "failed", "Application", "a bug"), ("failed", "Application", "a bug")),
        ("preempted", Outcome(2, "succeeded"), ("succeeded", "", "")),
        ("", Outcome(2, "stopped"), ("stopped", "", "")),
        ("", Outcome(2, "failed", "Infrastructure", "reset"), ("failed", "Infrastructure", "reset")),
        (None, Outcome(2, "failed", "Infrastructure", "reset"), ("failed", "Infrastructure", "reset")),
    ],
)
def test_what_ends_because_the_driver_is_taken_away_is_preempted(
    tmp_path: Path, said: str | None, outcome: Outcome, expected: tuple[str, str, str]
) -> None:
    """``said``: in its stop file, which the preStop hook of its pod writes."""
    from dinoctl.worker import _taken

    made = attempt(tmp_path, cluster=CLUSTER)
    if said is not None:
        made.stop_file.write_text(said)
    found = _taken(made, outcome)
    assert (found.phase, found.cause, found.message) == expected
