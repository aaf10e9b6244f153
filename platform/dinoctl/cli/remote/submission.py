"""Sending documents: judged here first, with file and line, then by the API server without effect, then applied.

Server-side apply makes it safe to repeat: what is unchanged stays untouched, and fields that others own stay theirs.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dinoctl.cli.remote.rows import ended, state
from dinoctl.cli.remote.target import Cluster, told
from dinoctl.cluster.errors import Invalid, NotFound
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.spec import names
from dinoctl.spec.differences import Difference, differences
from dinoctl.spec.errors import Problem, SpecError, UserError
from dinoctl.spec.graph import parents
from dinoctl.spec.load import LoadedJob, load
from dinoctl.spec.resolve import resolve
from dinoctl.spec.yamldoc import Path


@dataclass(frozen=True)
class Change:
    """What applying a document does to the object."""

    loaded: LoadedJob
    old: Object | None
    differences: tuple[Difference, ...] = ()
    restart: bool = False

    @property
    def verb(self) -> str:
        """In one word."""
        if self.old is None:
            return "created"
        return "restarted" if self.restart else "changed" if self.differences else "unchanged"

    @property
    def goes_on(self) -> bool:
        """It has not ended, or is done again."""
        return self.restart or self.old is None or not ended(self.old)


@dataclass(frozen=True)
class Plan:
    """All documents, parents first; ``missing``: jobs that some wait for and that are nowhere yet."""

    changes: tuple[Change, ...]
    missing: tuple[tuple[str, str], ...]


def plan(files: Sequence[str], cluster: Cluster, restarts: Collection[str] = ()) -> Plan:
    """What submitting would do. Changes nothing.

    Raises:
        SpecError: every problem that is found here or there, with its place in the files.

    """
    live: dict[str, Object | None] = {}

    def find(name: str) -> dict[str, Any] | None:
        body = _get(cluster, live, name)
        return _document(body) if body else None

    loaded = load(files, find)
    order = [job.name for job in resolve(loaded)]
    own = sorted((job for job in loaded if not job.elsewhere), key=lambda job: order.index(job.name))
    again = _restarted(own, restarts, {job.name: _get(cluster, live, job.name) for job in own})
    problems: list[Problem] = []
    judged = [_judge(cluster, job, live[job.name], problems, restart=job.name in again) for job in own]
    if problems:
        raise SpecError(problems)
    known = {job.name for job in loaded}
    missing = {(job.name, name) for job in loaded for name in parents(job) if name not in known}
    return Plan(tuple(change for change in judged if change), tuple(sorted(missing)))


def perform(change: Change, cluster: Cluster) -> None:
    """Applies what differs, in one request: a changed document without its restart would be something else."""
    if change.verb == "unchanged":
        return
    body = body_of(change.loaded, cluster.namespace)
    if notes := _notes(change):
        body["metadata"]["annotations"] = notes
    with told():
        cluster.api.apply(DINOJOBS, cluster.namespace, body)


def _notes(change: Change) -> dict[str, str]:
    """A restart stays asked for when more is submitted before the operator sees it. What another command wrote can't be
    taken away by applying, but it can be overruled: what is restarted is not cancelled any more.
    """
    old = ((change.old or {}).get("metadata") or {}).get("annotations") or {}
    if change.restart:
        return {names.RESTART: secrets.token_hex(6), **({names.CANCEL: "false"} if names.CANCEL in old else {})}
    return {names.RESTART: old[names.RESTART]} if names.RESTART in old else {}


def body_of(job: LoadedJob, namespace: str) -> Object:
    """The document as its author wrote it; the operator fills in what is left out."""
    labels = dict(job.job.metadata.labels)
    metadata: Object = {"name": job.name, "namespace": namespace, **({"labels": labels} if labels else {})}
    return {
        "apiVersion": DINOJOBS.api_version,
        "kind": DINOJOBS.kind,
        "metadata": metadata,
        "spec": job.doc.data["spec"],
    }


def _judge(
    cluster: Cluster, job: LoadedJob, old: Object | None, problems: list[Problem], *, restart: bool
) -> Change | None:
    """A dry run on the API server: schema, rules, quotas, what may still change."""
    body = body_of(job, cluster.namespace)
    try:
        with told_but_invalid():
            new = cluster.api.apply(DINOJOBS, cluster.namespace, body, dry_run=True)
    except Invalid as error:
        problems.extend(_problems(job, error, old))
        return None
    found = [*differences((old or {}).get("spec") or {}, new["spec"]), *_labels(old, new)] if old else []
    return Change(job, old, tuple(found), restart and old is not None)


class told_but_invalid(told):  # noqa: N801 - see told
    """As ``told``, but lets through what is told with file and line."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Invalid):
            super().__exit__(kind, error, trace)


