"""The Helm chart on a real API server: every kind of values, and a life of a release beside a running job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart import CHART, CI, MANIFESTS, ROOT, ChartError, helm, manifests, template
from support.guides import documents
from support.kube.apiserver import ApiServer, api_server
from support.kube.tools import TOOLS
from support.rendering import PROFILES, attempt, jobs, rendered

HELM = TOOLS["helm"].path
SMALL = CI / "small.yaml"
MATRIX = {
    "gpu": [CI / "gpu.yaml"],
    "small": [SMALL],
    "mlflow": [CI / "mlflow.yaml"],
    "manifests": [CI / "manifests.yaml"],
    "no-policies": [CI / "gpu.yaml", "networkPolicy.enabled=false", "mlflow.auth.enabled=false"],
    "other-namespaces": [SMALL, "operator.config.namespaces={one,two,one}"],
}


def _made(*values: Path | str, namespace: str = "dinoctl-system") -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(template(HELM, *values, namespace=namespace)) if one]


def test_the_manifests_are_what_the_chart_makes() -> None:
    assert MANIFESTS.read_text(encoding="utf-8") == manifests(HELM), "make manifests"


@pytest.mark.parametrize("values", sorted(CI.glob("*.yaml")), ids=lambda path: path.stem)
def test_lint(values: Path) -> None:
    helm(HELM, "lint", "--strict", str(CHART), "-f", str(values))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("operator.config.profiles.cpu.queu=x", "'/operator/config/profiles/cpu': additional properties 'queu'"),
        ("operator.config.profiles.cpu.allowTags=false", "'/operator/config/profiles/cpu/image'"),
        ("operator.config.profiles.Big.image=x", "'/operator/config/profiles': additional properties 'Big'"),
        ("operator.config.profiles.cpu.drain.worker=soon", "'/operator/config/profiles/cpu/drain/worker'"),
        ("operator.config.namespaces={Upper}", "'/operator/config/namespaces/0'"),
        ("operator.replicas=two", "'/operator/replicas'"),
        ("operator.runAs=0", "'/operator/runAs'"),
        ("image.name=", "'/image/name'"),
        ("mlflow.auth.enabled=true", "'/mlflow/auth/secret'"),
        ("netwrokPolicy.enabled=true", "additional properties 'netwrokPolicy'"),
    ],
)
def test_wrong_values_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(ChartError) as told:
        template(HELM, SMALL, setting)
    assert message in str(told.value)


def test_large_numbers_reach_the_operator_whole() -> None:
    (config,) = (
        one for one in _made(SMALL, "operator.config.memory=1073741824") if one["metadata"]["name"] == "dinoctl-config"
    )
    assert yaml.safe_load(config["data"]["operator.yaml"])["memory"] == 1073741824


def test_another_configuration_rolls_the_pods() -> None:
    def checksum(*values: Path | str) -> str:
        (one,) = (made for made in _made(*values) if made["kind"] == "Deployment")
        return str(one["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum(SMALL) == checksum(SMALL, "operator.replicas=2")
    assert checksum(SMALL) != checksum(SMALL, "operator.config.workers=4")


@pytest.fixture
def monitoring(api: ApiServer) -> None:
    for plural in ("servicemonitors", "prometheusrules"):
        api.apply_crds(TOOLS["prometheus-files"].path / "crd" / f"monitoring.coreos.com_{plural}.yaml")


@pytest.mark.parametrize("case", MATRIX)
def test_the_api_server_takes_everything(api: ApiServer, monitoring: None, namespace: str, case: str) -> None:
    made = _made(*MATRIX[case], namespace=namespace)
    for one in made:
        if (where := one["metadata"].get("namespace")) not in (None, namespace):
            api.namespace(where)
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    told = api.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", input=listed
    )
    assert told.count("serverside-applied") == len(made)


def _judged(groups: list[dict[str, Any]]) -> str:
    """What Prometheus says of groups of rules; nothing when it takes them."""
    rules = yaml.safe_dump({"groups": groups})
    done = subprocess.run([TOOLS["check-rules"].path], input=rules, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_prometheus_takes_the_rules_and_what_the_dashboard_asks() -> None:
    (rule,) = (one for one in _made(*MATRIX["gpu"]) if one["kind"] == "PrometheusRule")
    groups = rule["spec"]["groups"]
    assert _judged(groups) == ""
    panels = json.loads((CHART / "dashboards" / "dinoctl.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert _judged([{"name": "dashboard", "rules": [{"record": "asked", "expr": one} for one in asked]}]) == ""
    groups[0]["rules"][0]["expr"] += ")"
    groups[0]["rules"][1]["annotations"]["summary"] = "{{ $labels.job"
    told = _judged(groups)
    assert "could not parse expression" in told
    assert "unclosed action" in told


def test_the_api_server_takes_the_examples_of_the_guide(api: ApiServer, tmp_path: Path) -> None:
    """Also that its profile's queue is the one that it makes."""
    found = documents(ROOT / "docs" / "cluster.md")
    (values,) = (one for one in found if "operator" in one)
    queues = [one for one in found if one.get("apiVersion", "").startswith("kueue.x-k8s.io/")]
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    made = [one for one in _made(tmp_path / "values.yaml") if one["kind"] != "CustomResourceDefinition"]
    for where in ("vision", "dinoctl-system"):
        api.namespace(where)
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*made, *queues]})
    told = api.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=listed)
    assert told.count("serverside-applied") == len(made) + len(queues) > len(made) + 3
    profile = values["operator"]["config"]["profiles"]["a100"]
    named = {one["kind"]: one["metadata"] for one in queues}
    assert named["LocalQueue"] == {"name": profile["queue"], "namespace": "vision"}
    assert named["WorkloadPriorityClass"]["name"] == profile["priorityClass"]


