"""The whole way on a real cluster: ``helm install``, ``dinoctl submit``, and walk away.

The digits family runs under KubeRay and Kueue with its storage on S3 and MLflow as a server, while an urgent workload
takes its machines once, one of its workers is killed, the release is upgraded, and a job is suspended and goes on with
another number of workers. It ends with promoted models.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.kube.cluster import Cluster
from support.kube.manifests import pod_spec, queues
from support.kube.release import ROOT, Release

_JOBS = ("digits-pack", "digits-pretrain", "digits-highres", "digits-distill", "digits-evaluate")
_COMPUTE = {
    "workers": 2,
    "gpusPerWorker": 0,
    "cpusPerWorker": 0.2,
    "loaderWorkers": 0,
    "precision": "fp32",
    "engine": {"name": "deepspeed", "zeroStage": 3},
}
_STEPS = {"digits-pretrain": 400, "digits-highres": 20, "digits-distill": 100}
_EVERY_STEPS = 20
_KUEUE = "kueue.x-k8s.io"


def _documents(path: Path, workers: dict[str, int] | None = None) -> Path:
    """jobs/digits.yaml, shortened: it is the platform that is shown here, not the models. ``workers``: other than 2."""
    yaml = YAML(typ="safe")
    documents = list(yaml.load_all((ROOT / "jobs/digits.yaml").read_text()))
    for document in documents:
        spec, steps = document["spec"], _STEPS.get(document["metadata"]["name"])
        number = 1 if steps is None else (workers or {}).get(document["metadata"]["name"], 2)
        spec["compute"] = {**_COMPUTE, "workers": number}
        if steps is None:
            spec["compute"].pop("engine")
            continue
        stage = spec[next(kind for kind in ("pretrain", "highres", "distill") if kind in spec)]
        stage.update(steps=steps, logEvery=5)
        schedules = stage.get("schedules", {})
        if "freezeLastLayerSteps" in schedules:
            schedules["freezeLastLayerSteps"] = steps
            schedules["learningRate"]["warmupSteps"] = 30
        spec["gate"].update(min=0.2)
        del spec["gate"]["aboveRandom"]
        spec["policy"]["checkpoint"].update(everySteps=_EVERY_STEPS)
    with path.open("w") as file:
        yaml.dump_all(documents, file)
    return path


class Watched(Release):
    """Everything that its jobs went through is noted."""

    def __init__(self, kube: Cluster, namespace: str, directory: Path) -> None:
        super().__init__(kube, namespace, directory)
        self.seen: list[str] = []
        self.last: dict[str, str] = {}

    def until(self, what: Callable[[], Any], why: str, limit_s: float = 600) -> Any:
        """The first true answer; every change of a job's state is noted on the way."""
        deadline = time.monotonic() + limit_s
        while not (found := what()):
            self.note()
            failed = [name for name in _JOBS if self.last.get(name, "").startswith("Failed")]
            if failed or time.monotonic() > deadline:
                pytest.fail(f"{why}\n" + "\n".join(self.seen) + self.details(), pytrace=False)
            time.sleep(1)
        return found

    def note(self) -> None:
        jobs = self.kube.get("dinojobs", "-n", self.namespace)["items"]
        for job in jobs:
            status = job.get("status", {})
            word = f"{status.get('state')} attempt {status.get('attempt', '-')}: {status.get('message', '')}"
            name = job["metadata"]["name"]
            plain = word.split(", step")[0]
            if self.last.get(name, "").split(", step")[0] != plain:
                self.seen.append(f"{time.strftime('%H:%M:%S')} {name}: {word}")
                print(self.seen[-1], flush=True)
            self.last[name] = word

    def details(self) -> str:
        parts = (
            ("get", "pods,rayjobs,workloads", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "app.kubernetes.io/name=dinoctl", "--tail=60", "--prefix"),
        )
        return "".join("\n\n" + self.kube.kubectl(*part, "-n", self.namespace) for part in parts)


