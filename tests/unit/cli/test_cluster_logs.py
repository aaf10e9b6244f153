"""``logs``, and ``--follow``: from pods and from storage, on a cluster in memory, read as a person would."""

import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_desk import DINOJOB, NS, PRETRAIN, RUNNING, Desk, attempt, submitted, with_logs

from dinoctl.cli.remote.logs import Log, _Said
from dinoctl.cluster.errors import Unavailable
from dinoctl.cluster.resources import PODS
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import AttemptState
from dinoctl.spec import names
from support.kube.memory import Call

INTENDED, ENDED = AttemptState.INTENDED, AttemptState.ENDED


def becomes(desk: Desk, state: str, made: dict[str, Any], **more: Any) -> None:
    """The job of ``with_logs``: its newest attempt, and its state."""
    desk.status("vitg", **{**RUNNING, **made, "state": state, **more})


def follows_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoctl.cli.remote.logs._EVERY_S", 0.02)
    monkeypatch.setattr("dinoctl.cli.remote.logs._LATE_S", 0.1)
    monkeypatch.setattr("dinoctl.cli.remote.logs._LATER_S", 0.1)


def test_the_drivers_log_comes_from_its_pod_while_that_lives(desk: Desk) -> None:
    with_logs(desk)
    labels = {names.JOB: "vitg", names.ATTEMPT: "3", names.ROLE: "submitter"}
    desk.put(PODS, "vitg-3-x", labels=labels, status={"phase": "Running"})
    desk.server.log_lines["team", "vitg-3-x", ""] = ["from the pod"]
    assert desk.run("logs", "vitg", *NS).lines == ["from the pod"]
    assert desk.run("logs", "vitg", *NS, "--rank", "1").lines == ["rank 1"]


def test_logs_come_from_storage_when_pods_and_cluster_are_gone(desk: Desk) -> None:
    store = with_logs(desk)
    assert desk.run("logs", "vitg", *NS).lines == ["driver 1", "driver 2"]
    desk.connected.clear()
    uri = f"{desk.root}/models/vitg/run-0001"
    assert desk.run("logs", uri, "--rank", "0").lines == ["rank 0"]
    assert desk.connected == []
    store.write_outcome(Outcome(3, "succeeded"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "9"], "attempt 3 of vitg has no log of rank-00009; there are those of ranks 0 to 1"),
        (["--attempt", "2"], "vitg has no attempt 2; attempts: 3"),
        (["--rank", "1", "--driver"], "--driver and --rank ask for different logs; leave one out"),
    ],
)
def test_a_log_that_is_not_there_is_told_with_those_that_are(desk: Desk, arguments: list[str], words: str) -> None:
    with_logs(desk)
    said = desk.run("logs", "vitg", *NS, *arguments)
    assert (said.code, said.err) == (2, f"error: {words}\n")


def test_a_log_is_followed_through_attempts_until_the_job_has_ended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows_quickly(monkeypatch)
    store = with_logs(desk)

    def go_on() -> None:
        store.write_log("rank-00000", 0, b"rank 0\nlate line\n")
        store.write_outcome(Outcome(3, "failed", "Infrastructure"))
        second = AttemptStore(open_storage(f"{desk.root}/models/vitg/run-0001"), 4)
        second.write_log("rank-00000", 0, b"second attempt\n")
        second.write_outcome(Outcome(4, "succeeded"))
        becomes(desk, "Running", attempt(4))
        time.sleep(1.0)
        desk.status("vitg", state="Complete", **attempt(4, ENDED))

    threading.Timer(0.3, go_on).start()
    said = desk.run("logs", "vitg", *NS, "--rank", "0", "-f")
    assert (said.code, said.lines) == (0, ["rank 0", "late line", "second attempt"])


def driver_pod(desk: Desk, attempt: int, phase: str) -> str:
    labels = {names.JOB: "vitg", names.ATTEMPT: str(attempt), names.ROLE: "submitter"}
    name = f"vitg-{attempt}-x"
    desk.put(PODS, name, labels=labels, status={"phase": phase})
    return name


