"""KubeRay's and Kueue's own operators, as processes in the cluster's network: each with its ServiceAccount's token and
the role that its project ships, no more.
"""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from support.kube.apiserver import ApiServer
from support.kube.processes import Program, answers
from support.kube.tools import TOOLS

_WEBHOOK_PORT = 9443
_FRAMEWORKS = ("batch/job", "ray.io/rayjob", "ray.io/raycluster")
_GROUPS = {"", "batch", "ray.io", "kueue.x-k8s.io"}
_PLURALS = {
    *("jobs", "rayjobs", "rayclusters", "clusterqueues", "cohorts", "localqueues", "resourceflavors", "workloads"),
    "workloads/status",
}
_LIMIT_S = 300


def start_kuberay(api: ApiServer) -> None:
    flags = ("--enable-leader-election=false", "--metrics-addr=127.0.0.1:18080")
    probe = "127.0.0.1:18082"
    operator = _operator(
        api, "ray-operator", "kuberay-files", "kuberay-operator", *flags, f"--health-probe-bind-address={probe}"
    )
    operator.wait(lambda: answers(f"http://{probe}/readyz"), _LIMIT_S)


def start_kueue(api: ApiServer, address: str) -> None:
    """Its webhooks are told to the API server once it can answer them: until then they would block what they guard."""
    # It reads the certificate of its metrics from this path, whatever it is told.
    metrics = Path("/etc/kueue/metrics/certs")
    metrics.mkdir(parents=True)
    for path in (api.certificates.certificate, api.certificates.key):
        shutil.copy(path, metrics)
    probe = "127.0.0.1:18083"
    config = api.directory / "kueue.json"
    config.write_text(json.dumps(_kueue_config(probe, api.certificates.folder)))
    flags = (f"--config={config}", "--feature-gates=VisibilityOnDemand=false")
    operator = _operator(api, "kueue", "kueue-files", "manager-role", *flags)
    operator.wait(lambda: answers(f"http://{probe}/readyz"), _LIMIT_S)
    api.apply(*_webhooks(api.ca.read_bytes(), f"https://{address}:{_WEBHOOK_PORT}"), strict=False)


def _operator(api: ApiServer, program: str, files: str, role: str, *flags: str) -> Program:
    """Starts a program as a ServiceAccount of its own that is bound to ``role``."""
    api.kubectl("apply", "--server-side", "--validate=ignore", "-f", TOOLS[files].path / "rbac/role.yaml")
    namespace = api.namespace(f"{program}-system")
    kubeconfig = api.service_account_kubeconfig(namespace, program)
    api.kubectl(
        "create", "clusterrolebinding", program, f"--clusterrole={role}", f"--serviceaccount={namespace}:{program}"
    )
    log = api.directory / "log" / f"{program}.log"
    operator = Program([TOOLS[program].path, *flags], log, {"KUBECONFIG": str(kubeconfig)})
    operator.start()
    return operator


def _kueue_config(probe: str, certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": probe},
        "metrics": {"bindAddress": "127.0.0.1:18084"},
        "webhook": {"port": _WEBHOOK_PORT, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 50, "burst": 100},
        "integrations": {"frameworks": list(_FRAMEWORKS)},
    }


def _webhooks(authority: bytes, url: str) -> list[dict[str, Any]]:
    """Kueue's webhook configurations, led to a process in place of a Service, for the kinds that it watches here: those
    of the others would refuse everything.
    """
    path = TOOLS["kueue-files"].path / "webhook/manifests.yaml"
    documents: list[dict[str, Any]] = [document for document in YAML(typ="safe").load_all(path) if document]
    for document in documents:
        document["metadata"]["name"] = f"kueue-{document['metadata']['name']}"
        document["webhooks"] = [hook for hook in document["webhooks"] if _watched(hook)]
        for hook in document["webhooks"]:
            service = hook["clientConfig"].pop("service")
            hook["clientConfig"] = {"url": url + service["path"], "caBundle": base64.b64encode(authority).decode()}
    return documents


def _watched(hook: dict[str, Any]) -> bool:
    hook["rules"] = [
        rule for rule in hook["rules"] if set(rule["apiGroups"]) <= _GROUPS and set(rule["resources"]) <= _PLURALS
    ]
    return bool(hook["rules"])
