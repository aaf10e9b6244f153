"""The programs of the test clusters: what they are built from, and where they lie once built.

Each is pinned by the ``go.mod`` and ``go.sum`` of a folder under ``modules/``. A finished program lies in a folder of
the cache whose name holds its version and a hash of all that pins it, so an old one is never taken for a new one.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
_KUBERNETES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
_HELM = "helm.sh/helm/v3"


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoctl-kube"


@dataclass(frozen=True)
class Tool:
    """One program, or (without a package) the plain files of a module: its CRDs, roles and webhooks."""

    name: str
    folder: str
    module: str
    package: str = ""
    variables: tuple[str, ...] = ()
    """Linker's ``-X``: what a release says of itself; ``{version} {minor}`` are filled in."""
    files: tuple[tuple[str, str], ...] = ()
    """(folder in the module, folder here)."""

    @property
    def source(self) -> Path:
        return MODULES / self.folder

    @cached_property
    def version(self) -> str:
        found = re.search(
            rf"^(?:require)?\s*{re.escape(self.module)} (v\S+)", (self.source / "go.mod").read_text(), re.M
        )
        assert found, f"{self.module} is not in {self.source / 'go.mod'}"
        return found[1]

    @property
    def linker(self) -> str:
        minor = self.version.split(".")[1]
        return " ".join(["-s -w", *(f"-X {text.format(version=self.version, minor=minor)}" for text in self.variables)])

    @property
    def home(self) -> Path:
        """The folder in the cache."""
        pinned = [(self.source / name).read_bytes() for name in ("go.mod", "go.sum")]
        pinned += [path.read_bytes() for path in sorted(self.source.glob("*.go"))]
        content = hashlib.sha256(b"".join([*pinned, repr((self.package, self.linker, self.files)).encode()]))
        return cache() / f"{self.name}-{self.version}-{content.hexdigest()[:8]}"

    @property
    def path(self) -> Path:
        """The program, or the folder of files."""
        return self.home / self.name if self.package else self.home

    @property
    def built(self) -> bool:
        return self.path.exists()


def _kubernetes(name: str) -> Tool:
    says = [
        f"{package}.{text}"
        for package in _KUBERNETES
        for text in ("gitVersion={version}", "gitMajor=1", "gitMinor={minor}")
    ]
    return Tool(name, "kubernetes", "k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}", tuple(says))


def _helm() -> Tool:
    # Helm templates for the Kubernetes version that it was linked for, and for 1.20 if nobody told it
    capabilities = [
        f"{_HELM}/pkg/{p}.k8sVersion{part}" for p in ("chartutil", "lint/rules") for part in ("Major=1", "Minor=34")
    ]
    return Tool(
        "helm", "helm", _HELM, f"{_HELM}/cmd/helm", (f"{_HELM}/internal/version.version={{version}}", *capabilities)
    )


_KUBERAY = "github.com/ray-project/kuberay/ray-operator"
_KUEUE = "sigs.k8s.io/kueue"
_MONITORING, _DEFINITIONS = "github.com/prometheus-operator/prometheus-operator", "prometheus-operator-crd"
TOOLS = {
    tool.name: tool
    for tool in (
        # In the order in which the tests need them.
        Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl"),
        Tool("kuberay-files", "kuberay", _KUBERAY, files=(("config/crd/bases", "crd"), ("config/rbac", "rbac"))),
        Tool(
            "kueue-files",
            "kueue",
            _KUEUE,
            files=tuple(
                (f"config/components/{a}", b)
                for a, b in (("crd/bases", "crd"), ("rbac", "rbac"), ("webhook", "webhook"))
            ),
        ),
        _kubernetes("kube-controller-manager"),
        _helm(),
        Tool(
            "prometheus-files", "prometheus-operator", _MONITORING, files=(("example/prometheus-operator-crd", "crd"),)
        ),
        Tool("check-rules", "prometheus", "github.com/prometheus/prometheus", "."),
        *map(_kubernetes, ("kube-scheduler", "kubelet", "kube-proxy")),
        Tool("coredns", "coredns", "github.com/coredns/coredns", "."),
        Tool("ray-operator", "kuberay", _KUBERAY, _KUBERAY),
        Tool("kueue", "kueue", _KUEUE, f"{_KUEUE}/cmd/kueue", (f"{_KUEUE}/pkg/version.GitVersion={{version}}",)),
        Tool("kwok", "kwok", "sigs.k8s.io/kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    )
}
API_SERVER = (
    *("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kuberay-files", "kueue-files", "helm"),
    *("prometheus-files", "check-rules"),
)
"""What tests/kube needs; tests/cluster needs all."""


def lacking(names: tuple[str, ...] = tuple(TOOLS)) -> list[str]:
    """What keeps tests with these programs from running: nothing, or one line."""
    missing = [name for name in names if not TOOLS[name].built]
    return [f"{', '.join(missing)} not built (make kube-tools builds them)"] if missing else []
