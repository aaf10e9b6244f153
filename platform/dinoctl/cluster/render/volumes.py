"""Volumes of the pods, and their mounts: the attempt's file, scratch, shared memory and the token for progress."""

from typing import Any

from dinoctl.cluster.render.paths import ATTEMPT_DIR, CREDENTIALS, STATE
from dinoctl.handover.attempt import Attempt
from dinoctl.spec import names
from dinoctl.spec.profile import Profile

_TOKEN_SECONDS = 3600
_READ_BY_GROUP = 0o440


def ray_volumes(profile: Profile, attempt: Attempt) -> list[dict[str, Any]]:
    """Of head and workers."""
    return [
        {"name": "attempt", "configMap": {"name": _attempt_map(attempt)}},
        {"name": "state", "emptyDir": {"sizeLimit": profile.scratch}},
        {"name": "tmp", "emptyDir": {"sizeLimit": profile.scratch}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shared_memory}},
        {"name": "credentials", "projected": {"defaultMode": _READ_BY_GROUP, "sources": _credentials()}},
        *profile.volumes,
    ]


def ray_mounts(profile: Profile) -> list[dict[str, Any]]:
    """In the containers of head and workers."""
    return [
        {"name": "attempt", "mountPath": ATTEMPT_DIR, "readOnly": True},
        {"name": "state", "mountPath": STATE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - Ray's place
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "credentials", "mountPath": CREDENTIALS, "readOnly": True},
        *profile.volume_mounts,
    ]


def submitter_volumes(profile: Profile) -> list[dict[str, Any]]:
    """It has no token and no attempt."""
    return [{"name": "tmp", "emptyDir": {"sizeLimit": profile.scratch}}, *profile.volumes]


def submitter_mounts(profile: Profile) -> list[dict[str, Any]]:
    """In the submitter's container."""
    return [{"name": "tmp", "mountPath": "/tmp"}, *profile.volume_mounts]  # noqa: S108


def _attempt_map(attempt: Attempt) -> str:
    return names.rayjob_name(attempt.name, attempt.spec_hash, attempt.number)


def _credentials() -> list[dict[str, Any]]:
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
