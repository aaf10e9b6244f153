"""The document: one DinoJob."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from dinoctl.spec.base import Section, choice, paper
from dinoctl.spec.compute import Compute
from dinoctl.spec.policy import Gate, Policy
from dinoctl.spec.sources import DATASET_FIELDS, JobName, JobRef, Uri
from dinoctl.spec.stages import Distill, Evaluate, HighRes, Pack, Pretrain

API_VERSION = "dinoctl.io/v1alpha1"
Stage = Pack | Pretrain | HighRes | Distill | Evaluate
STAGES = ("pack", "pretrain", "highres", "distill", "evaluate")
TRAINING = ("pretrain", "highres", "distill")


def _stage_rules(schema: dict[str, Any]) -> None:
    """What the validator below says, for editors: one stage, and a gate with training stages only."""
    given = {kind: {"required": [kind], "properties": {kind: {"type": "object"}}} for kind in STAGES}
    schema["oneOf"] = list(given.values())
    gated = {"required": ["gate"], "properties": {"gate": {"type": "object"}}}
    schema["if"], schema["then"] = gated, {"anyOf": [given[kind] for kind in TRAINING]}


class Metadata(Section):
    """Name and labels."""

    name: JobName = Field(description="Unique name of the job.")
    labels: dict[str, str] = choice({}, "Free labels; they become tags of the run.")

    @model_validator(mode="after")
    def _own_labels(self) -> "Metadata":
        taken = [key for key in self.labels if key.startswith(("dinoctl.", "mlflow."))]
        if taken:
            raise ValueError(f"label {taken[0]!r}: names that start with dinoctl. or mlflow. are taken")
        return self


class JobSpec(Section):
    """What a job does (exactly one stage), on what, and under which rules."""

    model_config = ConfigDict(json_schema_extra=_stage_rules)

    profile: str | None = choice(None, "Profile of the administrator: image, queue, node pool, storage. Cluster only.")
    storage: Uri | None = choice(None, "Where the job's outputs go; default: the profile's or the state directory.")
    seed: int = paper(0, "Seed of everything random.", "code config", ge=0, lt=2**63)
    compute: Compute = choice(Compute(), "Workers, their size, engine and precision.")
    pack: Pack | None = choice(None, "Stage: pack images into a dataset.")
    pretrain: Pretrain | None = choice(None, "Stage: pretrain a backbone.")
    highres: HighRes | None = choice(None, "Stage: adapt a backbone to high resolution.")
    distill: Distill | None = choice(None, "Stage: distill a teacher into a smaller student.")
    evaluate: Evaluate | None = choice(None, "Stage: measure a model.")
    gate: Gate | None = choice(None, "What the exported model must show.")
    policy: Policy = choice(Policy(), "Restart budgets, deadline, checkpoints and health.")
    suspend: bool = choice(False, "Hold the job: nothing starts, what runs commits and stops.")

    @model_validator(mode="after")
    def _one_stage(self) -> "JobSpec":
        given = [kind for kind in STAGES if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(STAGES)}; found {', '.join(given) or 'none'}")
        if self.gate is not None and given[0] not in TRAINING:
            raise ValueError(f"a gate measures a trained model; {given[0]} has none")
        return self

    @property
    def kind(self) -> str:
        """Name of the stage."""
        return next(kind for kind in STAGES if getattr(self, kind) is not None)

    @property
    def stage(self) -> Stage:
        """The stage's own section."""
        stage: Stage = getattr(self, self.kind)
        return stage


class DinoJob(Section):
    """One document: one job."""

    api_version: Literal["dinoctl.io/v1alpha1"] = Field(description="Version of this format.")
    kind: Literal["DinoJob"] = Field(description="Kind of the document.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: JobSpec = Field(description="What the job does.")

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name


def references(section: Section) -> list[tuple[tuple[str | int, ...], str]]:
    """Every ``{job: NAME}`` below ``section`` with its path (YAML names)."""
    return [((*path, "job"), reference.job) for path, reference in job_refs(section)]


def job_refs(section: Section, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], JobRef]]:
    """Every reference to a job below ``section``, with where it stands."""
    found: list[tuple[tuple[str | int, ...], JobRef]] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        key = info.alias or name
        parts = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, part in parts:
            where = (*path, key) if index is None else (*path, key, index)
            if isinstance(part, JobRef):
                found.append((where, part))
            elif isinstance(part, Section):
                found.extend(job_refs(part, where))
    return found


def dataset_uris(spec: JobSpec) -> Iterator[str]:
    """Every packed dataset that a job reads and names by its place; what a pack job reads is none."""
    return _dataset_uris(spec.model_copy(update={"pack": None}))


def _dataset_uris(section: Section) -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Section):
                yield from _dataset_uris(part)
            elif isinstance(part, str) and name in DATASET_FIELDS:
                yield part
