"""``submit`` and ``diff`` against an API server in memory; the real one is in tests/kube."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_desk import NS, Desk, attempt

from dinoctl.cluster.errors import Unavailable
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.lifecycle import AttemptState
from dinoctl.spec import names

DIGITS = str(Path(__file__).parents[3] / "jobs" / "digits.yaml")
HEAD = "apiVersion: dinoctl.io/v1alpha1\nkind: DinoJob\n"
TEACHER = HEAD + "metadata: {name: teacher}\nspec:\n  pretrain: {data: {source: s3://b/d}, steps: 100}\n"
STUDENT = (
    HEAD + "metadata: {name: student}\nspec:\n  distill:\n    teacher: {job: teacher}\n"
    "    data: {source: s3://b/d}\n    model: {arch: vit_small}\n"
)


def test_all_documents_of_a_file_become_jobs_parents_first(desk: Desk) -> None:
    said = desk.run("submit", DIGITS, *NS)
    assert said.code == 0, said.err
    assert said.lines[0] == "digits-pack      created"
    assert [line.split()[0] for line in said.lines] == [
        *("digits-pack", "digits-pretrain", "digits-highres", "digits-distill", "digits-evaluate")
    ]
    assert desk.job("digits-pack")["spec"] == {
        "pack": {"source": "builtin://digits", "splits": {"val": 500}, "shardSize": "1MiB"}
    }, "the document goes as it was written"
    assert "see: dinoctl status -n team" in said.err


def test_the_same_again_changes_nothing(desk: Desk) -> None:
    desk.run("submit", DIGITS, *NS)
    before = desk.server.version
    said = desk.run("submit", DIGITS, *NS)
    assert said.code == 0
    assert {line.split()[1] for line in said.lines} == {"unchanged"}
    assert desk.server.version == before
    assert said.err == ""


def test_a_dry_run_tells_and_does_nothing(desk: Desk) -> None:
    said = desk.run("submit", DIGITS, "--dry-run", *NS)
    assert said.lines[0] == "digits-pack      would be created"
    assert desk.api.list(DINOJOBS, "team")[0] == []


def test_what_changes_is_shown_field_by_field(desk: Desk) -> None:
    file = desk.write(TEACHER)
    desk.run("submit", file, *NS)
    desk.write(TEACHER.replace("steps: 100", "steps: 200, globalBatch: 64"))
    said = desk.run("diff", file, *NS)
    expected = [
        "teacher  would be changed",
        "    spec.pretrain.globalBatch was not set, is 64",
        "    spec.pretrain.steps was 100, is 200",
    ]
    assert (said.code, said.lines) == (1, expected)
    assert desk.job("teacher")["spec"]["pretrain"]["steps"] == 100
    said = desk.run("submit", file, *NS)
    assert (said.code, said.lines[0]) == (0, "teacher  changed")
    assert desk.job("teacher")["spec"]["pretrain"]["steps"] == 200
    said = desk.run("diff", file, *NS, "-o", "json")
    assert (said.code, json.loads(said.out)) == (0, [{"name": "teacher", "change": "unchanged", "differences": []}])


def test_what_the_operator_and_others_wrote_stays(desk: Desk) -> None:
    file = desk.write(TEACHER)
    desk.run("submit", file, *NS)
    desk.status("teacher", state="Running", attempt=1)
    assert desk.run("suspend", "teacher", *NS).code == 0
    assert desk.run("submit", file, *NS).lines == ["teacher  unchanged"]
    job = desk.job("teacher")
    assert (job["spec"]["suspend"], job["status"]["state"]) == (True, "Running")


def test_a_parent_may_be_on_the_cluster(desk: Desk) -> None:
    desk.run("submit", desk.write(TEACHER, "teacher.yaml"), *NS)
    said = desk.run("submit", desk.write(STUDENT), *NS)
    assert (said.code, said.lines) == (0, ["student  created"]), said.err
    assert "waits for" not in said.err


def test_a_parent_on_the_cluster_is_judged_with_its_child(desk: Desk) -> None:
    desk.run("submit", desk.write(TEACHER, "teacher.yaml"), *NS)
    file = desk.write(STUDENT.replace("vit_small}", "vit_small, patchSize: 16}"))
    said = desk.run("submit", file, *NS)
    assert said.code == 2
    assert said.err.startswith("error: jobs.yaml:8:30: spec.distill.model.patchSize: 16, but the teacher's is 14")


def test_a_parent_may_come_later(desk: Desk) -> None:
    said = desk.run("submit", desk.write(STUDENT), *NS)
    assert (said.code, said.lines) == (0, ["student  created"])
    assert "student waits for teacher, which is not in namespace team yet" in said.err


def test_mistakes_are_told_with_their_place_and_nothing_is_sent(desk: Desk) -> None:
    file = desk.write(TEACHER + "---\n" + STUDENT.replace("vit_small", "vit_tiny"))
    said = desk.run("submit", file, *NS)
    assert said.code == 2
    assert said.err.startswith("error: jobs.yaml:14:13: spec.distill.model.arch: must be one of vit_small")
    assert desk.api.list(DINOJOBS, "team")[0] == []


def test_a_job_that_has_ended_is_restarted_with_what_descends_from_it(desk: Desk) -> None:
    file = desk.write(TEACHER + "---\n" + STUDENT)
    desk.run("submit", file, *NS)
    desk.status("teacher", state="Failed", attempt=3)
    desk.status("student", state="Cancelled", attempt=1)
    desk.write((TEACHER + "---\n" + STUDENT).replace("steps: 100", "steps: 200"))
    said = desk.run("submit", file, "--restart", "teacher", *NS)
    assert (said.code, said.lines) == (
        0,
        ["teacher  restarted", "    spec.pretrain.steps was 100, is 200", "student  restarted"],
    )
    tokens = {desk.job(name)["metadata"]["annotations"][names.RESTART] for name in ("teacher", "student")}
    assert len(tokens) == 2
    assert desk.run("submit", file, *NS).lines == ["teacher  unchanged", "student  unchanged"]
    assert desk.job("teacher")["metadata"]["annotations"][names.RESTART] in tokens


@pytest.mark.parametrize(
    ("restart", "words"),
    [
        ("nobody", "--restart nobody: no such job in these files; jobs: teacher, student"),
        ("student", "--restart: student is Running; dinoctl cancel student first"),
        ("teacher", "--restart: student, which descends from a job that is restarted is Running"),
    ],
)
def test_what_cannot_be_restarted_is_told(desk: Desk, restart: str, words: str) -> None:
    file = desk.write(TEACHER + "---\n" + STUDENT)
    desk.run("submit", file, *NS)
    desk.status("teacher", state="Failed", attempt=3)
    desk.status("student", state="Running", attempt=1)
    said = desk.run("submit", file, "--restart", restart, *NS)
    assert said.code == 2
    assert words in said.err


def test_waiting_ends_with_the_jobs_and_says_how(desk: Desk) -> None:
    file = desk.write(TEACHER)
    desk.run("submit", file, *NS)
    desk.status("teacher", state="Failed", message="out of retries", observedGeneration=1, stage="pretrain")
    said = desk.run("submit", file, "--wait", *NS)
    assert said.code == 1
    assert "teacher: Failed: out of retries" in said.err
    assert "teacher: out of retries" in said.out


UNREADABLE = {"type": "Admitted", "status": "False", "reason": "StorageUnreadable", "message": "s3://b: no answer"}


@pytest.mark.parametrize(
    "held",
    [{"conditions": [UNREADABLE]}, attempt(1, AttemptState.INTENDED)],
    ids=["before its first attempt", "with an attempt"],
)
def test_waiting_goes_on_while_the_operator_tries_again(desk: Desk, held: dict[str, Any]) -> None:
    file = desk.write(TEACHER)
    desk.run("submit", file, *NS)
    desk.status("teacher", state="Blocked", message="s3://b: no answer", observedGeneration=1, **held)

    def go_on() -> None:
        desk.status("teacher", state="Running", message="at last", conditions=[], **attempt(1))
        time.sleep(0.3)
        desk.status("teacher", state="Complete", message="done", **attempt(1, AttemptState.ENDED))

    threading.Timer(0.5, go_on).start()
    said = desk.run("submit", file, "--wait", *NS)
    assert said.code == 0, said.err
    assert "teacher: Blocked: s3://b: no answer" in said.err
    assert "teacher: Complete: done" in said.err


def test_waiting_ends_when_somebody_has_to_act(desk: Desk) -> None:
    file = desk.write(TEACHER)
    desk.run("submit", file, *NS)
    last = attempt(1, AttemptState.ENDED)
    desk.status("teacher", state="Blocked", message="deactivated in Kueue", observedGeneration=1, **last)
    said = desk.run("submit", file, "--wait", *NS)
    assert said.code == 1
    assert "teacher: deactivated in Kueue" in said.out


def test_a_cluster_without_the_definition_is_told_in_one_line(desk: Desk) -> None:
    desk.server.missing.add(DINOJOBS)
    said = desk.run("submit", DIGITS, *NS)
    assert said.code == 3
    assert said.err == (
        "error: this cluster does not know DinoJobs; its administrator has to install dinoctl (helm install)\n"
    )


def test_a_server_that_is_away_is_told_in_one_line(desk: Desk) -> None:
    def away(call: object) -> None:
        raise Unavailable("get DinoJob team/teacher", "connection refused")

    desk.api.hook = away
    said = desk.run("submit", desk.write(TEACHER), *NS)
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "connection refused" in said.err


def test_context_and_kubeconfig_go_where_they_belong(desk: Desk) -> None:
    desk.run("submit", desk.write(TEACHER), "--context", "prod", "--kubeconfig", "/k", *NS)
    assert desk.connected == [("prod", "/k")]
