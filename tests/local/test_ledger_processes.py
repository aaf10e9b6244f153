"""Writers in processes of their own, on a real S3 server and on a directory: killed in every phase of a checkpoint, and
two attempts at once. What counts afterwards is whole and from one attempt; what is left over is collected.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS, Commit, Ledger
from dinoctl.handover.outcome import Outcome
from dinoctl.training.engines.base import Slice
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity
from support.s3server import S3Server

pytestmark = pytest.mark.timeout(600)

SIZE = 10_000_000  # elements of two ranks; 40 MB, so two parts of a multipart upload a rank
SMALL = 200_000


def value(step: int, attempt: int) -> float:
    """What every element is: tells step and attempt."""
    return float(100 * step + attempt)


def write(ledger: Ledger, step: int, attempt: int, keep: int = 2, size: int = SIZE) -> None:
    """Both ranks of an attempt, each with its writer."""
    writers = []
    for rank in range(2):
        identity = WriterIdentity(attempt, rank, 2, "spec", "run", 0, {})
        writers.append(LedgerWriter(ledger, identity, keep=keep, commit_timeout_s=60))
        half = torch.full((size // 2,), value(step, attempt))
        writers[-1].save(step, [Slice("t", "param", (size,), rank * size // 2, half)])
    try:
        for one in writers:
            one.wait()
    finally:
        for one in writers:
            one.close()


def begin(ledger: Ledger, attempt: int) -> int:
    """As an attempt begins: the step that it goes on from."""
    ledger.begin(attempt)
    ledger.collect_orphans(attempt)
    head = ledger.head("spec")
    return head.step if head else 0


def read(ledger: Ledger, step: int) -> tuple[Commit, torch.Tensor]:
    commit = ledger.commit(step)
    assert commit is not None
    return commit, Checkpoint(ledger.storage, commit).tensor("param", "t")


def assert_whole(ledger: Ledger, size: int = SIZE) -> None:
    """Every committed step is of the attempt that committed it, from the first element to the last."""
    for step in ledger.steps():
        commit, tensor = read(ledger, step)
        assert torch.equal(tensor, torch.full((size,), value(step, commit.attempt))), step
        assert {key.split("/")[1] for key in commit.manifests} == {f"a{commit.attempt:04d}"}


# Steps 1 and 2 are there, step 3 is written (so retention removes step 1), and the process dies in the given phase.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_ledger_processes import begin, write
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training import snapshot

uri, phase, attempt = sys.argv[2], sys.argv[3], int(sys.argv[4])
storage = open_storage(uri)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def dies(name, ends=""):
    method = getattr(storage, name)
    def call(key, *rest):
        if key.endswith(ends):
            die()
        return method(key, *rest)
    setattr(storage, name, call)

def last_chunk(self):
    size = snapshot._CHUNK
    for at in range(0, self.size, size):
        if at + size >= self.size:
            die()
        yield self.buffer.numpy()[at : at + size].tobytes()

if phase == "copy":
    snapshot.torch.Tensor.copy_ = lambda *_, **__: die()
elif phase == "upload":
    snapshot.Snapshot.chunks = last_chunk
elif phase == "manifest":
    dies("write", ".json")
elif phase == "commit":
    dies("write_if_absent", "COMMIT")
else:
    dies("delete_prefix")
ledger = Ledger(storage)
begin(ledger, attempt)
write(ledger, 3, attempt)
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    made = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd="/"
    )
    try:
        yield made
    finally:
        made.kill()
        made.wait()


# In which phase, and what is committed afterwards.
PHASES = {"copy": [1, 2], "upload": [1, 2], "manifest": [1, 2], "commit": [1, 2], "retention": [2, 3]}


@pytest.mark.parametrize(("place", "phase"), [("bucket", phase) for phase in PHASES] + [("directory", "upload")])
def test_a_writer_killed_in_any_phase(s3: str, s3_server: S3Server, tmp_path: Path, place: str, phase: str) -> None:
    uri = f"{s3}/job/checkpoints" if place == "bucket" else str(tmp_path / "checkpoints")
    ledger = Ledger(open_storage(uri))
    for step in (1, 2):
        write(ledger, step, 1)
    with process(KILLED, uri, phase, "2") as killed:
        output, _ = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, output
    assert ledger.steps() == PHASES[phase]
    assert_whole(ledger)

    if phase in ("manifest", "commit", "retention"):
        # There are files that nobody refers to. The successor dies while it collects them, the one after that does it.
        assert list(ledger.storage.list()) != sorted(wanted(ledger))
        with process(KILLED, uri, "orphans", "3") as killed:
            output, _ = killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL, output
        assert ledger.steps() == PHASES[phase]
    assert begin(ledger, 4) == PHASES[phase][-1]
    assert list(ledger.storage.list()) == sorted(wanted(ledger))
    if uri.startswith("s3://"):
        bucket = uri.removeprefix("s3://").split("/")[0]
        assert not s3_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads")
    else:
        assert not list(Path(uri).rglob(".tmp-*"))
    write(ledger, 3, 4)
    assert ledger.steps() == [2, 3]
    assert_whole(ledger)


def wanted(ledger: Ledger) -> set[str]:
    """Keys of what is committed, and the fences."""
    found = set(ledger.storage.list("fence/"))
    for step in ledger.steps():
        commit = ledger.commit(step)
        assert commit is not None
        found |= {f"step-{step:08d}/COMMIT", *commit.manifests}
        found |= {key.removesuffix(".json") + ".bin" for key in commit.manifests}
    return found


ATTEMPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_ledger_processes import SMALL, begin, write
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS, FencedError, Ledger
from dinoctl.handover.outcome import Outcome, classify

uri, attempt, steps = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store, ledger = AttemptStore(open_storage(uri), attempt), Ledger(open_storage(f"{uri}/{CHECKPOINTS}"))
if not store.claim({"pod": str(os.getpid())}):
    store.refuse(Outcome(attempt, "failed", "Preempted", "started twice"))
    sys.exit(4)
step = begin(ledger, attempt)
print("from", step, flush=True)
try:
    for step in range(step + 1, step + 1 + steps):
        write(ledger, step, attempt, keep=9999, size=SMALL)
        print("wrote", step, flush=True)
    store.write_outcome(Outcome(attempt, "succeeded", step=step))
except FencedError as error:
    print(error, flush=True)
    store.write_outcome(classify(attempt, error))
    sys.exit(3)
"""


