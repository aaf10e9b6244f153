"""What the other tests of this folder take for granted of their cluster."""

import hashlib
import json
import time
import urllib.request
from typing import Any

from support.kube.cluster import Cluster
from support.kube.layers import CHECKOUT
from support.kube.manifests import pod, queues, ray_job

_PROBE = """
import hashlib, json, os, pathlib, socket, urllib.request
import boto3, dinoctl, torch
from dinoctl.model.native import build
boto3.client("s3").put_object(Bucket="probe", Key="hello", Body=b"from a pod")
def writable(path):
    try:
        open(os.path.join(path, "x"), "w").close()
        return True
    except OSError:
        return False
print(json.dumps({
    "uid": os.getuid(),
    "dinoctl": dinoctl.__file__,
    "code": hashlib.sha256(b"".join(
        path.read_bytes() for path in sorted(pathlib.Path(dinoctl.__file__).parent.rglob("*.py"))
    )).hexdigest(),
    "kernels": build.load()._name,
    "writable": [path for path in ("/", "/opt/dinoctl", "/etc", "/tmp") if writable(path)],
    "api": socket.gethostbyname("kubernetes.default.svc.cluster.local"),
    "mlflow": urllib.request.urlopen(os.environ["MLFLOW_TRACKING_URI"] + "/health").read().decode(),
    "sum": int(torch.arange(4).sum()),
}))
"""

_TASK = """
import os, ray, socket
ray.init()
task = ray.remote(num_cpus=1)(lambda: (socket.gethostname(), os.getuid()))
print("driver", socket.gethostname(), "task", ray.get(task.remote()))
"""


_CLIENT = """
import pathlib, ssl, sys, urllib.error, urllib.request
mounted = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
namespace = (mounted / "namespace").read_text()
context = ssl.create_default_context(cafile=mounted / "ca.crt")
for kind in ("configmaps", "secrets"):
    url = f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}/{kind}"
    headers = {"Authorization": "Bearer " + (mounted / "token").read_text()}
    try:
        print(kind, urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context).status)
    except urllib.error.HTTPError as error:
        print(kind, error.code)
"""


def _phase(kube: Cluster, namespace: str, name: str, limit_s: float = 180) -> str:
    deadline = time.monotonic() + limit_s
    while True:
        phase = str(kube.get("pod", name, "-n", namespace)["status"].get("phase"))
        if phase in ("Succeeded", "Failed") or time.monotonic() > deadline:
            return phase
        time.sleep(0.3)


def test_a_restricted_pod_runs_the_code_under_test(kube: Cluster, namespace: str) -> None:
    kube.s3.bucket("probe")
    kube.apply(pod(namespace, "probe", ["python", "-c", _PROBE], kube.pod_environment))
    phase = _phase(kube, namespace, "probe")
    output = kube.kubectl("logs", "probe", "-n", namespace)
    assert phase == "Succeeded", output
    said = json.loads(output)
    assert said.pop("dinoctl").startswith("/opt/dinoctl/lib/")
    code = b"".join(path.read_bytes() for path in sorted((CHECKOUT / "platform/dinoctl").rglob("*.py")))
    assert said.pop("code") == hashlib.sha256(code).hexdigest(), "its layer is of another time"
    assert said.pop("kernels").startswith("/opt/dinoctl/share/"), "they were built again"
    assert said == {"uid": 1000, "writable": ["/tmp"], "api": "10.96.0.1", "mlflow": "OK", "sum": 6}
    assert kube.s3.client().get_object(Bucket="probe", Key="hello")["Body"].read() == b"from a pod"


def test_the_command_line_runs_in_a_pod(kube: Cluster, namespace: str) -> None:
    kube.apply(pod(namespace, "help", ["dinoctl", "--help"]))
    assert _phase(kube, namespace, "help") == "Succeeded"
    assert "validate" in kube.kubectl("logs", "help", "-n", namespace)


def test_a_pod_reaches_the_api_server_with_the_rights_of_its_account(kube: Cluster, namespace: str) -> None:
    kube.kubectl("create", "serviceaccount", "reader", "-n", namespace)
    kube.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", namespace)
    subject = f"--serviceaccount={namespace}:reader"
    kube.kubectl("create", "rolebinding", "reader", "--role=reader", subject, "-n", namespace)
    kube.apply(pod(namespace, "client", ["python", "-c", _CLIENT], account="reader"))
    phase = _phase(kube, namespace, "client")
    output = kube.kubectl("logs", "client", "-n", namespace)
    assert (phase, output.split()) == ("Succeeded", ["configmaps", "200", "secrets", "403"]), output


def test_mlflow_is_reached_from_here(kube: Cluster) -> None:
    with urllib.request.urlopen(f"{kube.mlflow}/health", timeout=10) as answer:
        assert answer.read() == b"OK"


def _job(kube: Cluster, namespace: str) -> dict[str, Any]:
    status: dict[str, Any] = kube.get("rayjob", "probe", "-n", namespace).get("status", {})
    return status


def test_a_ray_job_with_tokens_runs_under_kueue(kube: Cluster, namespace: str) -> None:
    kube.apply(*queues(namespace), ray_job(namespace, "probe", f"python -c '{_TASK}'"))
    deadline = time.monotonic() + 300
    while _job(kube, namespace).get("jobDeploymentStatus") not in ("Complete", "Failed"):
        assert time.monotonic() < deadline, kube.kubectl("describe", "rayjobs,pods", "-n", namespace)
        time.sleep(1)
    status = _job(kube, namespace)
    assert status["jobStatus"] == "SUCCEEDED", status
    output = kube.kubectl("logs", "-l", "job-name=probe", "--tail=-1", "-n", namespace)
    assert "task" in output
    assert "1000)" in output
    workload = kube.get("workloads", "-n", namespace)["items"][0]
    assert {"Admitted", "Finished"} <= {
        one["type"] for one in workload["status"]["conditions"] if one["status"] == "True"
    }
