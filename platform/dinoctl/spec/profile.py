"""What the administrator decides: profiles, and the operator's configuration that holds them (Helm values).

A document names a profile and says what to train; the profile says on what: image, nodes, queue, storage. Users can't
widen it, and it is no part of a job's hash.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from dinoctl.spec.base import Duration, Section, Size, choice
from dinoctl.spec.errors import redacted
from dinoctl.spec.sources import Uri

_PINNED = r"^[^@\s]+@sha256:[0-9a-f]{64}$"
_LABEL = r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_DNS = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_TAKEN = ("DINOCTL_", "RAY_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "KUBERNETES_")
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?$")]
Label = Annotated[str, Field(pattern=_LABEL)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$", max_length=63)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_REST = "-rest"


class Toleration(Section):
    """As in a pod."""

    key: str | None = choice(None, "Taint key; null tolerates every key.")
    operator: Literal["Equal", "Exists"] = choice("Equal", "How key and value are compared.")
    value: str | None = choice(None, "Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = choice(None, "Taint effect; null: every.")
    toleration_seconds: int | None = choice(None, "Seconds; of NoExecute only.", ge=0)


class SecretKey(Section):
    """A value that lies in a Secret of the job's namespace. The operator never reads it."""

    secret: str = Field(description="Name of the Secret.", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    key: str = Field(description="Key in it.", min_length=1)


def _own_names(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name.startswith(_TAKEN):
            raise ValueError(f"variable {name!r}: names of Ray, torch.distributed and dinoctl are set by the operator")
    return value


def _no_password(value: str) -> str:
    if value.startswith(("http://", "https://")) and redacted(value) != value:
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ValueError(
            f"{redacted(value)} holds a password, and all who may read a job's maps would; use secretEnv {names}"
        )
    return value


class Pods(Section):
    """What a pod asks for."""

    cpu: Quantity = choice("1", "CPU cores.")
    memory: Quantity = choice("4Gi", "Memory; request and limit.")


class Pool(Section):
    """Nodes of one kind. Workers fill the pools in order; each pool is a worker group."""

    name: str = Field(description="Name of the group.", pattern=_DNS, max_length=20)
    max_workers: int | None = choice(
        None, "Most workers here, a multiple of workersPerPod; null: no limit (the last pool only).", ge=1
    )
    node_selector: dict[Label, LabelValue] = choice({}, "Node labels, beside the profile's.")
    tolerations: list[Toleration] = choice([], "Beside the profile's.")

    @model_validator(mode="after")
    def _not_head(self) -> "Pool":
        if self.name in ("head", "submitter") or self.name.endswith(_REST):
            raise ValueError(f"pool name {self.name!r} is taken; choose another")
        return self


class Network(Section):
    """How ranks talk to each other."""

    interface: str | None = choice(None, "Interface of NCCL and Gloo (NCCL_SOCKET_IFNAME), as eth0.")
    rdma_resource: str | None = choice(None, "Extended resource of an RDMA device, one a pod, as rdma/hca.")
    ib_devices: str | None = choice(None, "NCCL_IB_HCA, as mlx5.")


class Topology(Section):
    """How close together the workers must be (Kueue's topology-aware scheduling)."""

    level: Label = Field(description="Node label of the level, as cloud.provider.com/topology-rack.")
    required: bool = choice(False, "Required, or preferred.")


class Drain(Section):
    """Time to save in, once the machines are taken away (measured for KubeRay and Kueue)."""

    worker: Duration = choice(60.0, "What a worker has: longest step + writing a checkpoint + 10 s.")
    head: Duration = choice(75.0, "What the head has: it commits what the workers saved, so longer than they.")
    grace: Duration = choice(120.0, "Until pods are killed; longer than both.")

    @model_validator(mode="after")
    def _ordered(self) -> "Drain":
        if not self.worker < self.head < self.grace:
            raise ValueError(
                f"drain times must grow: worker {self.worker:g} s, head {self.head:g} s, grace {self.grace:g} s"
            )
        return self


def _pinned_rule(schema: dict[str, Any]) -> None:
    """What the validator below says of images, for Helm."""
    tagged = {"required": ["allowTags"], "properties": {"allowTags": {"const": True}}}
    schema["if"], schema["then"] = {"not": tagged}, {"properties": {"image": {"pattern": _PINNED}}}


class Profile(Section):
    """Where and how jobs run that name it."""

    model_config = ConfigDict(json_schema_extra=_pinned_rule)

    image: str = Field(description="Image of all pods, by digest: NAME@sha256:...", min_length=1)
    allow_tags: bool = choice(False, "Accept an image by tag: for tests and images that never leave a machine.")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = choice("IfNotPresent", "As in a pod.")
    image_pull_secrets: list[str] = choice([], "Names of Secrets of the job's namespace.")
    storage: Uri = Field(description="Prefix of all outputs; a job gets PREFIX/NAMESPACE/NAME.")
    tracking_uri: Annotated[str, AfterValidator(_no_password)] = Field(
        description="MLflow server, as pods reach it.", min_length=1
    )
    queue: str | None = choice(None, "Kueue LocalQueue in the job's namespace; null: no queue.", pattern=_DNS)
    priority_class: str | None = choice(None, "Kueue WorkloadPriorityClass.")
    node_selector: dict[Label, LabelValue] = choice({}, "Node labels.")
    tolerations: list[Toleration] = choice([], "Taints that pods tolerate.")
    pools: list[Pool] = choice(
        [],
        "Worker groups, at most 5 (a Kueue workload's pod sets, less head, submitter and rest); none: one group.",
        max_length=5,
    )
    topology: Topology | None = choice(None, "Closeness of workers.")
    network: Network = choice(Network(), "Interfaces and RDMA.")
    gpu_resource: Label = choice("nvidia.com/gpu", "Extended resource of a GPU.")
    workers_per_pod: int = choice(8, "Ranks (GPUs) of a pod, at most: those of a node.", ge=1)
    memory_per_worker: Quantity = choice("32Gi", "Memory of a rank; a pod gets it times its ranks.")
    shared_memory: Quantity = choice("16Gi", "Size of /dev/shm, in a pod's memory.")
    scratch: Quantity = choice("20Gi", "Limit of a pod's local scratch: logs, spool, caches.")
    head: Pods = choice(Pods(cpu="2", memory="8Gi"), "The head: Ray's control and the driver.")
    submitter: Pods = choice(Pods(cpu="100m", memory="512Mi"), "The pod that submits the driver.")
    max_workers: int | None = choice(None, "Most workers a job may ask for; null: no limit.", ge=1)
    drain: Drain = choice(Drain(), "Time to save in on preemption.")
    security: Literal["restricted", "rdma"] = choice(
        "restricted", "Pod security: restricted, or with IPC_LOCK for RDMA (such a namespace can't enforce restricted)."
    )
    run_as: int = choice(1000, "User and group of all processes; not root.", ge=1)
    env: Annotated[dict[Variable, str], AfterValidator(_own_names)] = choice({}, "Environment of all pods.")
    secret_env: Annotated[dict[Variable, SecretKey], AfterValidator(_own_names)] = choice(
        {}, "Environment from Secrets, by reference."
    )
    account_annotations: dict[str, str] = choice(
        {}, "Annotations of the job's ServiceAccount, as those of a cloud's workload identity."
    )
    labels: dict[Label, LabelValue] = choice({}, "Labels of all pods.")
    volumes: list[dict[str, Any]] = choice([], "Volumes of all pods, as in a pod.")
    volume_mounts: list[dict[str, Any]] = choice([], "Their mounts in all containers.")

    @model_validator(mode="after")
    def _pinned(self) -> "Profile":
        if not self.allow_tags and re.match(_PINNED, self.image) is None:
            raise ValueError(
                f"image {self.image!r} has no digest, so what runs may change under a job; give NAME@sha256:..."
            )
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pools must have different names, got {', '.join(names)}")
        if any(pool.max_workers is None for pool in self.pools[:-1]):
            raise ValueError("only the last pool may be without maxWorkers: nothing would reach the others")
        odd = next((pool for pool in self.pools if (pool.max_workers or 0) % self.workers_per_pod), None)
        if odd is not None:
            raise ValueError(
                f"pool {odd.name}: maxWorkers {odd.max_workers} is no multiple of workersPerPod {self.workers_per_pod}"
            )
        twice = next((name for name in self.env if name in self.secret_env), None)
        if twice is not None:
            raise ValueError(f"variable {twice!r} stands in env and in secretEnv; keep one")
        if self.security == "restricted" and self.network.rdma_resource:
            raise ValueError("RDMA needs IPC_LOCK, which restricted pod security forbids; set security: rdma")
        return self


class OperatorConfig(Section):
    """The operator's configuration file."""

    profiles: dict[Annotated[str, Field(pattern=_DNS)], Profile] = Field(description="By name.", min_length=1)
    default_profile: str | None = choice(None, "Of jobs that name none; null: a job must name one.")
    namespaces: list[Annotated[str, Field(pattern=_DNS, max_length=63)]] = choice(
        [], "Namespaces that are watched; none: the operator's own."
    )
    resync: Duration = choice(600.0, "Longest time between two looks at a job without an event.")
    workers: int = choice(8, "Jobs that are looked at side by side.", ge=1)
    keep_attempts: int = choice(3, "RayJobs of ended attempts that are kept for looking at.", ge=0)
    finalize_timeout: Duration = choice(300.0, "How long deletion waits for the tracking server.")
    memory: Size = choice(400 * 2**20, "Memory of the operator, for its own alarm.")

    @model_validator(mode="after")
    def _known_default(self) -> "OperatorConfig":
        if self.default_profile is not None and self.default_profile not in self.profiles:
            raise ValueError(
                f"defaultProfile {self.default_profile!r} is not among the profiles: {', '.join(self.profiles)}"
            )
        return self
