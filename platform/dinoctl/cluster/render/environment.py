"""Environment of the pods: Ray's, NCCL's and ours are fixed; the profile adds others, some from Secrets."""

from typing import Any

from dinoctl.cluster.render.paths import CACHE
from dinoctl.spec.profile import Network, Profile


def submitter_environment(profile: Profile) -> list[dict[str, Any]]:
    """Of the pod that only submits: no secret of the profile is its business."""
    return _listed({**_plain(_COMMON), **_plain(profile.env)})


def ray_environment(profile: Profile, attempt: int, drain: float) -> list[dict[str, Any]]:
    """Of head and workers. ``drain``: seconds that Ray leaves its node's work after SIGTERM."""
    ours = {
        **_COMMON,
        "DINOCTL_ATTEMPT": str(attempt),
        "DINOCTL_CACHE_DIR": CACHE,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{drain:g}",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of a short grace, Ray's own 5 s are a lot
        **_network(profile.network),
    }
    fields = {"DINOCTL_POD": _field("metadata.name"), "DINOCTL_NODE": _field("spec.nodeName")}
    return _listed({**_plain(ours), **fields, **_plain(profile.env), **_secrets(profile)})


_COMMON = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}  # noqa: S108 - the root is read-only


def _network(network: Network) -> dict[str, str]:
    values = {
        "NCCL_SOCKET_IFNAME": network.interface,
        "GLOO_SOCKET_IFNAME": network.interface,
        "NCCL_IB_HCA": network.ib_devices,
    }
    return {name: value for name, value in values.items() if value}


def _listed(values: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, **value} for name, value in values.items()]


def _plain(values: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value} for name, value in values.items()}


def _field(path: str) -> dict[str, Any]:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def _secrets(profile: Profile) -> dict[str, dict[str, Any]]:
    return {
        name: {"valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}}}
        for name, source in profile.secret_env.items()
    }