def test_a_log_goes_on_with_the_next_attempt_when_one_was_killed_without_a_word(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempt 3 lost its head node, attempt 4 was stopped while it was queued: neither leaves an outcome."""
    follows_quickly(monkeypatch)
    with_logs(desk).write_log("rank-00000", 0, b"rank 0\nits last words")

    def go_on() -> None:
        becomes(desk, "Retrying", attempt(3, ENDED))
        time.sleep(0.5)
        becomes(desk, "Queued", attempt(4, INTENDED))
        time.sleep(0.5)
        AttemptStore(open_storage(f"{desk.root}/models/vitg/run-0001"), 5).write_log("rank-00000", 0, b"fifth\n")
        becomes(desk, "Running", attempt(5))
        time.sleep(0.5)
        becomes(desk, "Cancelled", attempt(5, ENDED))

    threading.Timer(0.3, go_on).start()
    said = desk.run("logs", "vitg", *NS, "--rank", "0", "-f")
    assert (said.code, said.lines) == (0, ["rank 0", "its last words", "fifth"])


@pytest.mark.parametrize("breaks", [True, False], ids=["breaks", "ends"])
def test_a_pods_log_that_stops_in_the_middle_goes_on_from_storage_without_saying_a_line_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    follows_quickly(monkeypatch)
    monkeypatch.setattr("dinoctl.cli.remote.logs._ENDS_SOON", 1)
    store = with_logs(desk)
    store.write_log("driver", 0, b"one\n\none\n\ntwo\n")
    driver_pod(desk, 3, "Running")

    def stream(*_: Any, **__: Any) -> Iterator[str]:
        yield from ("Ray: job submitted", "one", "", "one")
        if breaks:
            raise Unavailable("logs Pod team/vitg-3-x", "the connection was reset")

    monkeypatch.setattr(desk.api, "logs", stream)

    def go_on() -> None:
        store.write_log("driver", 0, b"one\n\none\n\ntwo\none\n")
        becomes(desk, "Complete", attempt(3, ENDED))

    threading.Timer(0.5, go_on).start()
    said = desk.run("logs", "vitg", *NS, "-f")
    assert (said.code, said.lines) == (0, ["Ray: job submitted", "one", "", "one", "", "two", "one"])


def test_the_log_of_a_pod_that_succeeded_is_whole(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nobody needs credentials for the storage to follow a job on the cluster."""
    follows_quickly(monkeypatch)
    with_logs(desk)
    desk.server.log_lines["team", driver_pod(desk, 3, "Succeeded"), ""] = ["from the pod"]
    desk.status("vitg", **{**RUNNING, **attempt(3, ENDED), "state": "Complete"}, storage="s3://closed/vitg")
    assert desk.run("logs", "vitg", *NS, "-f").lines == ["from the pod"]


def test_the_log_of_what_has_ended_is_told_at_once(desk: Desk) -> None:
    with_logs(desk)
    becomes(desk, "Failed", attempt(3, ENDED))
    begun = time.monotonic()
    assert desk.run("logs", "vitg", *NS, "-f").lines == ["driver 1", "driver 2"]
    said = desk.run("logs", "vitg", *NS, "-f", "--attempt", "9")
    assert (said.code, said.err) == (2, "error: vitg is Failed and has no attempt 9; its last one is 3\n")
    assert time.monotonic() - begun < 10


def test_who_follows_a_log_outlives_an_api_server_that_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    follows_quickly(monkeypatch)
    store = with_logs(desk)
    gone = threading.Event()

    def hook(call: Call) -> None:
        if gone.is_set() and threading.current_thread() is threading.main_thread():
            raise Unavailable("get DinoJob team/vitg", "does not answer")

    desk.api.hook = hook

    def go_on() -> None:
        gone.set()
        store.write_log("rank-00000", 0, b"rank 0\nmeanwhile\n")
        store.write_outcome(Outcome(3, "succeeded"))
        time.sleep(0.7)
        becomes(desk, "Complete", attempt(3, ENDED))
        gone.clear()

    threading.Timer(0.3, go_on).start()
    said = desk.run("logs", "vitg", *NS, "--rank", "0", "-f")
    assert (said.code, said.lines) == (0, ["rank 0", "meanwhile"])


def test_submit_and_follow_shows_the_logs_of_all_jobs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    follows_quickly(monkeypatch)
    with_logs(desk)
    labels = {names.JOB: "vitg", names.ATTEMPT: "3", names.ROLE: "submitter"}
    desk.put(PODS, "vitg-3-x", labels=labels, status={"phase": "Running"})
    desk.server.log_lines["team", "vitg-3-x", ""] = ["from the pod"]
    end = partial(becomes, desk, "Complete", attempt(3, ENDED), observedGeneration=1)
    threading.Timer(1.0, end).start()
    file = desk.write(json.dumps({**DINOJOB, "spec": PRETRAIN}))
    said = desk.run("submit", file, "--follow", *NS)
    assert said.code == 0, said.err
    assert "vitg | from the pod" in said.lines
    assert "vitg: Complete" in said.err


def test_a_restart_is_waited_for_and_its_own_log_is_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is unchanged, so that the generation says nothing of the restart."""
    follows_quickly(monkeypatch)
    with_logs(desk)
    becomes(desk, "Failed", attempt(3, ENDED), message="the old end", observedGeneration=1)

    def operator() -> None:
        token = desk.job("vitg")["metadata"]["annotations"][names.RESTART]
        again = f"{desk.root}/models/vitg/run-0004"
        AttemptStore(open_storage(again), 4).write_log("driver", 0, b"again\n")
        desk.status("vitg", **{**RUNNING, **attempt(4)}, storage=again, restart=token)
        time.sleep(0.5)
        desk.status("vitg", state="Complete", message="the new end", **attempt(4, ENDED))

    threading.Timer(1.0, operator).start()
    file = desk.write(json.dumps({**DINOJOB, "spec": PRETRAIN}))
    said = desk.run("submit", file, "--restart", "vitg", "--follow", *NS)
    assert said.code == 0, said.err
    assert [line for line in said.lines if "|" in line] == ["vitg | again"]
    assert "vitg: Failed: is to be done again; the operator has not looked at it yet" in said.err
    assert "the old end" not in said.err
    assert "vitg: Complete: the new end" in said.err


def test_a_job_that_has_not_started_has_no_log(desk: Desk) -> None:
    submitted(desk, state="Waiting", message="waits")
    said = desk.run("logs", "vitg", *NS)
    assert said.err == "error: vitg has not started yet, so it has no log; see dinoctl status vitg -n team\n"


def test_an_attempt_that_waits_for_its_machines_has_no_log_yet(desk: Desk) -> None:
    with_logs(desk)
    becomes(desk, "Queued", attempt(4, INTENDED))
    said = desk.run("logs", "vitg", *NS)
    words = "attempt 4 of vitg has left no log yet; see dinoctl status vitg -n team; --attempt shows those of 3"
    assert (said.code, said.err) == (2, f"error: {words}\n")
    assert desk.run("logs", "vitg", *NS, "--attempt", "3").lines == ["driver 1", "driver 2"]


def test_a_storage_without_attempts_is_told(desk: Desk) -> None:
    (desk.root / "empty").mkdir()
    said = desk.run("logs", f"{desk.root}/empty")
    assert said.code == 2
    assert "no attempts here; give the storage of one job" in said.err


def test_the_log_of_an_attempt_that_is_held_up_is_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is missing: the same attempt runs when that is back."""
    follows_quickly(monkeypatch)
    with_logs(desk)
    becomes(desk, "Blocked", attempt(4, INTENDED))
    store = AttemptStore(open_storage(f"{desk.root}/models/vitg/run-0001"), 4)

    def go_on() -> None:
        store.write_log("driver", 0, b"at last\n")
        becomes(desk, "Running", attempt(4))
        time.sleep(0.5)
        becomes(desk, "Complete", attempt(4, ENDED))

    threading.Timer(1.0, go_on).start()
    said = desk.run("logs", "vitg", *NS, "-f")
    assert (said.code, said.lines) == (0, ["at last"])


def test_without_a_cluster_a_killed_attempt_is_over_when_its_successor_begins(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows_quickly(monkeypatch)
    first, second = (AttemptStore(open_storage(str(tmp_path)), number) for number in (1, 3))  # 2 never began
    first.claim({"pod": "a"})
    first.write_log("driver", 0, b"one\n")

    def succeed() -> None:
        second.claim({"pod": "b"})
        second.write_log("driver", 0, b"two\n")
        second.write_outcome(Outcome(3, "succeeded"))

    later = threading.Timer(0.5, succeed)
    later.start()
    assert desk.run("logs", str(tmp_path), "--follow").lines == ["one", "two"]
    assert desk.run("logs", str(tmp_path), "--follow", "--attempt", "1").lines == ["one"]
    later.join()


def test_an_attempt_that_is_not_over_after_all_is_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follows_quickly(monkeypatch)
    store = AttemptStore(open_storage(str(tmp_path)), 1)
    words = iter([True, *[False] * 20])

    def over() -> bool:
        word = next(words, None)
        if word is None:
            store.write_log("driver", 0, b"still here\n")
        return word is not False

    assert list(Log(store, "driver", "vitg").follow(over, late=0.1)) == ["still here"]


def test_what_storage_says_is_not_kept() -> None:
    """A job is followed for weeks."""
    said = _Said()
    assert list(said.hear(["Ray: job submitted", "line 0", "line 1"])) == ["Ray: job submitted", "line 0", "line 1"]
    tracemalloc.start()
    try:
        heard = sum(1 for _ in said.rest(f"line {number}" for number in range(50_000)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert heard == 50_000 - 2
    assert kept < 500_000