def test_two_attempts_at_once(s3: str) -> None:
    """The old one goes on writing when the new one has begun, and is itself started a second time (both seen on a real
    cluster after a preemption).
    """
    uri = f"{s3}/job"
    ledger = Ledger(open_storage(f"{uri}/{CHECKPOINTS}"))
    first, second = (AttemptStore(open_storage(uri), number) for number in (1, 2))
    with process(ATTEMPT, uri, "1", "9999") as old:
        until(lambda: len(ledger.steps()) >= 2)
        with process(ATTEMPT, uri, "1", "9999") as again:
            output, _ = again.communicate(timeout=240)
            assert again.returncode == 4, output
        assert first.claimed() == {"pod": str(old.pid)}
        refused = first.outcome()
        assert refused is not None
        assert refused.message == "started twice"
        with process(ATTEMPT, uri, "2", "6") as new:
            lines, _ = old.communicate(timeout=240)
            assert old.returncode == 3, lines
            assert lines.splitlines()[-1] == "attempt 1 was replaced by attempt 2"
            output, _ = new.communicate(timeout=240)
            assert new.returncode == 0, output
    assert_whole(ledger, SMALL)
    by = {step: read(ledger, step)[0].attempt for step in ledger.steps()}
    assert set(by) == set(range(1, max(by) + 1))
    assert list(by.values()) == sorted(by.values()), "the old one commits nothing after the new one"
    assert set(by.values()) == {1, 2}
    assert first.outcome() == Outcome(1, "failed", "Stopped", "attempt 1 was replaced by attempt 2")
    assert second.outcome() == Outcome(2, "succeeded", step=max(by))
    assert begin(ledger, 3) == max(by)
    assert list(ledger.storage.list()) == sorted(wanted(ledger))


def until(condition: object, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
