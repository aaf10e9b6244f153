"""References between jobs: unknown names, duplicate names, wrong kinds, cycles."""

import difflib
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from dinoctl.spec.errors import Problem
from dinoctl.spec.job import TRAINING, job_refs, references
from dinoctl.spec.sources import DATASET_FIELDS, JobRef
from dinoctl.spec.stages import Distill
from dinoctl.spec.yamldoc import Path

if TYPE_CHECKING:
    from dinoctl.spec.load import LoadedJob


def parents(job: "LoadedJob") -> tuple[str, ...]:
    """Names of the jobs that this one waits for, sorted."""
    return tuple(sorted({name for _, name in references(job.job)}))


def topological(jobs: Sequence["LoadedJob"]) -> list["LoadedJob"]:
    """Parents before children; among equals the order of the files."""
    by_name = {job.name: job for job in jobs}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for job in jobs:
        sorter.add(job.name, *(name for name in parents(job) if name in by_name))
    return [by_name[name] for name in sorter.static_order()]


def check_references(jobs: Sequence["LoadedJob"], problems: list[Problem], *, complete: bool) -> None:
    """Appends a problem for every bad reference. With ``complete`` False unknown names are not judged:
    a document that failed to validate may have defined them.
    """
    by_name: dict[str, LoadedJob] = {}
    for job in jobs:
        if job.name in by_name:
            other = by_name[job.name].doc
            line, _ = other.place(("metadata", "name"))
            text = f"a job named {job.name!r} is already defined at {other.file}:{line}; rename one of them"
            problems.append(job.doc.problem(("metadata", "name"), text))
        by_name.setdefault(job.name, job)
    for job in (one for one in jobs if not one.elsewhere):
        for path, reference in job_refs(job.job):
            message = _judge((*path, "job"), reference.job, by_name, complete)
            if message:
                problems.append(job.doc.problem((*path, "job"), message))
            elif reference.job in by_name and (message := _which(path, reference, by_name[reference.job])):
                problems.append(job.doc.problem((*path, "student") if reference.student else path, message))
    _check_cycles(by_name, problems)


def _judge(path: Path, name: str, by_name: Mapping[str, "LoadedJob"], complete: bool) -> str | None:
    parent = by_name.get(name)
    if parent is None:
        if not complete:
            return None
        close = difflib.get_close_matches(name, by_name, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; jobs here: {', '.join(sorted(by_name))}"
        return f"no job named {name!r}{hint}"
    wants_data = path[-2] in DATASET_FIELDS
    kind = parent.job.spec.kind
    if wants_data and kind != "pack":
        return f"needs a dataset, but {name!r} is a {kind} job; name a pack job"
    if not wants_data and kind not in TRAINING:
        return f"needs a model, but {name!r} is a {kind} job; name a {', '.join(TRAINING)} job"
    return None


def _which(path: Path, reference: JobRef, parent: "LoadedJob") -> str | None:
    """What is wrong with naming, or not naming, one of several students."""
    stage = parent.job.spec.stage
    students = list(stage.students or {}) if isinstance(stage, Distill) else []
    name, several = reference.job, ", ".join(students)
    if path[-1] in DATASET_FIELDS or not students:
        return f"{name!r} has no students; leave student out" if reference.student else None
    if reference.student is None:
        return f"{name!r} distils several students; say which one: student: {students[0]} (there are {several})"
    if reference.student in students:
        return None
    close = difflib.get_close_matches(reference.student, students, n=1)
    return f"{name!r} has no student {reference.student!r}" + (
        f"; did you mean {close[0]!r}?" if close else f"; its students: {several}"
    )


def _check_cycles(by_name: Mapping[str, "LoadedJob"], problems: list[Problem]) -> None:
    """One cycle is told; a second one shows when the first is gone."""
    try:
        TopologicalSorter({name: set(parents(job)) & set(by_name) for name, job in by_name.items()}).prepare()
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        start = by_name[cycle[0]]
        path = next(path for path, name in references(start.job) if name == cycle[1])
        loop = " → ".join(cycle)
        text = f"waits for itself: {loop}" if len(cycle) == 2 else f"jobs wait for each other: {loop}"
        problems.append(start.doc.problem(path, f"{text}; remove one of these references"))
