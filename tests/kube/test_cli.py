"""The command line against the real API server: what is judged there, who may do what, and servers that are away."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.connect import connect
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.spec import names
from support.commands import Said, typed
from support.kube.apiserver import ApiServer
from support.kube.faults import FaultProxy
from support.kube.processes import free_port

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "jobs" / "digits.yaml")
JOB = """apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: teacher}
spec:
  pretrain:
    data: {source: s3://b/d}
    steps: 100
"""
JOBS = ("digits-pack", "digits-pretrain", "digits-highres", "digits-distill", "digits-evaluate")
Run = Callable[..., Said]


@pytest.fixture(scope="module")
def client(api: ApiServer) -> HttpApi:
    api.apply_crds(ROOT / "manifests" / "crd.yaml")
    return connect(None, api.kubeconfig)


@pytest.fixture
def run(
    api: ApiServer, client: HttpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    return typed(monkeypatch, capsys)


def status(client: HttpApi, namespace: str, name: str, **status: Any) -> None:
    client.patch(DINOJOBS, namespace, name, {"status": status}, subresource="status")


def write(text: str) -> str:
    Path("job.yaml").write_text(text)
    return "job.yaml"


def version(client: HttpApi, namespace: str) -> list[str]:
    return [job["metadata"]["resourceVersion"] for job in client.list(DINOJOBS, namespace)[0]]


def test_to_submit_twice_is_to_submit_once(run: Run, client: HttpApi, namespace: str) -> None:
    said = run("submit", DIGITS, "-n", namespace)
    assert said.code == 0, said.err
    assert [line.split()[1] for line in said.lines] == ["created"] * 5
    before = version(client, namespace)
    said = run("submit", DIGITS, "-n", namespace)
    assert (said.code, [line.split()[1] for line in said.lines]) == (0, ["unchanged"] * 5)
    assert version(client, namespace) == before
    said = run("status", "-n", namespace)
    shown = [line.split()[0] for line in said.lines[1:6]]
    assert shown[:2] == ["digits-pack", "digits-pretrain"], "parents first"
    assert set(shown) == set(JOBS)
    assert said.lines[6:] == [f"{', '.join(shown)}: submitted; the operator has not looked at it yet"]


def test_a_dry_run_is_judged_by_the_server_and_leaves_nothing(run: Run, client: HttpApi, namespace: str) -> None:
    assert run("submit", DIGITS, "--dry-run", "-n", namespace).lines[0].split()[1:] == ["would", "be", "created"]
    assert client.list(DINOJOBS, namespace)[0] == []


def test_a_change_is_shown_and_made_and_others_fields_stay(run: Run, client: HttpApi, namespace: str) -> None:
    file = write(JOB)
    run("submit", file, "-n", namespace)
    run("suspend", "teacher", "-n", namespace)
    write(JOB.replace("100", "200"))
    said = run("diff", file, "-n", namespace)
    assert (said.code, said.lines) == (1, ["teacher  would be changed", "    spec.pretrain.steps was 100, is 200"])
    assert run("submit", file, "-n", namespace).lines[0] == "teacher  changed"
    assert run("diff", file, "-n", namespace).code == 0
    spec = client.get(DINOJOBS, namespace, "teacher")["spec"]
    assert (spec["suspend"], spec["pretrain"]["steps"]) == (True, 200)


def test_a_field_that_is_left_out_again_is_gone(run: Run, client: HttpApi, namespace: str) -> None:
    run("submit", write(f"{JOB}    globalBatch: 64\n"), "-n", namespace)
    said = run("submit", write(JOB), "-n", namespace)
    assert "    spec.pretrain.globalBatch was 64, is not set" in said.lines
    assert "globalBatch" not in client.get(DINOJOBS, namespace, "teacher")["spec"]["pretrain"]


def test_what_may_not_change_any_more_is_told_with_its_line(run: Run, client: HttpApi, namespace: str) -> None:
    file = write(JOB)
    run("submit", file, "-n", namespace)
    status(client, namespace, "teacher", attempt=1, state="Running")
    write(JOB.replace("100", "200"))
    said = run("submit", file, "-n", namespace)
    assert said.code == 2
    assert said.err == (
        "error: job.yaml:5:3: spec.pretrain: cannot change once the job has started: it is part of what the job is "
        "(teacher is Running); give it a new name, or restart it when it has ended\n"
    )
    write(JOB + "  compute: {workers: 2}\n")
    said = run("submit", file, "-n", namespace)
    assert said.err.endswith("(teacher is Running): dinoctl suspend teacher, submit again, dinoctl resume teacher\n")
    write(JOB.replace("100", "200"))
    status(client, namespace, "teacher", attempt=1, state="Failed")
    said = run("submit", file, "--restart", "teacher", "-n", namespace)
    assert said.lines == ["teacher  restarted", "    spec.pretrain.steps was 100, is 200"]
    assert run("submit", file, "-n", namespace).lines == ["teacher  unchanged"]


def test_a_changed_document_and_its_restart_are_one_request(
    run: Run, client: HttpApi, namespace: str, proxy: FaultProxy
) -> None:
    """So that nothing can come between them; and what other commands write beside it keeps its owner."""
    file = write(JOB)
    through = ("-n", namespace, "--kubeconfig", str(proxy.kubeconfig()))
    run("submit", file, *through)
    run("cancel", "teacher", *through)
    status(client, namespace, "teacher", attempt=1, state="Cancelled")
    write(JOB.replace("100", "200"))
    proxy.requests.clear()
    assert run("submit", file, "--restart", "teacher", *through).lines[0] == "teacher  restarted"
    writes = [one for one in proxy.requests if one.method != "GET" and "dryRun" not in one.path]
    assert [one.method for one in writes] == ["PATCH"]
    job = client.get(DINOJOBS, namespace, "teacher")
    token = job["metadata"]["annotations"][names.RESTART]
    assert job["spec"]["pretrain"]["steps"] == 200
    assert job["metadata"]["annotations"] == {names.RESTART: token, names.CANCEL: "false"}

    assert run("cancel", "teacher", *through).code == 0, "also before the operator has seen the restart"
    status(client, namespace, "teacher", attempt=2, state="Running")
    run("cancel", "teacher", *through)
    status(client, namespace, "teacher", attempt=2, state="Cancelled")
    write(JOB.replace("100", "300"))
    assert run("submit", file, *through).lines[0] == "teacher  changed"
    assert client.get(DINOJOBS, namespace, "teacher")["metadata"]["annotations"] == {
        names.RESTART: token,
        names.CANCEL: "true",
    }


def test_a_restart_is_waited_for(run: Run, client: HttpApi, namespace: str) -> None:
    """Its document is unchanged, so the generation says nothing of it."""
    import threading

    file = write(JOB)
    run("submit", file, "-n", namespace)
    status(client, namespace, "teacher", attempt=1, state="Failed", message="the old end", observedGeneration=1)

    def operator() -> None:
        token = client.get(DINOJOBS, namespace, "teacher")["metadata"]["annotations"][names.RESTART]
        status(client, namespace, "teacher", attempt=2, state="Running", restart=token)
        status(client, namespace, "teacher", state="Complete", message="the new end")

    threading.Timer(2.0, operator).start()
    said = run("submit", file, "--restart", "teacher", "--wait", "-n", namespace)
    assert said.code == 0, said.err
    assert "the old end" not in said.err
    assert "teacher: Complete: the new end" in said.err


def test_what_only_the_server_refuses_is_told_with_its_line(run: Run, client: HttpApi, namespace: str) -> None:
    said = run(
        "submit", write(JOB.replace("{name: teacher}", "{name: teacher, labels: {a: 'not a value!'}}")), "-n", namespace
    )
    assert said.code == 2
    assert said.err.startswith("error: job.yaml:3:27: metadata.labels: ")
    assert "not a value!" in said.err
    assert client.list(DINOJOBS, namespace)[0] == []


def test_a_namespace_that_is_not_there_is_told(run: Run) -> None:
    said = run("submit", write(JOB), "-n", "nowhere")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert 'namespaces "nowhere" not found' in said.err


@pytest.mark.parametrize("command", [["status"], ["submit", "job.yaml"], ["events", "teacher"], ["delete", "teacher"]])
def test_who_may_not_is_told_so_in_one_line(run: Run, api: ApiServer, namespace: str, command: list[str]) -> None:
    write(JOB)
    kubeconfig = str(api.service_account_kubeconfig(namespace, "stranger"))
    said = run(*command, "-n", namespace, "--kubeconfig", kubeconfig)
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "is forbidden" in said.err
    assert "stranger" in said.err
    assert said.err.endswith("; ask the administrator for it (rbac.users of the chart)\n")


def test_a_context_that_is_not_there_is_told_with_those_that_are(run: Run) -> None:
    said = run("status", "--context", "prod")
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "there is no context 'prod'; contexts: test" in said.err


def test_a_server_that_is_away_is_told_in_one_line(run: Run, api: ApiServer) -> None:
    kubeconfig = str(api.write_kubeconfig("lost", "token", url=f"https://127.0.0.1:{free_port()}"))
    said = run("status", "-n", "default", "--kubeconfig", kubeconfig)
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "127.0.0.1" in said.err


def test_wrong_credentials_are_told_in_one_line(run: Run, api: ApiServer) -> None:
    said = run("status", "-n", "default", "--kubeconfig", str(api.write_kubeconfig("thief", "wrong")))
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "log in again" in said.err


def test_no_configuration_at_all_is_told_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    said = run("status", "-c")
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "/nowhere/config" in said.err


def test_waiting_follows_what_the_operator_writes(run: Run, client: HttpApi, namespace: str) -> None:
    import threading

    file = write(JOB)
    run("submit", file, "-n", namespace)

    def operator() -> None:
        for step in (10, 20):
            status(client, namespace, "teacher", state="Running", attempt=1, step=step, steps=100, observedGeneration=1)
        status(client, namespace, "teacher", state="Complete", message="all work is done")

    threading.Timer(1.0, operator).start()
    said = run("submit", file, "--wait", "-n", namespace)
    assert said.code == 0, said.err
    assert "teacher: Running" in said.err
    assert "teacher: Complete: all work is done" in said.err
    assert json.loads(run("status", "teacher", "-n", namespace, "-o", "json").out)[0]["state"] == "Complete"


def test_wishes_and_deletion(run: Run, client: HttpApi, namespace: str) -> None:
    run("submit", write(JOB), "-n", namespace)
    for word in ("suspend", "resume", "cancel"):
        assert run(word, "teacher", "-n", namespace).code == 0
    job = client.get(DINOJOBS, namespace, "teacher")
    assert job["spec"]["suspend"] is False
    assert job["metadata"]["annotations"] == {"dinoctl.io/cancel": "true"}
    assert run("delete", "teacher", "-n", namespace).lines == ["teacher: deleted"]
    assert client.list(DINOJOBS, namespace)[0] == []
