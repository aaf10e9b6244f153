"""Which API server, with which credentials: as kubectl chooses them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException

from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.retry import Patience
from dinoctl.cluster.transport import Counter, Transport
from dinoctl.spec import names
from dinoctl.spec.errors import EnvironmentProblem

_DEFAULT = "~/.kube/config"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect(
    context: str | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    *,
    manager: str = names.MANAGER,
    connections: int = 40,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    counter: Counter | None = None,
) -> HttpApi:
    """A kubeconfig that was given or is found wins; without one, in a pod, the pod's own account.

    Raises:
        EnvironmentProblem: when there is neither, or the configuration can't be read.

    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = connections
    configuration.retries = False
    place = os.fspath(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or _DEFAULT
    found = any(Path(part).expanduser().is_file() for part in place.split(os.pathsep))
    try:
        if not found and not kubeconfig and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(configuration)
            namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
        else:
            namespace = _from_file(place, context, configuration)
    except Exception as error:  # a broken file makes the loader raise anything
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EnvironmentProblem(f"no way to a cluster from {place}: {text}; set KUBECONFIG or --kubeconfig") from error
    return HttpApi(Transport(ApiClient(configuration), counter), namespace, manager, patience)


def _from_file(place: str, context: str | None, configuration: Configuration) -> str:
    contexts, current = config.list_kube_config_contexts(place)
    known: dict[str, Mapping[str, Any]] = {entry["name"]: entry["context"] for entry in contexts}
    if context is not None and context not in known:
        raise ConfigException(f"there is no context {context!r}; contexts: {', '.join(sorted(known))}")
    config.load_kube_config(place, context, configuration, persist_config=False)
    chosen = known[context] if context else current["context"]
    return str(chosen.get("namespace") or "default")
