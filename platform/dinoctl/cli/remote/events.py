"""Events of a job and of everything that belongs to it, oldest first."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dinoctl.cli.remote.target import Cluster, told
from dinoctl.cluster.postmortem.digest import digest_event
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import EVENTS, PODS, RAYCLUSTERS, RAYJOBS, WORKLOADS
from dinoctl.spec import names

_GENERATED = re.compile(r"-[a-z0-9]{5}\b")
"""What Kubernetes puts behind a name to make it unique."""
_COMBINED = "(combined from similar events): "


@dataclass(frozen=True)
class Told:
    """One event in one line."""

    at: str
    warning: bool
    reason: str
    about: str
    message: str
    count: int


def events(cluster: Cluster, name: str) -> list[Told]:
    """Of one job."""
    cluster.job(name)
    with told():
        found, _ = cluster.api.list(EVENTS, cluster.namespace)
    own = _family(cluster, name)
    found = sorted(found, key=lambda event: int(event["metadata"].get("resourceVersion") or 0))
    shown = [digest_event(event) for event in found if _about(event) in own or _labelled(event, name)]
    told_ = [
        Told(
            at=one["at"],
            warning=one["type"] == "Warning",
            reason=one["reason"] or "",
            about=one["object"],
            message=one["message"],
            count=one["count"],
        )
        for one in shown
    ]
    return _folded(sorted(told_, key=lambda one: one.at))


def _folded(found: Iterable[Told]) -> list[Told]:
    """What is tried again and again with objects of new names is told once, in its newest words."""
    folds: dict[tuple[str, str, str], Told] = {}
    for one in found:
        message = one.message.removeprefix(_COMBINED)
        alike = (one.reason, one.about, _GENERATED.sub("", message))
        before = folds.pop(alike, None)
        folds[alike] = replace(one, message=message, count=one.count + (before.count if before else 0))
    return list(folds.values())


def _labelled(event: Object, name: str) -> bool:
    return (event["metadata"].get("labels") or {}).get(names.JOB) == name


def _about(event: Object) -> tuple[str, str]:
    about = event.get("involvedObject") or event.get("regarding") or {}
    return str(about.get("kind")), str(about.get("name"))


def _family(cluster: Cluster, name: str) -> set[tuple[str, str]]:
    """The job and its objects. What isn't installed or may not be read is left out."""
    from dinoctl.cluster.errors import Forbidden, NotFound

    family = {("DinoJob", name)}
    labels = f"{names.JOB}={name}"
    for resource in (RAYJOBS, RAYCLUSTERS, PODS):
        try:
            found, _ = cluster.api.list(resource, cluster.namespace, labels=labels)
        except (Forbidden, NotFound):
            continue
        family |= {(resource.kind, body["metadata"]["name"]) for body in found}
    family |= {("Job", name) for kind, name in family if kind == RAYJOBS.kind}  # its submitter's
    try:
        workloads, _ = cluster.api.list(WORKLOADS, cluster.namespace)
    except (Forbidden, NotFound):
        return family
    for body in workloads:
        owners = body["metadata"].get("ownerReferences") or ()
        if any((owner.get("kind"), owner.get("name")) in family for owner in owners):
            family.add((WORKLOADS.kind, body["metadata"]["name"]))
    return family
