"""A real etcd and kube-apiserver on loopback, without root: ``with api_server(tmp_path) as api``.

RBAC is on, ServiceAccounts get real tokens, PodSecurity is enforced as namespaces ask for it, and the CRDs of KubeRay
and Kueue are there. With ``controllers=True`` kube-controller-manager runs beside it: without it nobody collects
garbage, empties a deleted namespace, or makes the ``default`` ServiceAccount. No node, so pods stay pending.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.kube import certs
from support.kube.access import Access
from support.kube.processes import Program, answers, free_port
from support.kube.tools import TOOLS

_NAMES = tuple(f"DNS:kubernetes{end}" for end in ("", ".default", ".default.svc", ".default.svc.cluster.local"))


class ApiServer(Access):
    """A control plane. ``address``: where nodes reach it; without one it is for this machine's loopback only."""

    def __init__(self, directory: Path, address: str = "", port: int = 0) -> None:
        self.port, self._address = port or free_port(), address
        self.certificates = certs.make(directory / "certs", [*self._addresses(), "DNS:localhost", *_NAMES])
        super().__init__(
            directory, f"https://{address or '127.0.0.1'}:{self.port}", self.certificates.ca, secrets.token_hex(16)
        )
        (directory / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self.etcd = self._program("etcd", *self._etcd_flags())
        self.server = self._program("kube-apiserver", *self._server_flags())
        self.controllers = self._program("kube-controller-manager", *self._controller_flags())

    def start(self) -> None:
        """Starts etcd and the API server and waits until both answer."""
        self.start_etcd()
        self.server.start()
        self.wait()

    def wait(self, limit_s: float = 300) -> None:
        """Until the API server is ready."""
        self.server.wait(lambda: answers(f"{self.url}/readyz", self.ca), limit_s)

    def stop(self) -> None:
        """Stops everything, at once."""
        for program in (self.controllers, self.server, self.etcd):
            program.stop()

    def restart(self, *, kill: bool = False) -> None:
        """The API server alone: its port, etcd and the objects stay. ``kill``: without draining its connections."""
        self.server.stop(kill=kill)
        self.server.start()
        self.wait()

    def stop_etcd(self) -> None:
        """Killed: what clients were told is kept only as far as etcd has written it."""
        self.etcd.stop()

    def start_etcd(self) -> None:
        """On the same data."""
        self.etcd.start()
        self.etcd.wait(lambda: answers(f"{self._etcd_url}/readyz"), 120)

    def _program(self, name: str, *flags: str) -> Program:
        return Program([TOOLS[name].path, *flags], self.directory / "log" / f"{name}.log")

    def _addresses(self) -> list[str]:
        return [f"IP:{address}" for address in ("127.0.0.1", "10.96.0.1", self._address) if address]

    def _etcd_flags(self) -> list[str]:
        peer = f"http://127.0.0.1:{free_port()}"
        return [
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",  # survives its own death, not the machine's
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _server_flags(self) -> list[str]:
        made = self.certificates
        if self._address:
            reach = ["--bind-address=0.0.0.0", f"--advertise-address={self._address}"]
        else:  # a loopback address can't be the endpoint of the kubernetes Service
            reach = ["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]
        return [
            *reach,
            f"--etcd-servers={self._etcd_url}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={made.certificate}",
            f"--tls-private-key-file={made.key}",
            f"--client-ca-file={made.ca}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={made.signer}",
            f"--service-account-key-file={made.signer}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _controller_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.certificates.signer}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=200",  # 20 otherwise: a minute for the taints of hundreds of nodes
            "--kube-api-burst=400",
        ]


@contextmanager
def api_server(directory: Path, *, controllers: bool = False, crds: Sequence[Path] = ()) -> Iterator[ApiServer]:
    """``crds``: files or folders beside KubeRay's and Kueue's, applied before the controllers start: these look for new
    kinds only every half minute.
    """
    directory.mkdir(parents=True, exist_ok=True)
    api = ApiServer(directory)
    try:
        api.start()
        api.apply_crds(*(TOOLS[name].path / "crd" for name in ("kuberay-files", "kueue-files")), *crds)
        if controllers:
            api.controllers.start()
            api.controllers.wait(lambda: "default" in api.kubectl("get", "sa", "-n", "default", "-o", "name"))
        yield api
    finally:
        api.stop()
