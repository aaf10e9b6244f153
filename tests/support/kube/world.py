"""A cluster around the API server in memory: Kueue, KubeRay, kubelets and workers, as far as the operator sees them.

Workers do what real ones do to a job's storage, by the same code: claim, fence, checkpoint, output, outcome. Time is a
number. Every change of a RayJob is checked: a job never has two of them at work.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, LOCAL_QUEUES, PODS, RAYJOBS, WORKLOADS, Resource
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.judgement import judge
from dinoctl.handover.ledger import CHECKPOINTS, Commit, FencedError, Ledger
from dinoctl.handover.outcome import Outcome
from dinoctl.handover.output import Output, read_evidence, read_output, write_output
from dinoctl.handover.promotion import compares
from dinoctl.handover.runs import RunKey
from dinoctl.spec import names
from dinoctl.spec.profile import OperatorConfig
from dinoctl.spec.resolve import ResolvedJob
from dinoctl.tracking.gate import Champion, Evidence
from support.kube.memory import MemoryApi, MemoryServer

SPACE = "team"
KEY = "attempt.json"


class Killed(BaseException):
    """The operator's process is gone."""


class Live:
    """A view without any lag."""

    def __init__(self, server: MemoryServer) -> None:
        self.jobs, self.rayjobs, self.pods = (_Kind(server, one) for one in (DINOJOBS, RAYJOBS, PODS))
        self.progress, self.workloads = _Kind(server, CONFIGMAPS), _Workloads(server, WORKLOADS)


class _Kind:
    missing = False

    def __init__(self, server: MemoryServer, resource: Resource) -> None:
        self._server, self._resource = server, resource
        self.held: dict[tuple[str, str], Object] | None = None
        """Set: what a lagging view shows."""

    def _all(self) -> dict[tuple[str, str], Object]:
        if self.held is not None:
            return self.held
        return {key[1:]: body for key, body in self._server.objects.items() if key[0] == self._resource}

    def freeze(self) -> None:
        self.held = {k[1:]: _clone(b) for k, b in self._server.objects.items() if k[0] == self._resource}

    def get(self, namespace: str, name: str) -> Object | None:
        return _clone(self._all().get((namespace, name)))

    def of(self, namespace: str, name: str) -> list[Object]:
        found = sorted(self._all().items())
        return [_clone(b) for k, b in found if k[0] == namespace and self._index(b) == name]

    def _index(self, body: Object) -> str | None:
        return (body["metadata"].get("labels") or {}).get(names.JOB)

    def observe(self, body: Object) -> None:
        if self.held is not None:
            key = (body["metadata"]["namespace"], body["metadata"]["name"])
            old = self.held.get(key)
            if old is None or int(old["metadata"]["resourceVersion"]) < int(body["metadata"]["resourceVersion"]):
                self.held[key] = _clone(body)


class _Workloads(_Kind):
    def _index(self, body: Object) -> str | None:
        return next((o["name"] for o in body["metadata"].get("ownerReferences", ()) if o["kind"] == "RayJob"), None)


class Lagging(Live):
    """A view that shows what was there at the last ``catch_up``, and one's own writes."""

    def catch_up(self) -> None:
        for kind in (self.jobs, self.rayjobs, self.pods, self.progress, self.workloads):
            kind.freeze()


@dataclass
class Registry:
    """The tracking server: what was registered, and which runs are open or closed. Doing anything twice is harmless."""

    runs: dict[RunKey, str] = field(default_factory=dict)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    alias_moves: int = 0
    down: bool = False

    def at(self, uri: str) -> "Registry":
        return self

    def champions(self, job: ResolvedJob) -> dict[str, Champion | None]:
        return {"": None} if compares(job) else {}

    def promote(self, job: ResolvedJob, storage: str, key: RunKey) -> dict[str, Any]:
        self._check()
        self.runs.setdefault(key, "RUNNING")
        where = open_storage(storage)
        proof, output = read_evidence(where), read_output(where)
        assert proof is not None
        assert output is not None
        decision = judge(job, proof, {})
        assert decision is not None, "promoted without a gate"
        assert decision.passed, "promoted without having passed"
        gate = job.spec.gate
        assert gate is not None
        assert gate.promote is not None
        version = (gate.promote.model, proof.checkpoint_hash)
        if version not in self.versions:
            self.versions[version] = str(len(self.versions) + 1)
            self.alias_moves += 1
        made = {
            "model": gate.promote.model,
            "version": self.versions[version],
            "alias": gate.promote.alias,
            "spec_hash": job.spec_hash,
            "attempt": output.attempt,
        }
        return {"promotion": made, "runId": f"run-{len(self.runs)}"}

    def close(
        self, job: ResolvedJob, storage: str, key: RunKey, *, complete: bool, attempts: tuple[int, int]
    ) -> dict[str, Any]:
        self._check()
        self.runs[key] = "FINISHED" if complete else "FAILED"
        return {"runId": f"run-{len(self.runs)}"}

    def _check(self) -> None:
        from dinoctl.cluster.tracking_child import TrackingProblem

        if self.down:
            raise TrackingProblem("MLflow at http://mlflow failed: connection refused")


