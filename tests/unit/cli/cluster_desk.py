"""The command line against an API server in memory, as it is run from a shell."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cluster.resources import DINOJOBS, Resource
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.lifecycle import Attempt, AttemptState, Status
from dinoctl.lifecycle.codec import encode
from support.commands import Said, typed
from support.kube.memory import MemoryApi, MemoryServer

NS = ("-n", "team")
DINOJOB = {"apiVersion": "dinoctl.io/v1alpha1", "kind": "DinoJob", "metadata": {"name": "vitg"}}
PRETRAIN = {"pretrain": {"data": {"source": "s3://b/d"}}, "compute": {"workers": 8}}


def attempt(number: int, state: AttemptState = AttemptState.RUNNING) -> dict[str, Any]:
    """What a status says of its newest attempt."""
    ended = 2.0 if state is AttemptState.ENDED else None
    made = Attempt(number, state, "hash", intended_at=1.0, ended_at=ended)
    return {"attempt": number, "lifecycle": encode(Status("hash", next_attempt=number + 1, attempts=(made,)))}


RUNNING = {
    "state": "Running",
    "message": "attempt 3 is running, step 120 of 1000",
    "stage": "pretrain",
    "queue": "vision",
    "workers": 256,
    **attempt(3),
    "step": 120,
    "steps": 1000,
    "imagesPerSecond": 4711.4,
    "eta": "3h12m",
    "etaSeconds": 11520,
}


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


def submitted(desk: Desk, name: str = "vitg", **status: Any) -> None:
    desk.put(DINOJOBS, name, spec=PRETRAIN)
    if status:
        desk.status(name, **status)


def with_logs(desk: Desk) -> AttemptStore:
    """A job whose third attempt runs, and has left some lines."""
    uri = str(desk.root / "models" / "vitg" / "run-0001")
    submitted(desk, **RUNNING, storage=uri)
    store = AttemptStore(open_storage(uri), 3)
    store.write_log("driver", 0, b"driver 1\ndriver 2\n")
    for rank in range(2):
        store.write_log(f"rank-{rank:05d}", 0, f"rank {rank}\n".encode())
    return store
