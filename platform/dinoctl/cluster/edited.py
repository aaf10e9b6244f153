"""Whether somebody changed a RayJob after it was made. KubeRay ignores most of it, so it is said and not fought.

The digest leaves out what Kueue and KubeRay fill in on their own: suspend, node selectors, tolerations, affinities,
labels, annotations and defaults.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dinoctl.cluster.objects import annotations_of
from dinoctl.cluster.protocol import Object
from dinoctl.spec import names

_JOB = ("entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes")
_GROUP = ("groupName", "replicas", "minReplicas", "maxReplicas")
_CONTAINER = ("name", "image", "command", "args", "env", "resources")


def digest(rayjob: Object) -> str:
    """Of everything in it that nobody else has business with."""
    spec = rayjob["spec"]
    cluster: Mapping[str, Any] = spec.get("rayClusterSpec") or {}
    head = cluster.get("headGroupSpec") or {}
    groups = [head, *(cluster.get("workerGroupSpecs") or ())]
    content = [_part(spec, _JOB), *([_part(group, _GROUP), *_containers(group)] for group in groups)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def edited(rayjob: Object) -> bool:
    """It isn't what was rendered. Caches keep the answer instead of the whole specification."""
    if "edited" in rayjob:
        return bool(rayjob["edited"])
    rendered = annotations_of(rayjob).get(names.RENDERED)
    return rendered is not None and rendered != digest(rayjob)


def _containers(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    pod = (group.get("template") or {}).get("spec") or {}
    for container in pod.get("containers") or ():
        yield _part(container, _CONTAINER)


def _part(body: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {name: body[name] for name in fields if body.get(name) not in (None, [], {})}
