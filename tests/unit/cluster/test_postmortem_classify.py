"""The class of a failure and the line that shows it, from what ranks, pods and events really say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from dinoctl.cluster.postmortem.classify import judge
from dinoctl.cluster.postmortem.failure import ADVICE, Failure, Kind
from dinoctl.cluster.postmortem.signs import signs
from dinoctl.handover.outcome import Outcome


def classify(
    logs: Mapping[str, Iterable[str]],
    pods: Sequence[Any] = (),
    events: Sequence[Any] = (),
    outcome: Outcome | None = None,
) -> Failure:
    """``logs`` by source, whole."""
    return judge([sign for source, lines in logs.items() for sign in signs(source, lines)], pods, events, outcome)


TRACE = (
    'Traceback (most recent call last):\n  File "/app/dinoctl/training/loop.py", line 88, in run\n    loss.backward()\n'
)
CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 39.39 GiB "
    "of which 1.12 GiB is free. Including non-PyTorch memory, this process has 38.26 GiB memory in use."
)
NCCL_REMOTE = (
    "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:2251, "
    "remote process exited or there was a network error, NCCL version 2.27.5"
)
NCCL_WATCHDOG = (
    "[rank17]:[E ProcessGroupNCCL.cpp:690] [Rank 17] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=48211, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600041 milliseconds"
)
GLOO = (
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.244.3.17]:41231"
)
XID = "[81234.112] NVRM: Xid (PCI:0000:3b:00): 79, pid=31337, name=python, GPU has fallen off the bus."
RAY = "ray.exceptions.RayTaskError(DistBackendError): ray::RayTrainWorker.run() (pid=812, ip=10.244.3.17, actor_id=1)"
S3 = "dinoctl.data.errors.StorageError: cannot write s3://models/vitg/checkpoints/step-00012500: 503 SlowDown"
BOTO = (
    "botocore.exceptions.ClientError: An error occurred (SlowDown) when calling the PutObject operation "
    "(reached max retries: 4): Please reduce your request rate."
)


def pod(name: str = "w-0", node: str = "gpu-7", ip: str = "10.244.3.17", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"podIP": ip, **status}}


def ended(reason: str, code: int) -> dict[str, Any]:
    return {
        "containerStatuses": [{"name": "ray-worker", "state": {"terminated": {"reason": reason, "exitCode": code}}}]
    }


def disrupted(reason: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]}


def event(reason: str, message: str, kind: str = "Pod", name: str = "w-0") -> dict[str, Any]:
    return {
        "metadata": {"name": "e"},
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
    }


def said(cause: str, message: str, **more: Any) -> Outcome:
    return Outcome(3, "failed", cause, message, **more)


def only(text: str) -> dict[str, list[str]]:
    return {"rank-00003": text.splitlines()}


PULL = {
    "containerStatuses": [
        {
            "name": "ray-head",
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling "x@sha256:1"'}},
        }
    ]
}
LOGS = [
    (TRACE + CUDA_OOM, Kind.CUDA_OUT_OF_MEMORY, "CUDA out of memory. Tried to allocate 2.25 GiB"),
    ("RuntimeError: CUDA error: out of memory", Kind.CUDA_OUT_OF_MEMORY, "CUDA error"),
    (NCCL_WATCHDOG, Kind.NCCL, "Watchdog caught"),
    (TRACE + NCCL_REMOTE, Kind.NCCL, "remote process exited"),
    (TRACE + GLOO, Kind.NCCL, "Connection closed by peer"),
    (
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
        Kind.NCCL,
        "ncclSystemError",
    ),
    (XID, Kind.XID, "fallen off the bus"),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Kind.XID, "ECC"),
    (TRACE + S3, Kind.STORAGE, "503 SlowDown"),
    (TRACE + BOTO, Kind.STORAGE, "PutObject"),
    ("OSError: [Errno 28] No space left on device", Kind.STORAGE, "No space left"),
    ("RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed.", Kind.HOST_OUT_OF_MEMORY, "pid 4711"),
    (
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        Kind.HOST_OUT_OF_MEMORY,
        "running low",
    ),
    ("[812.1] Out of memory: Killed process 812 (python) total-vm:91234kB", Kind.HOST_OUT_OF_MEMORY, "Killed process"),
    (TRACE + "ValueError: cannot divide 3072 images among 250 workers", Kind.USER_CODE, "cannot divide"),
    (TRACE + "KeyError: 'blocks.0.attn.qkv.weight'", Kind.USER_CODE, "blocks.0"),
    (TRACE + "AssertionError", Kind.USER_CODE, "AssertionError"),
    (TRACE + "dinoctl.training.guard.DivergedError: loss is not finite for 3 steps", Kind.USER_CODE, "not finite"),
    ("step 100 loss 9.31\nstep 110 loss 9.30", Kind.UNKNOWN, ""),
    ("UserWarning: torch.meshgrid is deprecated\nWARNING: error rate 0 of 10", Kind.UNKNOWN, ""),
    ("", Kind.UNKNOWN, ""),
]


@pytest.mark.parametrize(("text", "kind", "line"), LOGS, ids=[f"{kind}-{i}" for i, (_, kind, _) in enumerate(LOGS)])
def test_a_log_alone(text: str, kind: Kind, line: str) -> None:
    failure = classify(only(text))
    assert failure.kind is kind
    assert line in failure.line
    assert failure.source == ("rank-00003" if line else "")


@pytest.mark.parametrize("echo", [NCCL_REMOTE, NCCL_WATCHDOG, GLOO, RAY])
@pytest.mark.parametrize("cause", [CUDA_OOM, XID, S3, "ValueError: bad label 12"])
def test_other_ranks_are_echoes(echo: str, cause: str) -> None:
    logs = {f"rank-{i:05d}": (TRACE + echo).splitlines() for i in range(8)}
    logs["rank-00005"] = (TRACE + cause).splitlines()
    failure = classify(logs, outcome=said("Infrastructure", "ActorDiedError: The actor died unexpectedly"))
    assert failure.source == "rank-00005"
    assert failure.line == cause


def test_an_exception_that_was_caught_is_not_the_last_one() -> None:
    text = f"{TRACE}KeyError: 'cache'\nreading again\n{TRACE}ValueError: bad label 12"
    assert classify(only(text)).line == "ValueError: bad label 12"


def test_rays_prefix_and_colours_are_not_part_of_the_line_and_name_the_node() -> None:
    lines = [f"\x1b[36m(RayTrainWorker pid=812, ip=10.244.3.17)\x1b[0m {CUDA_OOM}"]
    assert classify({"driver": lines}, [pod()]) == Failure(Kind.CUDA_OUT_OF_MEMORY, CUDA_OOM, "driver", "gpu-7")


def test_the_attempts_own_word_names_the_node() -> None:
    outcome = said("Application", "OutOfMemoryError: CUDA out of memory. (loop.py:88)", node="gpu-3")
    assert classify({}, outcome=outcome) == Failure(Kind.CUDA_OUT_OF_MEMORY, outcome.message, "outcome", "gpu-3")


PODS = [
    (pod(**ended("OOMKilled", 137)), Kind.HOST_OUT_OF_MEMORY, "ray-worker: OOMKilled (exit code 137)"),
    (pod(**PULL), Kind.IMAGE_PULL, 'ImagePullBackOff: Back-off pulling "x@sha256:1"'),
    (pod(**disrupted("PreemptionByScheduler", "preempted by another pod")), Kind.PREEMPTED, "preempted by another"),
    (pod(**disrupted("EvictionByEvictionAPI")), Kind.PREEMPTED, "EvictionByEvictionAPI"),
    (
        pod(**disrupted("DeletionByTaintManager", "taint manager: deleting due to NoExecute taint")),
        Kind.NODE_LOST,
        "taint",
    ),
    (pod(**disrupted("DeletionByPodGC", "PodGC: node no longer exists")), Kind.NODE_LOST, "no longer exists"),
    (pod(reason="Evicted", message="The node was low on resource: ephemeral-storage."), Kind.PREEMPTED, "ephemeral"),
    (
        pod(reason="NodeLost", message="Node gpu-7 which was running pod w-0 is unresponsive"),
        Kind.NODE_LOST,
        "unresponsive",
    ),
]


@pytest.mark.parametrize(("found", "kind", "line"), PODS, ids=[line for _, _, line in PODS])
def test_a_pod_says_it_and_the_ranks_only_lost_their_peers(found: dict[str, Any], kind: Kind, line: str) -> None:
    failure = classify(only(TRACE + NCCL_REMOTE), [pod("w-1", "gpu-8"), found], outcome=said("Infrastructure", GLOO))
    assert failure.kind is kind
    assert line in failure.line
    assert (failure.source, failure.node) == ("pod w-0", "gpu-7")


EVENTS = [
    (event("EvictedDueToPreempted", "Preempted to accommodate a workload", "Workload", "j"), Kind.PREEMPTED, ""),
    (event("NodeNotReady", "Node is not ready"), Kind.NODE_LOST, ""),
    (event("OOMKilling", "Memory cgroup out of memory", "Node", "gpu-7"), Kind.HOST_OUT_OF_MEMORY, "gpu-7"),
    (event("KernelOops", XID, "Node", "gpu-7"), Kind.XID, "gpu-7"),
]


@pytest.mark.parametrize(("found", "kind", "node"), EVENTS, ids=[kind for _, kind, _ in EVENTS])
def test_an_event_says_it(found: dict[str, Any], kind: Kind, node: str) -> None:
    failure = classify(only(NCCL_REMOTE), [], [event("Started", "Started container"), found])
    assert (failure.kind, failure.node) == (kind, node)


def test_what_the_operator_said_of_an_earlier_attempt_is_no_sign() -> None:
    """Seen: a killed worker was explained by the preemption of the attempt before."""
    own = event("Preempted", "attempt 1: preempted; step 115 committed", "DinoJob", "j")
    lost = said("Infrastructure", "rank 1 on node1 was killed, or its machine is gone", node="node1")
    assert classify({}, [], [own], outcome=lost) == Failure(Kind.KILLED, lost.message, "outcome", "node1")


def test_a_preemption_that_the_attempt_reports_is_one_whatever_the_logs_say() -> None:
    stopped = Outcome(3, "stopped", "Preempted", "stopped by the scheduler at step 120", node="gpu-1")
    failure = classify(only(TRACE + "ValueError: interrupted"), [pod(**ended("OOMKilled", 137))], outcome=stopped)
    assert (failure.kind, failure.node) == (Kind.PREEMPTED, "gpu-1")


def test_a_mistake_in_the_document_is_one_although_its_pods_were_deleted_afterwards() -> None:
    spec = said("Spec", "s3://data/x: no dataset.json here; pack it first")
    failure = classify({}, [pod(**disrupted("EvictionByEvictionAPI"))], outcome=spec)
    assert (failure.kind, failure.line) == (Kind.USER_CODE, spec.message)


def test_a_storage_that_is_down_is_told_by_the_attempt() -> None:
    down = said("Infrastructure", "cannot reach s3://models: connection refused; check the endpoint", environment=True)
    assert classify({}, outcome=down).kind is Kind.STORAGE


def test_what_nobody_explains_is_unknown_with_what_there_is() -> None:
    outcome = said("Infrastructure", "the driver vanished")
    assert classify({}, [pod(phase="Running")], outcome=outcome) == Failure(Kind.UNKNOWN, outcome.message, "outcome")


def test_every_class_has_advice() -> None:
    assert set(ADVICE) == set(Kind)
