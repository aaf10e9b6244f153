"""The command line against an API server in memory, as it is run from a shell."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cluster.resources import DINOJOBS, Resource
from support.commands import Said, typed
from support.kube.memory import MemoryApi, MemoryServer


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
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    desk = Desk(tmp_path, typed(monkeypatch, capsys))

    def connect(context: Any = None, kubeconfig: Any = None, **_: Any) -> MemoryApi:
        desk.connected.append((context, kubeconfig))
        return desk.api

    monkeypatch.setattr("dinoctl.cluster.connect.connect", connect)
    return desk
