"""``status``, ``events``, wishes, ``delete``, ``explain`` on a cluster in memory, read as a person would."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cluster_desk import DINOJOB, NS, PRETRAIN, RUNNING, Desk, submitted, with_logs

from dinoctl.cluster.postmortem.bundle import Case, write_bundle
from dinoctl.cluster.resources import DINOJOBS, EVENTS, PODS, RAYCLUSTERS, RAYJOBS, WORKLOADS
from dinoctl.data.storage import open_storage
from dinoctl.spec import names


def test_status_is_a_table_with_reasons_below(desk: Desk) -> None:
    submitted(desk, **RUNNING)
    submitted(desk, "vitl", state="Waiting", message="waits for vitg, which is running", stage="distill")
    said = desk.run("status", *NS)
    assert said.code == 0, said.err
    assert said.lines[0].split() == [
        *("job", "stage", "state", "steps", "images/s", "ETA", "queue", "workers", "attempt")
    ], "columns that nobody has a value for are left out"
    assert said.lines[1].split() == ["vitg", "pretrain", "Running", "120/1000", "4711", "3h12m", "vision", "256", "3"]
    assert said.lines[2].split() == ["vitl", "distill", "Waiting", "8"]
    assert said.lines[3:] == [
        "vitg: attempt 3 is running, step 120 of 1000",
        "vitl: waits for vitg, which is running",
    ]


def test_status_for_scripts(desk: Desk) -> None:
    submitted(desk, **RUNNING, model={"name": "dinov2-vitg", "version": "7", "alias": "champion"})
    (found,) = json.loads(desk.run("status", "vitg", *NS, "-o", "json").out)
    assert (found["state"], found["step"], found["eta_s"], found["model"]) == ("Running", 120, 11520, "dinov2-vitg/7")
    said = desk.run("status", "vitg", *NS, "-o", "yaml")
    assert "- name: vitg\n  namespace: team\n" in said.out


def test_a_watched_status_shows_what_changes_and_what_comes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(desk, **RUNNING)
    looks: list[str] = []

    def look(seconds: float) -> None:
        """Between two looks something happens; after the last one, Ctrl-C."""
        looks.append("look")
        if len(looks) == 3:
            raise KeyboardInterrupt
        if len(looks) == 1:
            desk.status("vitg", **{**RUNNING, "step": 121})
        else:
            submitted(desk, "new")

    monkeypatch.setattr("dinoctl.cli.remote.commands.time.sleep", look)
    said = desk.run("status", "-w", *NS)
    assert said.code == 130
    assert ("120/1000" in said.out, "121/1000" in said.out, "new" in said.out) == (True, True, True)


def test_status_of_a_namespace_without_jobs_says_so(desk: Desk) -> None:
    said = desk.run("status", *NS)
    assert (said.code, said.err) == (2, "error: no jobs in namespace team; dinoctl submit FILE starts some\n")
    assert json.loads(desk.run("status", *NS, "-o", "json").out) == []


@pytest.mark.parametrize("command", ["status", "logs", "suspend", "resume", "cancel", "events", "explain", "delete"])
def test_an_unknown_job_is_told_with_the_known_ones(desk: Desk, command: str) -> None:
    submitted(desk)
    said = desk.run(command, "vitgg", *NS)
    assert (said.code, said.err) == (2, "error: no job 'vitgg' in namespace team; did you mean 'vitg'?\n")


QUOTA = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu, 64 more needed"
PULL = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x@sha256:1"'}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/4 nodes are available",
}


def test_a_queued_job_says_what_kueue_says(desk: Desk) -> None:
    submitted(desk, state="Queued", message="attempt 1 is queued: not admitted yet", rayJob="vitg-1")
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "vitg-1", "uid": "u"}
    desk.put(RAYJOBS, "vitg-1", metadata={"uid": "u"})
    owner["uid"] = desk.api.get(RAYJOBS, "team", "vitg-1")["metadata"]["uid"]
    conditions = [{"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": QUOTA}]
    desk.put(WORKLOADS, "w", metadata={"ownerReferences": [owner]}, status={"conditions": conditions})
    said = desk.run("status", *NS)
    assert f"vitg: attempt 1 is queued: not admitted yet; Kueue: {QUOTA}" in said.lines


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"containerStatuses": [{"name": "head", "state": PULL}]},
            'ImagePullBackOff: Back-off pulling image "x@sha256:1"',
        ),
        ({"conditions": [UNSCHEDULABLE]}, "Unschedulable: 0/4 nodes are available"),
    ],
)
def test_a_starting_job_says_what_holds_its_pods_up(desk: Desk, status: dict[str, Any], words: str) -> None:
    submitted(desk, state="Starting", message="attempt 1 is starting", rayJob="vitg-1")
    desk.put(PODS, "vitg-1-head", labels={names.JOB: "vitg"}, status=status)
    assert f"vitg: attempt 1 is starting; {words}" in desk.run("status", *NS).lines


FORBIDDEN = 'pods "vitg-1-head" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=8, limited: 4'


def test_a_job_whose_pods_can_not_be_made_says_what_kuberay_says(desk: Desk) -> None:
    submitted(desk, state="Starting", message="attempt 1 is starting", rayJob="vitg-1", attempt=1)
    labels = {names.JOB: "vitg", names.ATTEMPT: "1"}
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod"}
    failure["message"] = f"FailedCreateHeadPod\n{FORBIDDEN}"
    desk.put(RAYCLUSTERS, "vitg-1-abcde", labels=labels, status={"conditions": [failure]})
    assert f"vitg: attempt 1 is starting; KubeRay: FailedCreateHeadPod: {FORBIDDEN}" in desk.run("status", *NS).lines


def test_what_kuberay_says_in_events_alone_counts_until_it_succeeds(desk: Desk) -> None:
    submitted(desk, state="Starting", message="attempt 1 is starting", rayJob="vitg-1", attempt=1)
    desk.put(RAYJOBS, "vitg-1", labels={names.JOB: "vitg"})

    def happened(name: str, kind: str, at: str, **event: Any) -> None:
        desk.put(EVENTS, name, involvedObject={"kind": kind, "name": "vitg-1"}, lastTimestamp=at, **event)

    refused = {"type": "Warning", "reason": "FailedCreate", "message": FORBIDDEN}
    happened("a", "Job", "2026-01-01T00:01:00Z", **refused)
    assert f"vitg: attempt 1 is starting; FailedCreate: {FORBIDDEN}" in desk.run("status", *NS).lines
    assert f"Job/vitg-1: {FORBIDDEN}" in desk.run("events", "vitg", *NS).out
    happened("b", "Job", "2026-01-01T00:02:00Z", type="Normal", reason="SuccessfulCreate", message="Created pod")
    assert "vitg: attempt 1 is starting" in desk.run("status", *NS).lines


def test_a_job_that_no_operator_looks_at_says_so(desk: Desk) -> None:
    submitted(desk)
    assert "vitg: submitted; the operator has not looked at it yet" in desk.run("status", *NS).lines
    desk.server.clock = lambda: 1_700_000_000.0
    submitted(desk, "old")
    assert "old: no operator has looked at it for" in desk.run("status", *NS).out


def test_a_job_that_is_being_deleted_says_what_it_waits_for(desk: Desk) -> None:
    desk.put(DINOJOBS, "vitg", spec=PRETRAIN, metadata={"finalizers": [names.FINALIZER]})
    desk.status("vitg", **RUNNING, storage="s3://models/team/vitg/run-0001")
    said = desk.run("delete", "vitg", *NS)
    assert said.lines == ["vitg: deleted; its outputs stay at s3://models/team/vitg/run-0001"]
    said = desk.run("status", *NS)
    assert "Deleting" in said.out
    assert "kubectl annotate -n team dinojob vitg dinoctl.io/abandon=true" in said.out


def test_wishes_reach_the_object(desk: Desk) -> None:
    submitted(desk, **RUNNING)
    assert desk.run("suspend", "vitg", *NS).lines == ["vitg: suspend noted; what trains commits a checkpoint and stops"]
    assert desk.job("vitg")["spec"]["suspend"] is True
    assert desk.run("suspend", "vitg", *NS).lines == ["vitg: is suspended already"]
    assert desk.run("resume", "vitg", *NS).code == 0
    assert desk.job("vitg")["spec"]["suspend"] is False
    assert desk.run("cancel", "vitg", *NS).lines == ["vitg: cancel noted; outputs and checkpoints stay"]
    assert desk.job("vitg")["metadata"]["annotations"] == {names.CANCEL: "true"}
    desk.status("vitg", state="Blocked", message="deactivated in Kueue")
    assert desk.run("resume", "vitg", *NS).lines == ["vitg: is not suspended; it is blocked: deactivated in Kueue"]
    desk.status("vitg", state="Cancelled")
    assert desk.run("resume", "vitg", *NS).err == "error: vitg is Cancelled already\n"


def test_a_restart_whose_document_is_refused_is_not_waited_for(desk: Desk) -> None:
    submitted(desk, state="Failed", message="the old end", attempt=1, observedGeneration=1)
    refused = {"type": "Validated", "status": "False", "reason": "SpecError", "message": "no profile named 'x'"}
    desk.status("vitg", state="Failed", attempt=1, observedGeneration=1, conditions=[refused])
    said = desk.run("submit", desk.write(json.dumps({**DINOJOB, "spec": PRETRAIN})), "--restart", "vitg", "--wait", *NS)
    assert said.code == 2
    assert "vitg: is to be done again, but can't be: no profile named 'x'" in said.out


def test_waiting_for_a_job_that_nobody_looks_at_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a bookmark comes, since nothing else does."""

    def bookmark() -> None:
        monkeypatch.setattr("dinoctl.cli.remote.why._ATTENTION_S", 0.0)
        desk.server.bookmark()

    threading.Timer(0.5, bookmark).start()
    threading.Timer(1.5, lambda: desk.status("vitg", state="Complete", message="done")).start()
    said = desk.run("submit", desk.write(json.dumps({**DINOJOB, "spec": PRETRAIN})), "--wait", *NS)
    assert said.code == 0, said.err
    told = [line.partition("vitg: ")[2] for line in said.err.splitlines() if "vitg: " in line]
    assert told[0] == "Pending: submitted; the operator has not looked at it yet"
    assert told[1].startswith("Pending: no operator has looked at it for ")