@pytest.fixture
def release(kube: Cluster, namespace: str, tmp_path: Path) -> Iterator[Watched]:
    priorities = [
        {
            "apiVersion": f"{_KUEUE}/v1beta1",
            "kind": "WorkloadPriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        for name, value in (("training", 100), ("urgent", 1000))
    ]
    kube.apply(*priorities, *queues(namespace, cpu="1400m"))
    kube.s3.bucket("outputs")
    profile = {
        "image": kube.image,
        "imagePullPolicy": "Never",
        "storage": "s3://outputs/jobs",
        "trackingUri": kube.mlflow_for_pods,
        "queue": "queue",
        "priorityClass": "training",
        "workersPerPod": 1,
        "memoryPerWorker": "4Gi",
        "sharedMemory": "512Mi",
        "scratch": "2Gi",
        "head": {"cpu": "300m", "memory": "6Gi"},
        "submitter": {"cpu": "50m", "memory": "1Gi"},
        "drain": {"worker": "25s", "head": "35s", "grace": "60s"},
        "env": {**kube.pod_environment, "OMP_NUM_THREADS": "1"},
    }
    del profile["env"]["MLFLOW_TRACKING_URI"]  # type: ignore[attr-defined]
    made = Watched(kube, namespace, tmp_path)
    made.install({"node": profile})
    yield made
    made.uninstall()


@pytest.mark.timeout(2400)
def test_a_family_is_trained_and_promoted_whatever_happens_to_its_machines(release: Watched, tmp_path: Path) -> None:
    kube, namespace = release.kube, release.namespace
    release.dinoctl("submit", str(_documents(tmp_path / "digits.yaml")), "-n", namespace)
    waits = lambda: release.status("digits-evaluate").get("message", "")  # noqa: E731
    release.until(lambda: "digits-distill" in waits(), "a job does not say what it waits for", 300)

    release.until(lambda: release.status("digits-pretrain").get("step", 0) >= 20, "pretraining did not get under way")
    kube.apply(_urgent(namespace))
    preempted = release.until(
        lambda: release.status("digits-pretrain").get("failures", {}).get("preemptions"), "not preempted", 600
    )
    assert preempted == 1
    saved = release.status("digits-pretrain")["checkpointStep"]
    assert saved >= 20, "no checkpoint was committed within the grace"

    release.until(lambda: _trains(release, 2, saved), "the preempted job did not go on")
    started = release.status("digits-pretrain")["lifecycle"]["attempts"][-1].get("startStep")
    assert started is not None
    assert started >= saved, "the second attempt did not begin from the last checkpoint"

    reached = release.status("digits-pretrain")["step"]
    kube.kubectl("delete", "pod", _worker(release), "-n", namespace, "--grace-period=0", "--force")
    release.until(
        lambda: release.status("digits-pretrain").get("failures", {}).get("infrastructure"), "the loss went unseen"
    )
    release.until(lambda: _trains(release, 3, reached - _EVERY_STEPS), "it did not go on without the lost worker")
    _upgraded(release)
    _resized(release, tmp_path / "resized.yaml")
    release.until(lambda: all(release.status(name).get("state") == "Complete" for name in _JOBS), "not complete", 1200)
    release.note()

    pretrain = release.status("digits-pretrain")
    assert pretrain["failures"] == {"preemptions": 1, "infrastructure": 1} | {
        key: value for key, value in pretrain["failures"].items() if key == "application" and value == 0
    }
    assert pretrain["attempt"] == 3
    third = pretrain["lifecycle"]["attempts"][-1]["startStep"]
    assert third >= reached - _EVERY_STEPS, "a loss without warning costs the steps since the last checkpoint"
    _promoted(release)
    _explained(release)


def _trains(release: Watched, attempt: int, beyond: int) -> bool:
    status = release.status("digits-pretrain")
    return bool(status["attempt"] == attempt and status.get("step", 0) > beyond)


def _upgraded(release: Watched) -> None:
    """A new operator finds a job in training, or where this takes long at its end, and leaves it alone."""
    rayjob = lambda: _live_rayjob(release, "digits-pretrain")["metadata"]["uid"]  # noqa: E731
    before, step = rayjob(), release.status("digits-pretrain")["step"]
    release.deploy("upgrade", "--set", "operator.config.workers=5")
    release.until(lambda: release.status("digits-pretrain").get("step", 0) > step, "no news after the upgrade", 300)
    assert rayjob() == before
    assert release.status("digits-pretrain")["attempt"] == 3


def _live_rayjob(release: Watched, name: str) -> dict[str, Any]:
    return release.kube.get("rayjob", release.status(name)["rayJob"], "-n", release.namespace)


def _resized(release: Watched, path: Path) -> None:
    """Suspended, given another number of workers, and resumed: it goes on from where it was."""
    job = "digits-distill"
    release.until(lambda: release.status(job).get("step", 0) > 0, f"{job} did not get under way")
    release.dinoctl("suspend", job, "-n", release.namespace)
    release.until(lambda: release.status(job).get("state") == "Suspended", "not suspended", 300)
    saved = release.status(job)["checkpointStep"]
    assert 0 < saved < _STEPS[job], "no checkpoint was committed at the suspension"
    told = release.dinoctl("submit", str(_documents(path, {job: 1})), "-n", release.namespace)
    print(told)
    release.dinoctl("resume", job, "-n", release.namespace)
    release.until(lambda: release.status(job).get("state") == "Complete", f"{job} did not go on with one worker", 900)
    last = release.status(job)["lifecycle"]["attempts"][-1]
    assert (last["number"], last["startStep"]) == (2, saved)
    pods = [*_live_rayjob(release, job)["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert [group["replicas"] for group in pods] == [1]


def _urgent(namespace: str) -> dict[str, Any]:
    labels = {f"{_KUEUE}/queue-name": "queue", f"{_KUEUE}/priority-class": "urgent"}
    spec = {
        **pod_spec("main", "1", command=["python", "-c", "import time; time.sleep(5)"]),
        "restartPolicy": "Never",
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "urgent", "namespace": namespace, "labels": labels},
        "spec": {"suspend": True, "backoffLimit": 0, "template": {"spec": spec}},
    }


def _worker(release: Watched) -> str:
    selector = "dinoctl.io/job=digits-pretrain,dinoctl.io/role=worker,dinoctl.io/attempt=2"
    pods = release.kube.get("pods", "-n", release.namespace, "-l", selector)["items"]
    return str(pods[0]["metadata"]["name"])


def _promoted(release: Watched) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(release.kube.mlflow)
    for model in ("digits-teacher", "digits-highres", "digits-student"):
        version = client.get_model_version_by_alias(model, "champion")
        assert version.source.startswith("s3://outputs/jobs/"), version.source
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics, "no metrics reached MLflow"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert len(set(steps)) == len(steps), "metrics of repeated steps were logged twice"


def _explained(release: Watched) -> None:
    """The clusters are gone; what they did is not."""
    namespace = release.namespace
    table = release.dinoctl("status", "-n", namespace)
    print(table)
    assert all(name in table for name in _JOBS)
    assert "step" in release.dinoctl("logs", "digits-pretrain", "--rank", "0", "-n", namespace)
    report = release.dinoctl("explain", "digits-pretrain", "-n", namespace)
    print(report)
    assert "attempt 2" in report
    told = release.dinoctl("events", "digits-pretrain", "-n", namespace)
    print(told)
    assert "RayJobEdited" not in told, "what KubeRay and Kueue change is no edit"
