"""What is asked of plain Kubernetes objects again and again. Nothing raises for a field that is missing."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from dinoctl.cluster.protocol import Object
from dinoctl.spec import names


class Key(NamedTuple):
    """One object of a kind."""

    namespace: str
    name: str


def key_of(body: Object) -> Key:
    """Where it is."""
    return Key(body["metadata"].get("namespace", ""), body["metadata"]["name"])


def uid_of(body: Object) -> str:
    """Which one it is, among all that ever had its name."""
    return str(body["metadata"].get("uid", ""))


def labels_of(body: Object) -> Mapping[str, str]:
    """Its labels."""
    return body["metadata"].get("labels") or {}


def annotations_of(body: Object) -> Mapping[str, str]:
    """Its annotations."""
    return body["metadata"].get("annotations") or {}


def attempt_of(body: Object) -> int | None:
    """Which attempt it belongs to."""
    text = labels_of(body).get(names.ATTEMPT, "")
    return int(text) if text.isdigit() else None


def deleting(body: Object) -> bool:
    """Somebody has asked for its deletion."""
    return bool(body["metadata"].get("deletionTimestamp"))


def owned_by(body: Object, uid: str) -> bool:
    """Whether ``uid`` is among its owners."""
    return any(owner.get("uid") == uid for owner in body["metadata"].get("ownerReferences") or ())


def owner_of(job: Object) -> dict[str, Any]:
    """A reference by which whatever belongs to the job goes away with it."""
    return {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "name": job["metadata"]["name"],
        "uid": uid_of(job),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def seconds(timestamp: Any) -> float | None:
    """An RFC 3339 time as seconds since the epoch."""
    if not isinstance(timestamp, str):
        return None
    try:
        return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def condition(body: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    """A condition in its status; nothing when there is none."""
    found: Iterable[Mapping[str, Any]] = ((body or {}).get("status") or {}).get("conditions") or ()
    return next((one for one in found if one.get("type") == kind), {})