def test_families_stay_together_parents_first(desk: Desk) -> None:
    """Also where old clients have made a ring."""
    for name, parent in (("b2", "b1"), ("b1", ""), ("a1", ""), ("ring", "gnir"), ("gnir", "ring"), ("a2", "a1")):
        data = {"source": {"job": parent} if parent else "s3://b/d"}
        desk.put(DINOJOBS, name, spec={"pretrain": {"data": data}})
    shown = [line.split()[0] for line in desk.run("status", *NS).lines[1:7]]
    places = {name: place for place, name in enumerate(shown)}
    assert len(places) == 6
    assert places["a2"] == places["a1"] + 1
    assert places["b2"] == places["b1"] + 1
    assert abs(places["ring"] - places["gnir"]) == 1


def test_a_client_without_the_packages_for_buckets_says_which(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dinoctl.data.s3", "dinoctl.data.s3_client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tenacity", None)
    words = "error: tenacity is not installed, and this needs it: pip install 'dinoctl[s3]'\n"
    for command in ("logs", "explain"):
        said = desk.run(command, "s3://bucket/vitg/run-0001")
        assert (said.code, said.err) == (3, words)


def test_events_are_those_of_the_job_and_its_objects_oldest_first(desk: Desk) -> None:
    submitted(desk)
    desk.put(PODS, "vitg-1-head", labels={names.JOB: "vitg"})
    desk.put(PODS, "other")

    def happened(name: str, kind: str, about: str, at: str, **more: Any) -> None:
        event = {"reason": "Seen", "type": "Normal", "message": "two\nlines", "lastTimestamp": at, **more}
        desk.put(EVENTS, name, involvedObject={"kind": kind, "name": about}, **event)

    happened("b", "Pod", "vitg-1-head", "2026-01-01T00:02:00Z", type="Warning", reason="BackOff", count=4)
    happened("z", "DinoJob", "vitg", "2026-01-01T00:01:00Z", reason="First")
    happened("a", "DinoJob", "vitg", "2026-01-01T00:01:00Z")
    happened("c", "Pod", "other", "2026-01-01T00:03:00Z")
    assert desk.run("events", "vitg", *NS).lines == [
        "2026-01-01T00:01:00Z   First   DinoJob/vitg: two lines",
        "2026-01-01T00:01:00Z   Seen    DinoJob/vitg: two lines",
        "2026-01-01T00:02:00Z ! BackOff Pod/vitg-1-head: two lines (x4)",
    ]
    found = json.loads(desk.run("events", "vitg", *NS, "-o", "json").out)
    assert [one["reason"] for one in found] == ["First", "Seen", "BackOff"]


def test_what_is_tried_again_and_again_is_one_event(desk: Desk) -> None:
    submitted(desk)
    desk.put(RAYCLUSTERS, "vitg-1-abcde", labels={names.JOB: "vitg"})
    for second, (pod, prefix, count) in enumerate(
        [("xx6l7", "", 1), ("g56bd", "", 1), ("7kfpv", "(combined from similar events): ", 3)]
    ):
        desk.put(
            EVENTS,
            f"e{second}",
            involvedObject={"kind": "RayCluster", "name": "vitg-1-abcde"},
            lastTimestamp=f"2026-01-01T00:00:0{second}Z",
            type="Warning",
            reason="FailedToCreateHeadPod",
            message=f'{prefix}pods "vitg-1-abcde-head-{pod}" is forbidden',
            count=count,
        )
    words = 'FailedToCreateHeadPod RayCluster/vitg-1-abcde: pods "vitg-1-abcde-head-7kfpv" is forbidden (x5)'
    assert desk.run("events", "vitg", *NS).lines == [f"2026-01-01T00:00:02Z ! {words}"]


OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def failed(desk: Desk) -> str:
    store = with_logs(desk)
    store.write_log("rank-00001", 1, f"{OOM}\n".encode())
    store.write_metrics([{"step": 41, "time": 1.0, "metrics": {"loss": 9.1234, "lr": 1e-4}}])
    for number, workers in ((1, 4), (3, 8)):
        document = json.dumps({"spec": {"compute": {"workers": workers}}}).encode()
        open_storage(f"{desk.root}/models/vitg/run-0001/attempts/{number:04d}").write("attempt.json", document)
    uri = f"{desk.root}/models/vitg/run-0001"
    return write_bundle(Case("team", "vitg", 3, uri, "Application", "the driver ended with 1", good_attempt=1))[0]


def test_explain_tells_what_why_and_what_to_do(desk: Desk) -> None:
    uri = failed(desk)
    desk.status("vitg", **RUNNING, storage=f"{desk.root}/models/vitg/run-0001", lastFailure={"attempt": 3})
    said = desk.run("explain", "vitg", *NS)
    assert said.lines[:3] == ["vitg, attempt 3: CudaOutOfMemory", f"  {OOM}", "  (rank-00001)"]
    assert "what to do: a GPU ran out of memory" in said.lines[3]
    assert "other than attempt 1, which got somewhere:\n  spec.compute.workers was 4, is 8" in said.out
    assert "last metrics, step 41: loss 9.123, lr 0.0001" in said.out
    assert "end of the log of rank-00001:" in said.out
    assert said.lines[-1] == f"all of it: {uri}"


def test_explain_needs_no_cluster(desk: Desk) -> None:
    failed(desk)
    desk.connected.clear()
    said = desk.run("explain", f"{desk.root}/models/vitg/run-0001/")
    assert said.lines[0] == "vitg, attempt 3: CudaOutOfMemory"
    assert desk.connected == []
    found = json.loads(desk.run("explain", f"{desk.root}/models/vitg/run-0001", "-o", "json").out)
    assert found["format"] == "dinoctl.postmortem/v1"


def test_explain_of_a_job_that_never_failed_says_how_it_is(desk: Desk) -> None:
    with_logs(desk)
    said = desk.run("explain", "vitg", *NS)
    assert said.code == 2
    assert said.err == (
        "error: vitg has no post-mortem: no attempt ended badly, or its storage was down; "
        "now: attempt 3 is running, step 120 of 1000\n"
    )


TARGETS = [
    ([], {}, False, "local"),  # nothing known of a cluster
    (["-n", "team"], {}, True, "cluster"),
    (["--context", "x"], {}, True, "cluster"),
    (["-c"], {}, True, "cluster"),
    (["-l"], {"DINOCTL_TARGET": "cluster"}, False, "local"),
    ([], {"DINOCTL_TARGET": "cluster"}, True, "cluster"),
    (["--state-dir", ".dinoctl"], {"DINOCTL_TARGET": "cluster"}, False, "local"),
    ([], {"KUBECONFIG": "kubeconfig"}, False, "cluster"),
    ([], {"KUBECONFIG": "kubeconfig"}, True, "local"),
    ([], {"KUBECONFIG": "kubeconfig", "DINOCTL_TARGET": "local"}, False, "local"),
]


@pytest.mark.parametrize(("arguments", "environment", "state_here", "meant"), TARGETS)
def test_which_jobs_are_meant(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    state_here: bool,
    meant: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path("kubeconfig").touch()
    if state_here:
        Path(".dinoctl").mkdir()
    desk.run("status", *arguments)
    assert bool(desk.connected) == (meant == "cluster")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["-l", "-n", "team"], {}, "--local goes without --namespace"),
        ([], {"DINOCTL_TARGET": "moon"}, "DINOCTL_TARGET is 'moon'; set it to cluster or local"),
    ],
)
def test_a_contradiction_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = desk.run("status", *arguments)
    assert said.code == 2
    assert words in said.err