@pytest.mark.parametrize("case", ["gpu", "mlflow"])
def test_pods_of_the_chart_are_restricted(api: ApiServer, case: str) -> None:
    where = api.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    for one in _made(*MATRIX[case], namespace=where):
        if one["kind"] == "Deployment":
            template_ = one["spec"]["template"]
            spec = {**template_["spec"], "serviceAccountName": "default"}
            spec.pop("priorityClassName", None)
            _dry_run_pod(api, where, {**template_, "spec": spec})


def _dry_run_pod(api: ApiServer, namespace: str, template_: dict[str, Any]) -> None:
    metadata = {**template_["metadata"], "name": "pod", "namespace": namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template_["spec"]}
    api.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))


# A release's life ----------------------------------------------------------------------------------------------------


class Release:
    """Helm against one namespace."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self._api, self.namespace = api, namespace

    def __call__(self, *arguments: str) -> str:
        environment = {**self._api.environment, "PATH": "/usr/bin:/bin", "HOME": str(self._api.directory)}
        return helm(HELM, *arguments, "--namespace", self.namespace, environment=environment)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[ApiServer]:
    """Another server, since the definition of DinoJob comes and goes with a release."""
    with api_server(tmp_path_factory.mktemp("release"), controllers=True) as server:
        yield server


@pytest.fixture
def release(own: ApiServer) -> Iterator[Release]:
    yield Release(own, own.namespace())
    own.kubectl("delete", "crd", "dinojobs.dinoctl.io", "--ignore-not-found", "--timeout=60s")


def _running_job(api: ApiServer, namespace: str) -> list[tuple[str, str]]:
    """A DinoJob and its attempt's objects, as an operator leaves them; kinds and names of what must not change."""
    job = jobs("digits.yaml")[1]
    api.apply({**job.to_dict(), "metadata": {"name": job.name, "namespace": namespace}})
    uid = api.get("dinojob", job.name, "-n", namespace)["metadata"]["uid"]
    objects = rendered(attempt(job), PROFILES["cpu"])
    for one in objects:
        one["metadata"]["namespace"] = namespace
        one["metadata"]["ownerReferences"][0]["uid"] = uid
        if one["kind"] == "RoleBinding":
            one["subjects"][0]["namespace"] = namespace
    api.apply(*objects)
    return [("DinoJob", job.name), *((one["kind"], one["metadata"]["name"]) for one in objects)]


def _versions(api: ApiServer, namespace: str, objects: list[tuple[str, str]]) -> list[tuple[str, str]]:
    found = [api.get(kind, name, "-n", namespace)["metadata"] for kind, name in objects]
    return [(one["uid"], one["resourceVersion"]) for one in found]


def test_install_upgrade_rollback_uninstall_beside_a_running_job(own: ApiServer, release: Release) -> None:
    api, where = own, release.namespace
    said = release("install", "dinoctl", str(CHART), "-f", str(SMALL))
    assert f"watches: {where}\nProfiles: cpu (every job must name one: spec.profile)\n" in said
    assert "Only cluster administrators may submit so far: name others in rbac.users." in said
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/dinojobs.dinoctl.io")
    objects = _running_job(api, where)
    before = _versions(api, where, objects)

    release(
        "upgrade", "dinoctl", str(CHART), "-f", str(SMALL), "--set", "operator.config.workers=4,operator.replicas=3"
    )
    assert api.get("deployment", "dinoctl-operator", "-n", where)["spec"]["replicas"] == 3
    assert _versions(api, where, objects) == before
    release("rollback", "dinoctl", "1")
    assert api.get("deployment", "dinoctl-operator", "-n", where)["spec"]["replicas"] == 1
    assert _versions(api, where, objects) == before
    release("uninstall", "dinoctl", "--wait")
    assert api.get("deployments", "-n", where)["items"] == []
    assert _versions(api, where, objects) == before, "the job's definition, and so the job, outlives the release"
    release("install", "dinoctl", str(CHART), "-f", str(SMALL))
    assert _versions(api, where, objects) == before


def test_an_upgrade_brings_the_definition_too(own: ApiServer, release: Release) -> None:
    api = own
    release("install", "dinoctl", str(CHART), "-f", str(SMALL))
    patch = '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}]'
    api.kubectl("patch", "crd", "dinojobs.dinoctl.io", "--type=json", "-p", patch)
    release("upgrade", "dinoctl", str(CHART), "-f", str(SMALL))
    assert api.get("crd", "dinojobs.dinoctl.io")["spec"]["versions"][0]["additionalPrinterColumns"]