@dataclass
class World:
    """``steps``: ticks that training takes; ``saves``: ticks that pods need to end."""

    root: Path
    queue: str | None = None
    steps: int = 3
    saves: int = 1
    accuracy: float = 0.9
    now: float = 1_800_000_000.0
    fail: dict[int, Outcome | None] = field(default_factory=dict)
    """Attempts that end badly after their first step, and what they leave."""
    admit: bool = True
    kueue: bool = True
    """Its controller runs; its webhook is never needed."""
    queued: set[str] = field(default_factory=set)
    registry: Registry = field(default_factory=Registry)
    trained: dict[str, int] = field(default_factory=dict)
    ending: dict[str, int] = field(default_factory=dict)
    mounted: dict[str, Attempt] = field(default_factory=dict)
    """By RayJob; a pod keeps what it has mounted."""
    space: str = SPACE
    on_node: Callable[[str, int], str] = lambda role, attempt: "node-1" if role == "head" else "node-2"

    def __post_init__(self) -> None:
        self.server = MemoryServer(clock=lambda: self.now)
        self.api: Api = MemoryApi(self.server, manager="world")
        if self.queue:
            self.create(LOCAL_QUEUES, {"metadata": {"name": self.queue}, "spec": {}})

    def config(self, **more: Any) -> OperatorConfig:
        profile = {
            "image": "registry.local/dinoctl@sha256:" + "0" * 64,
            "storage": f"file://{self.root}",
            "trackingUri": "http://mlflow",
            "queue": self.queue,
        }
        return OperatorConfig.model_validate({"profiles": {"test": profile}, "defaultProfile": "test", **more})

    def submit(self, name: str, spec: dict[str, Any], **metadata: Any) -> Object:
        body = {"apiVersion": "dinoctl.io/v1alpha1", "kind": "DinoJob", "metadata": {"name": name, **metadata}}
        return self.create(DINOJOBS, {**body, "spec": spec})

    def create(self, resource: Resource, body: Object) -> Object:
        return self.api.create(
            resource, self.space, {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        )

    def job(self, name: str) -> Object:
        return self.api.get(DINOJOBS, self.space, name)

    def edit(self, name: str, spec: dict[str, Any] | None = None, **annotations: str | None) -> None:
        notes = {f"{names.GROUP}/{key}": value for key, value in annotations.items()}
        self.api.patch(DINOJOBS, self.space, name, {"metadata": {"annotations": notes}, "spec": spec or {}})

    def state(self, name: str) -> str:
        return str((self.job(name).get("status") or {}).get("state", ""))

    def rayjobs(self) -> list[Object]:
        return sorted(self.objects(RAYJOBS), key=lambda body: str(body["metadata"]["name"]))

    def objects(self, resource: Resource) -> list[Object]:
        """All of a kind; of the server's own, so not to be changed."""
        return [body for key, body in self.server.objects.items() if key[0] == resource]

    def end_pod(self, name: str) -> None:
        """Its processes have ended, and its kubelet says so."""
        self.server.end_pod(self.space, name)

    def stamp(self) -> str:
        return self.server.stamp()

    def tick(self, seconds: float = 5.0) -> None:
        """A little time passes."""
        self.now += seconds
        for rayjob in self.rayjobs():
            try:
                self._rayjob(rayjob)
            except ApiError:
                continue  # it was deleted under our hands
        self._kubelets()
        self.check()

    def check(self) -> None:
        """At most one RayJob of a job that is at work, or may come to be."""
        alive: dict[str, list[str]] = {}
        for body in self.rayjobs():
            status = body.get("status") or {}
            over = status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")
            if not over and "deletionTimestamp" not in body["metadata"]:
                alive.setdefault(body["metadata"]["labels"][names.JOB], []).append(body["metadata"]["name"])
        twins = [found for found in alive.values() if len(found) > 1]
        assert not twins, f"twins: {twins}"

    def preempt(self, name: str) -> None:
        """Kueue takes the machines of a RayJob."""
        rayjob = self.api.get(RAYJOBS, self.space, name)
        self.api.patch(RAYJOBS, self.space, name, {"spec": {"suspend": True}})
        self._status(rayjob, jobDeploymentStatus="Suspending", jobStatus="")
        for pod in self._pods(rayjob):
            self.api.delete(PODS, self.space, pod["metadata"]["name"])

    # -- KubeRay and Kueue --------------------------------------------------------------------------------------

    def _rayjob(self, rayjob: Object) -> None:
        status = rayjob.get("status") or {}
        state = status.get("jobDeploymentStatus", "")
        if state in ("Complete", "Failed", "ValidationFailed"):
            return
        if "deletionTimestamp" in rayjob["metadata"]:
            return
        if state == "Suspending":
            self._status(rayjob, jobDeploymentStatus="Suspended")
        elif state == "Suspended":
            if self.admit and self.kueue:
                self.api.patch(RAYJOBS, self.space, rayjob["metadata"]["name"], {"spec": {"suspend": False}})
                self._status(rayjob, jobDeploymentStatus="")
        elif state == "":
            self._new(rayjob)
        elif state == "Initializing" and rayjob["spec"].get("suspend"):
            self._status(rayjob, jobDeploymentStatus="Suspending")
        elif state == "Initializing":
            self._status(rayjob, jobDeploymentStatus="Running", jobStatus="RUNNING")
        else:
            self._train(rayjob)

    def _new(self, rayjob: Object) -> None:
        """In a queue it is suspended, and Kueue makes a Workload; KubeRay takes it for initializing all the same, at
        first, and notes a start.
        """
        queued, name = names.QUEUE in rayjob["metadata"].get("labels", {}), rayjob["metadata"]["name"]
        if queued and self.kueue and name not in self.queued:
            self.queued.add(name)
            self._workload(rayjob)
            return
        self._status(rayjob, jobDeploymentStatus="Initializing", startTime=self.stamp())
        if not rayjob["spec"].get("suspend"):
            for role in ("head", "worker"):
                self._pod(rayjob, role)

    def _workload(self, rayjob: Object) -> None:
        name = rayjob["metadata"]["name"]
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": rayjob["metadata"]["uid"]}
        text = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu"
        waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": text}
        body = {"metadata": {"name": f"rayjob-{name}", "ownerReferences": [owner]}, "status": {"conditions": [waits]}}
        self.create(WORKLOADS, body)

    def _status(self, rayjob: Object, **status: str) -> None:
        self.api.patch(RAYJOBS, self.space, rayjob["metadata"]["name"], {"status": status}, subresource="status")

    def _pod(self, rayjob: Object, role: str) -> None:
        meta, labels = rayjob["metadata"], rayjob["metadata"]["labels"]
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": meta["name"], "uid": meta["uid"]}
        body = {
            "metadata": {
                "name": f"{meta['name']}-{role}",
                "labels": {**labels, names.ROLE: role},
                "ownerReferences": [owner],
            },
            "spec": self.pod_spec(role, int(labels[names.ATTEMPT])),
            "status": {"phase": "Running"},
        }
        self.create(PODS, body)

    def pod_spec(self, role: str, attempt: int) -> dict[str, Any]:
        return {"nodeName": self.on_node(role, attempt)}

    def _pods(self, rayjob: Object) -> list[Object]:
        uid = rayjob["metadata"]["uid"]
        return [body for body in self.objects(PODS) if _owned(body, uid)]

    # -- workers ------------------------------------------------------------------------------------------------

    def attempt(self, name: str) -> Attempt:
        """As a pod reads it from its volume."""
        return Attempt._parsed(json.loads(self.api.get(CONFIGMAPS, self.space, name)["data"][KEY]))

    def _train(self, rayjob: Object) -> None:
        name = rayjob["metadata"]["name"]
        if name not in self.mounted:
            self.mounted[name] = self.attempt(name)
        attempt, done = self.mounted[name], self.trained.get(name)
        store = AttemptStore(attempt.storage, attempt.number)
        if done is None:
            if not store.claim({"pod": name}):
                store.refuse(Outcome(attempt.number, "failed", "Preempted", "started twice"))
                self._end(rayjob, "Failed", "FAILED")
                return
            Ledger(attempt.storage.child(CHECKPOINTS)).begin(attempt.number)
            done = 0
        self.trained[name] = done + 1
        if attempt.number in self.fail:
            outcome = self.fail[attempt.number]
            if outcome is not None:
                store.write_outcome(outcome)
            self._end(rayjob, "Failed", "FAILED")
            return
        if done + 1 < self.steps:
            self._commit(attempt)
            self._report(attempt, self._step(attempt))
            return
        self._finish(attempt)
        store.write_outcome(Outcome(attempt.number, "succeeded"))
        self._end(rayjob, "Complete", "SUCCEEDED")

    def _end(self, rayjob: Object, deployment: str, job: str) -> None:
        self._status(rayjob, jobDeploymentStatus=deployment, jobStatus=job)
        for pod in self._pods(rayjob):
            self.api.delete(PODS, self.space, pod["metadata"]["name"], grace=0)

    def _step(self, attempt: Attempt) -> int:
        head = Ledger(attempt.storage.child(CHECKPOINTS)).head(attempt.spec_hash)
        return head.step if head else 0

    def _commit(self, attempt: Attempt) -> None:
        ledger = Ledger(attempt.storage.child(CHECKPOINTS))
        try:
            ledger.check_fence(attempt.number)
        except FencedError:
            return
        step = self._step(attempt) + 10
        ledger.create(Commit(step, attempt.number, 1, attempt.spec_hash, "", 0, self.now, {}, {}))

    def _report(self, attempt: Attempt, step: int) -> None:
        assert attempt.cluster is not None
        head = {"step": step, "at": self.now, "attempt": attempt.number}
        report = {"attempt": attempt.number, "step": step, "steps": 100, "at": self.now, "images_per_s": 10.0}
        report |= {"eta_s": 60.0, "checkpoint_step": step, "runId": "run-1", "head": head}
        self.api.patch(
            CONFIGMAPS, self.space, attempt.cluster.progress, {"data": {"progress.json": json.dumps(report)}}
        )

    def _finish(self, attempt: Attempt) -> None:
        proof = None
        if attempt.spec.gate is not None:
            metrics = {"knn_top1": self.accuracy, "random_knn_top1": 0.1}
            proof = Evidence(metrics, "data", f"export-{attempt.name}", attempt.spec_hash)
        output = Output(attempt.spec.kind, attempt.spec_hash, attempt.number, 100, "hash", {"images_per_s": 10.0})
        write_output(attempt.storage, output, proof)

    # -- kubelets -----------------------------------------------------------------------------------------------

    def _kubelets(self) -> None:
        """Pods that are to go save, leave their outcome, and end."""
        for pod in self.objects(PODS):
            name = pod["metadata"]["name"]
            if "deletionTimestamp" not in pod["metadata"]:
                continue
            waited = self.ending[name] = self.ending.get(name, 0) + 1
            if waited <= self.saves:
                continue
            if pod["metadata"]["labels"][names.ROLE] == "head":
                self._save_on_stop(pod)
            self.end_pod(name)

    def _save_on_stop(self, pod: Object) -> None:
        name = pod["metadata"]["ownerReferences"][0]["name"]
        if self.trained.get(name) is None:
            return
        attempt = self.mounted[name]
        self._commit(attempt)
        outcome = Outcome(attempt.number, "stopped", "Preempted", "preempted; saved")
        AttemptStore(attempt.storage, attempt.number).write_outcome(outcome)


def _clone(body: Any) -> Any:
    return json.loads(json.dumps(body))


def _owned(body: Object, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in body["metadata"].get("ownerReferences", ()))
