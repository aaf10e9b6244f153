"""From a valid document to the one that runs: every field has a value, and every value has an origin.

Resolution is a pure function of the documents: the same files always resolve to the same bytes. A job's ``spec_hash``
covers what decides its result (stage, seed, gate, precision, and the hashes of its parents), not how it is run
(workers, engine, retries, how often it logs), so a run may go on at another size but never silently with
another recipe.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoctl.spec.base import Section
from dinoctl.spec.checks import check
from dinoctl.spec.complete import complete
from dinoctl.spec.crops import RELEASED_ORDER
from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.fill import Filler, yaml_name
from dinoctl.spec.graph import parents, topological
from dinoctl.spec.job import API_VERSION, JobSpec
from dinoctl.spec.load import LoadedJob
from dinoctl.spec.yamldoc import Path, show

_HOW_NOT_WHAT = (
    "logEvery",
    "batchSize",
    "workers",
    "behaviour",
    "ranks",
    "maxEnlargement",
    "teacherPlacement",
    "reader",
)
"""Fields of a stage or gate that change speed or output on the way, not the result, that only fill in others, or that
only say what is refused.
"""
_ADDED_LATER: Mapping[str, object] = {"order": list(RELEASED_ORDER), "backend": "exact", "teacherScale": 1.0}
"""Fields younger than jobs that exist: left out of the hash while they say what held before, so that it stays."""
_NOTHING = object()


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
            "apiVersion": API_VERSION,
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
    whole: set[str] = set()  # jobs whose ancestors are all there: of others too little is known to judge them
    problems: list[Problem] = []
    for loaded in topological(jobs):
        resolved = _resolve_one(loaded, done)
        if whole.issuperset(resolved.parents):
            whole.add(loaded.name)
            findings = () if loaded.elsewhere else check(resolved.spec, _specs(done))
            problems.extend(loaded.doc.problem(path, text) for path, text in findings)
        done[loaded.name] = resolved
    if problems:
        raise SpecError(problems)
    return [done[job.name] for job in topological(jobs)]


def resolve_one(loaded: LoadedJob, parents: Mapping[str, ResolvedJob]) -> ResolvedJob:
    """Resolves a job whose parents are resolved already. One that lacks parents may still have contradictions, which
    are judged only once all are there; its hash is then another one.

    Raises:
        SpecError: with every contradiction.

    """
    resolved = _resolve_one(loaded, parents)
    found = check(resolved.spec, _specs(parents)) if set(resolved.parents) <= set(parents) else []
    problems = [loaded.doc.problem(path, text) for path, text in found]
    if problems:
        raise SpecError(problems)
    return resolved


def _specs(done: Mapping[str, ResolvedJob]) -> dict[str, JobSpec]:
    return {name: job.spec for name, job in done.items()}


def _resolve_one(loaded: LoadedJob, done: Mapping[str, ResolvedJob]) -> ResolvedJob:
    filler = Filler()
    spec = complete(loaded.job.spec, _specs(done), filler)
    names = parents(loaded)
    hashes = {name: done[name].spec_hash for name in names if name in done}
    origins = _origins(spec, ("spec",), loaded, filler.notes)
    labels = dict(loaded.job.metadata.labels)
    return ResolvedJob(loaded.name, spec, names, labels, spec_hash(spec, hashes), origins, loaded.doc.file)


def spec_hash(spec: JobSpec, parent_hashes: Mapping[str, str]) -> str:
    """sha256 (hex) of what decides the result of a job."""
    content = {**decisive(spec), "parents": dict(parent_hashes)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decisive(spec: JobSpec) -> dict[str, Any]:
    """What decides the result of a job, as plain data."""
    return {
        "stage": {spec.kind: _decisive(spec.stage, _plain(spec.stage))},
        "seed": spec.seed,
        "gate": _decisive(spec.gate, _plain(spec.gate)) if spec.gate else None,
        "precision": spec.compute.precision,
    }


def _decisive(value: Any, plain: Any) -> Any:
    """``plain`` data of ``value`` without fields that decide nothing; keys that users choose are no fields."""
    if isinstance(value, Section):
        names = {yaml_name(value, name): name for name in type(value).model_fields}
        return {
            key: _decisive(getattr(value, names[key]), content)
            for key, content in plain.items()
            if key not in _HOW_NOT_WHAT and content != _ADDED_LATER.get(key, _NOTHING)
        }
    if isinstance(value, dict):
        return {key: _decisive(one, plain[key]) for key, one in value.items()}
    return plain


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", by_alias=True, exclude_none=True)


def _origins(section: Section, path: Path, loaded: LoadedJob, notes: Mapping[Path, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, info in type(section).model_fields.items():
        value, where = getattr(section, name), (*path, yaml_name(section, name))
        note = _nearest(where, notes)
        if isinstance(value, Section):
            found.update(_origins(value, where, loaded, notes))
        elif isinstance(value, dict) and any(isinstance(one, Section) for one in value.values()):
            for key, one in value.items():
                found.update(_origins(one, (*where, key), loaded, notes))
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
