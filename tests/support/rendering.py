"""Attempts of the documents in jobs/ as the operator would render them; ``python -m support.rendering`` writes the
golden files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dinoctl.cluster.render import SCRATCH, SPOOL, render
from dinoctl.handover.attempt import Attempt, Cluster
from dinoctl.spec import names
from dinoctl.spec.job import JobSpec
from dinoctl.spec.load import load
from dinoctl.spec.pin import pin
from dinoctl.spec.profile import Network, Pods, Pool, Profile, SecretKey, Toleration, Topology
from dinoctl.spec.resolve import ResolvedJob, resolve

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "render"
IMAGE = "registry.example/dinoctl@sha256:" + "5d" * 32
UID = "0d5a3f4e-5c1e-4b7e-9d8e-2f1f3c9a7b10"
OWNER = {
    "apiVersion": "dinoctl.io/v1alpha1",
    "kind": "DinoJob",
    "name": "",
    "uid": UID,
    "controller": True,
    "blockOwnerDeletion": True,
}
_GPU_TAINT = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")

PROFILES = {
    "cpu": Profile(
        image="localhost/dinoctl:test",
        allow_tags=True,
        image_pull_policy="Never",
        storage="s3://outputs/",
        tracking_uri="http://mlflow.vision:5000",
        queue="vision",
        workers_per_pod=2,
        memory_per_worker="2Gi",
        shared_memory="256Mi",
        scratch="2Gi",
        head=Pods(cpu="500m", memory="3Gi"),
    ),
    "a100": Profile(
        image=IMAGE,
        storage="s3://outputs/",
        tracking_uri="http://mlflow.vision:5000",
        queue="vision",
        priority_class="training",
        node_selector={"cloud.example/pool": "a100"},
        tolerations=[_GPU_TAINT],
        memory_per_worker="96Gi",
        shared_memory="64Gi",
        topology=Topology(level="cloud.example/block"),
        network=Network(interface="eth0"),
        account_annotations={"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/training"},
        env={"AWS_REGION": "eu-central-1"},
        secret_env={"MLFLOW_TRACKING_TOKEN": SecretKey(secret="mlflow", key="token")},
        labels={"team": "vision"},
    ),
    "fabric": Profile(
        image=IMAGE,
        image_pull_secrets=["pull"],
        storage="s3://outputs/",
        tracking_uri="http://mlflow.vision:5000",
        queue="vision",
        tolerations=[_GPU_TAINT],
        pools=[
            Pool(name="reserved", max_workers=512, node_selector={"cloud.example/capacity": "reserved"}),
            Pool(name="on-demand", max_workers=256, node_selector={"cloud.example/capacity": "on-demand"}),
            Pool(
                name="spot",
                node_selector={"cloud.example/capacity": "spot"},
                tolerations=[Toleration(key="spot", operator="Equal", value="true", effect="NoSchedule")],
            ),
        ],
        memory_per_worker="120Gi",
        shared_memory="64Gi",
        topology=Topology(level="cloud.example/block", required=True),
        network=Network(interface="eth0", rdma_resource="rdma/hca", ib_devices="mlx5"),
        security="rdma",
    ),
    "plain": Profile(
        image=IMAGE, storage="s3://outputs/", tracking_uri="http://mlflow.vision:5000", node_selector={"disk": "nvme"}
    ),
}


def jobs(file: str) -> list[ResolvedJob]:
    """Of a file in jobs/."""
    return resolve(load([str(ROOT / "jobs" / file)]))


def attempt(job: ResolvedJob, number: int = 1, *, spec: JobSpec | None = None) -> Attempt:
    """As the operator makes it; outputs of parents lie where theirs do."""
    parents = {name: f"s3://outputs/vision/{name}/run-0001" for name in job.parents}
    return Attempt(
        name=job.name,
        spec=pin(spec or job.spec, parents),
        spec_hash=job.spec_hash,
        number=number,
        storage_uri=f"s3://outputs/vision/{job.name}/run-0001",
        scratch=SCRATCH,
        spool=SPOOL,
        tracking_uri="http://mlflow.vision:5000",
        cluster=Cluster(namespace="vision", uid=UID, progress=names.progress_name(job.name), run_life="life"),
    )


def rendered(one: Attempt, profile: Profile, excluded: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Objects of an attempt."""
    return render(one, profile, {**OWNER, "name": one.name}, excluded)


def resized(job: ResolvedJob, **compute: Any) -> JobSpec:
    """The same job on other machines."""
    return job.spec.model_copy(update={"compute": job.spec.compute.model_copy(update=compute)})


def cases() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name of a golden file, and its objects: every paper job, and sizes and engines beyond them."""
    for file in sorted(path.name for path in (ROOT / "jobs").glob("*.yaml")):
        profile = PROFILES["cpu" if file == "digits.yaml" else "a100"]
        for job in jobs(file):
            yield job.name, rendered(attempt(job), profile)
    vitg = jobs("vitg_pretrain.yaml")[0]
    thousand = resized(vitg, workers=1000)
    yield "size-1000-workers-in-pools", rendered(attempt(vitg, 12, spec=thousand), PROFILES["fabric"])
    odd = resized(vitg, workers=250)
    yield "size-250-workers-excluded-nodes", rendered(attempt(vitg, 3, spec=odd), PROFILES["a100"], ("gpu-17", "gpu-3"))
    yield "size-one-worker-no-queue", rendered(attempt(vitg, spec=resized(vitg, workers=1)), PROFILES["plain"])


def elsewhere(objects: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """The same objects in another namespace, and in the queue of its name; without their owner, whom the garbage
    collector would miss.
    """
    moved: list[dict[str, Any]] = json.loads(json.dumps(objects).replace('"vision"', f'"{namespace}"'))
    for one in moved:
        del one["metadata"]["ownerReferences"]
    return moved


def shown(objects: list[dict[str, Any]]) -> str:
    """As YAML, without the text of attempt.json, which is the resolved document."""
    return yaml.safe_dump_all([_without_document(one) for one in objects], sort_keys=False, width=120)


def _without_document(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "data": dict.fromkeys(one["data"], "(the attempt)")} if "data" in one else one


def main() -> None:
    """Writes all golden files anew."""
    texts = {f"{name}.yaml": shown(objects) for name, objects in cases()}
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name, text in texts.items():
        (GOLDEN / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
