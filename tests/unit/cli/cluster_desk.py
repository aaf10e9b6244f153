"""The command line against an API server in memory, as it is run from a shell."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cli.main import main
from dinoctl.cluster.resources import DINOJOBS, Resource
from support.kube.memory import MemoryApi, MemoryServer


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Desk:
    """A directory, a cluster in memory, and ``run`` to type commands with."""

    root: Path
    run: Callable[..., Said]
    server: MemoryServer = field(default_factory=MemoryServer)
    connected: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api = MemoryApi(self.server, manager="dinoctl")

    def write(self, text: str, name: str = "jobs.yaml") -> str:
        (self.root / name).write_text(text)
        return name

    def job(self, name: str) -> dict[str, Any]:
        return self.api.get(DINOJOBS, "team", name)

    def status(self, name: str, **status: Any) -> None:
        """What the operator would write."""
        self.api.patch(DINOJOBS, "team", name, {"status": status}, subresource="status")

    def put(self, resource: Resource, name: str, *, labels: dict[str, str] | None = None, **body: Any) -> None:
        metadata = {"name": name, "namespace": "team", "labels": labels or {}, **body.pop("metadata", {})}
        self.api.create(resource, "team", {"metadata": metadata, **body})


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)
    for name in ("DINOCTL_TARGET", "DINOCTL_STATE_DIR", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["dinoctl", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        found = capsys.readouterr()
        return Said(code, found.out, found.err)

    desk = Desk(tmp_path, run)

    def connect(context: Any = None, kubeconfig: Any = None, **_: Any) -> MemoryApi:
        desk.connected.append((context, kubeconfig))
        return desk.api

    monkeypatch.setattr("dinoctl.cluster.connect.connect", connect)
    return desk
