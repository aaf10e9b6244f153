"""Reaching an API server: kubectl, kubeconfigs, namespaces."""

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.kube.tools import TOOLS

_LIMIT_S = 180


class KubectlFailed(Exception):
    """kubectl's own words."""


@dataclass
class Access:
    """An API server, as its administrator sees it. Files are kept under ``directory``."""

    directory: Path
    url: str
    ca: Path
    token: str = field(repr=False)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count, init=False, repr=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = self.write_kubeconfig("admin", self.token)

    def write_kubeconfig(self, user: str, token: str, namespace: str = "default", url: str = "") -> Path:
        """``url``: another way to the same server, such as a proxy."""
        authority = base64.b64encode(self.ca.read_bytes()).decode()
        server = {"server": url or self.url, "certificate-authority-data": authority}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "current-context": "test",
        }
        path = self.directory / f"kubeconfig-{user}-{next(self._numbers)}"
        path.write_text(json.dumps(document, indent=1))
        return path

    @property
    def environment(self) -> Mapping[str, str]:
        """For any program that should talk to this server as its administrator."""
        return {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubecache")}

    def kubectl(self, *arguments: str | Path, input: str | None = None, kubeconfig: Path | None = None) -> str:  # noqa: A002
        """Standard output; raises :class:`KubectlFailed`. ``kubeconfig``: as somebody else than the administrator."""
        environment = {**os.environ, **self.environment, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        done = subprocess.run(
            [str(TOOLS["kubectl"].path), *map(str, arguments)],
            env=environment,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """``kubectl get ... -o json``; for example ``get("pods", "-n", namespace)["items"]``."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return document

    def apply(self, *documents: Mapping[str, Any], strict: bool = True) -> None:
        """Server-side, as one list. Not ``strict``: unknown fields of custom resources are dropped rather than refused,
        and the API server is spared the schema of everything, which costs it seconds after every new CRD.
        """
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        validate = "--validate=strict" if strict else "--validate=ignore"
        self.kubectl("apply", "--server-side", "--force-conflicts", validate, "-f", "-", input=json.dumps(listed))

    def apply_crds(self, *folders: Path) -> None:
        """Applies CRDs and waits until the server serves them."""
        for folder in folders:
            # Server-side: KubeRay's are larger than the annotation that client-side apply writes.
            names = self.kubectl("apply", "--server-side", "--validate=ignore", "-o", "name", "-f", folder).split()
            crds = [name for name in names if name.startswith("customresourcedefinition")]
            self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)

    def namespace(self, name: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Makes one; a name that no other test has unless one is given."""
        name = name or f"test-{next(self._numbers)}"
        metadata = {"name": name, "labels": labels or {}}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, strict=False)
        return name

    def service_account_kubeconfig(self, namespace: str, name: str, url: str = "") -> Path:
        """For a ServiceAccount, made if it is not there; a token of a day."""
        metadata = {"name": name, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, strict=False)
        token = self.kubectl("create", "token", name, "-n", namespace, "--duration=24h").strip()
        return self.write_kubeconfig(f"{namespace}-{name}", token, namespace, url)