def _problems(job: LoadedJob, error: Invalid, old: Object | None) -> list[Problem]:
    found = [(field, message) for field, message in error.causes if field or message] or [("", error.message)]
    return [job.doc.problem(_path(field), _worded(job.name, message, old)) for field, message in found]


def _worded(name: str, message: str, old: Object | None) -> str:
    """Without Kubernetes' preface; a value that is a whole section is only named by its kind there."""
    text = message.removeprefix("Invalid value: ").removeprefix('"object": ').strip()
    if "cannot change once the job has started" not in text or old is None:
        return text
    if "suspend the job first" in text:
        return f"{text} ({name} is {state(old)}): dinoctl suspend {name}, submit again, dinoctl resume {name}"
    return f"{text} ({name} is {state(old)}); give it a new name, or restart it when it has ended"


def _path(field: str) -> Path:
    """``spec.pretrain.data.mixture[0].weight`` as keys, as far as they stand in the document."""
    parts: list[str | int] = []
    for part in field.replace("[", ".[").split("."):
        inside = part.strip("[]")
        parts.append(int(inside) if part.startswith("[") and inside.isdigit() else inside)
    return tuple(part for part in parts if part != "")


def _labels(old: Object, new: Object) -> list[Difference]:
    before, after = (body["metadata"].get("labels") or {} for body in (old, new))
    return list(differences(before, after, path="metadata.labels"))


def _restarted(own: Sequence[LoadedJob], restarts: Collection[str], live: dict[str, Object | None]) -> set[str]:
    """Those named, and what descends from them and has begun. All must have ended."""
    by_name = {job.name: job for job in own}
    unknown = sorted(set(restarts) - set(by_name))
    if unknown:
        raise UserError(f"--restart {unknown[0]}: no such job in these files; jobs: {', '.join(by_name)}")
    again = set(restarts)
    for job in own:  # parents first
        if again & set(parents(job)) and _begun(live[job.name]):
            again.add(job.name)
    for name in sorted(again):
        body = live[name]
        if body is None and name in restarts:
            raise UserError(f"--restart {name}: there is no such job on the cluster yet; submit it without --restart")
        if body is not None and state(body) not in names.ENDED_STATES:
            because = "" if name in restarts else ", which descends from a job that is restarted"
            raise UserError(f"--restart: {name}{because} is {state(body)}; dinoctl cancel {name} first")
    return again


def _begun(body: Object | None) -> bool:
    return body is not None and (body.get("status") or {}).get("attempt") is not None


def _get(cluster: Cluster, live: dict[str, Object | None], name: str) -> Object | None:
    if name not in live:
        with told():
            try:
                live[name] = cluster.api.get(DINOJOBS, cluster.namespace, name)
            except NotFound as error:
                if error.missing_kind:
                    raise
                live[name] = None
    return live[name]


def _document(body: Object) -> dict[str, Any]:
    head = {"apiVersion": DINOJOBS.api_version, "kind": DINOJOBS.kind, "metadata": {"name": body["metadata"]["name"]}}
    return {**head, "spec": body.get("spec")}
