"""From a valid document to the one that runs: every field has a value, and every value has an origin.

Resolution is a pure function of the documents: the same files always resolve to the same bytes. A job's ``spec_hash``
covers what decides its result (stage, seed, gate, precision, and the hashes of its parents), not how it is run
(workers, engine, retries), so a run may go on at another size but never silently with another recipe.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoctl.spec.base import Section
from dinoctl.spec.checks import check
from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.fill import Filler, compress, yaml_name
from dinoctl.spec.graph import parents, topological
from dinoctl.spec.job import JobSpec
from dinoctl.spec.load import LoadedJob
from dinoctl.spec.recipe import Crops, Schedules
from dinoctl.spec.sources import JobRef, TrainData
from dinoctl.spec.stages import Distill, Evaluate, HighRes, Pretrain
from dinoctl.spec.yamldoc import Path, show


@dataclass(frozen=True)
class ResolvedJob:
    """What runs. ``origins``: shown path of every leaf -> where its value comes from."""

    name: str
    spec: JobSpec
    parents: tuple[str, ...]
    labels: Mapping[str, str]
    spec_hash: str
    origins: Mapping[str, str]
    file: str

    @property
    def kind(self) -> str:
        """Name of the stage."""
        return self.spec.kind

    def to_dict(self) -> dict[str, Any]:
        """The resolved document as plain data with YAML names."""
        return {
            "apiVersion": "dinoctl.io/v1alpha1",
            "kind": "DinoJob",
            "metadata": {"name": self.name, **({"labels": dict(self.labels)} if self.labels else {})},
            "spec": _plain(self.spec),
        }


def resolve(jobs: Sequence[LoadedJob]) -> list[ResolvedJob]:
    """Resolves all jobs, parents first.

    Raises:
        SpecError: with every contradiction that only shows once the values are known.

    """
    done: dict[str, ResolvedJob] = {}
    problems: list[Problem] = []
    for loaded in topological(jobs):
        resolved = _resolve_one(loaded, done)
        problems.extend(loaded.doc.problem(path, text) for path, text in check(resolved.spec, _parent_specs(done)))
        done[loaded.name] = resolved
    if problems:
        raise SpecError(problems)
    return [done[job.name] for job in topological(jobs)]


def _parent_specs(done: Mapping[str, ResolvedJob]) -> dict[str, JobSpec]:
    return {name: job.spec for name, job in done.items()}


def _resolve_one(loaded: LoadedJob, done: Mapping[str, ResolvedJob]) -> ResolvedJob:
    filler = Filler()
    spec = loaded.job.spec
    path: Path = ("spec", spec.kind)
    if isinstance(spec.stage, Pretrain):
        stage: Section = _pretrain(spec.stage, path, filler)
    elif isinstance(spec.stage, HighRes):
        stage = _highres(spec.stage, path, filler, done)
    elif isinstance(spec.stage, Distill):
        stage = _distill(spec.stage, path, filler, done)
    elif isinstance(spec.stage, Evaluate):
        stage = _evaluate(spec.stage, path, filler, done)
    else:
        stage = spec.stage
    spec = spec.model_copy(update={spec.kind: stage})
    if spec.gate is not None:
        crops = getattr(stage, "crops", None)
        size = crops.global_crops.size if crops else getattr(stage, "size", None)
        knn = filler.knn(spec.gate.knn, ("spec", "gate", "knn"), image_size=size)
        spec = spec.model_copy(update={"gate": spec.gate.model_copy(update={"knn": knn})})
    names = parents(loaded)
    hashes = {name: done[name].spec_hash for name in names if name in done}
    origins = _origins(spec, ("spec",), loaded, filler.notes)
    labels = dict(loaded.job.metadata.labels)
    return ResolvedJob(loaded.name, spec, names, labels, spec_hash(spec, hashes), origins, loaded.doc.file)


def _pretrain(stage: Pretrain, path: Path, filler: Filler) -> Pretrain:
    model = filler.model(stage.model, (*path, "model"), drop_path=0.4)
    return stage.model_copy(
        update={
            "model": model,
            "crops": filler.crops(stage.crops, (*path, "crops"), patch_size=model.patch_size),
            "schedules": filler.schedules(stage.schedules, (*path, "schedules"), steps=stage.steps),
        }
    )


def _highres(stage: HighRes, path: Path, filler: Filler, done: Mapping[str, ResolvedJob]) -> HighRes:
    parent = done.get(stage.parent.job) if isinstance(stage.parent, JobRef) else None
    source = parent.spec.stage if parent else None
    factor = stage.learning_rate_factor
    if isinstance(source, (Pretrain, HighRes, Distill)) and source.schedules is not None:
        inherited = {name: getattr(source, name) for name in _INHERITED}
        schedules = compress(source.schedules, steps=stage.steps, parent_steps=source.steps, factor=factor)
        stage = filler.fill(stage, path, f"that of {parent.name}" if parent else None, **inherited)
        stage = filler.fill(stage, path, f"that of {parent.name if parent else ''}, compressed", schedules=schedules)
    else:
        rest = Pretrain(data=stage.data or _NO_DATA)
        full = filler.schedules(rest.schedules, (), steps=rest.steps)
        schedules = compress(full, steps=stage.steps, parent_steps=rest.steps, factor=factor)
        names = ("global_batch", "masks", "losses", "optimizer")
        stage = filler.fill(stage, path, "paper (the parent is a model)", **{n: getattr(rest, n) for n in names})
        stage = filler.fill(stage, path, "paper (the parent is a model), compressed", schedules=schedules)
        stage = filler.fill(stage, path, "paper (the parent is a model)", crops=rest.crops)
    crops = stage.crops or Crops()
    crops = crops.model_copy(update={"global_crops": crops.global_crops.model_copy(update={"size": stage.size})})
    if stage.local_size is not None:
        local = crops.local_crops.model_copy(update={"size": stage.local_size})
        crops = crops.model_copy(update={"local_crops": local})
        filler.notes[(*path, "crops", "local", "size")] = "localSize"
    elif crops.local_crops.size is not None:
        stage = filler.fill(stage, path, local_size=crops.local_crops.size)
    filler.notes[(*path, "crops", "global", "size")] = "size"
    schedules = filler.schedules(stage.schedules or Schedules(), (*path, "schedules"), steps=stage.steps)
    return stage.model_copy(update={"crops": crops, "schedules": schedules})


def _distill(stage: Distill, path: Path, filler: Filler, done: Mapping[str, ResolvedJob]) -> Distill:
    parent = done.get(stage.teacher.job) if isinstance(stage.teacher, JobRef) else None
    heads = getattr(parent.spec.stage, "heads", None) if parent else None
    model = filler.model(stage.model, (*path, "model"), drop_path=0.0)
    stage = filler.fill(stage, path, f"those of {parent.name}" if parent else None, heads=heads)
    return stage.model_copy(
        update={
            "model": model,
            "crops": filler.crops(stage.crops, (*path, "crops"), patch_size=model.patch_size),
            "schedules": filler.schedules(stage.schedules, (*path, "schedules"), steps=stage.steps),
        }
    )


def _evaluate(stage: Evaluate, path: Path, filler: Filler, done: Mapping[str, ResolvedJob]) -> Evaluate:
    parent = done.get(stage.model.job) if isinstance(stage.model, JobRef) else None
    crops = getattr(parent.spec.stage, "crops", None) if parent else None
    size = crops.global_crops.size if crops else None
    if stage.protocols.knn is None:
        return stage
    knn = filler.knn(stage.protocols.knn, (*path, "protocols", "knn"), image_size=size)
    return stage.model_copy(update={"protocols": stage.protocols.model_copy(update={"knn": knn})})


def spec_hash(spec: JobSpec, parent_hashes: Mapping[str, str]) -> str:
    """sha256 (hex) of what decides the result of a job."""
    content = {
        "stage": {spec.kind: _plain(spec.stage)},
        "seed": spec.seed,
        "gate": _plain(spec.gate) if spec.gate else None,
        "precision": spec.compute.precision,
        "parents": dict(parent_hashes),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", by_alias=True, exclude_none=True)


def _origins(section: Section, path: Path, loaded: LoadedJob, notes: Mapping[Path, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, info in type(section).model_fields.items():
        value, where = getattr(section, name), (*path, yaml_name(section, name))
        note = _nearest(where, notes)
        if isinstance(value, Section):
            found.update(_origins(value, where, loaded, notes))
        elif where in loaded.doc.places:
            found[show(where)] = f"{loaded.doc.file}:{loaded.doc.places[where][0]}"
        elif note is not None:
            found[show(where)] = f"derived: {note}"
        elif value is not None:
            extra = info.json_schema_extra
            found[show(where)] = f"default: {extra['source']}" if isinstance(extra, dict) else "default: dinoctl"
    return found


def _nearest(path: Path, notes: Mapping[Path, str]) -> str | None:
    while path:
        if path in notes:
            return notes[path]
        path = path[:-1]
    return None


_NO_DATA = TrainData(source="none")  # only to read the defaults of the other fields
_INHERITED = ("data", "global_batch", "model", "crops", "masks", "heads", "losses", "optimizer")
