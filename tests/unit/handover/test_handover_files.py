"""The files between executor and worker: attempt, claim, progress, output."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from dinoctl.data.errors import StorageError
from dinoctl.data.local import LocalStorage
from dinoctl.handover.attempt import Attempt, Cluster
from dinoctl.handover.claim import Claim, claim, read_claim
from dinoctl.handover.output import Output, read_evidence, read_output, write_output
from dinoctl.handover.progress import Progress, ProgressFile, read_progress
from dinoctl.spec.errors import UserError
from dinoctl.spec.job import JobSpec
from dinoctl.tracking.gate import Evidence


def attempt(root: Path, **changes: Any) -> Attempt:
    spec = {"seed": 3, "pretrain": {"data": {"source": "/data"}, "heads": {"ibot": None}}, "policy": {"deadline": "2h"}}
    made = Attempt(
        name="train",
        spec=JobSpec.model_validate(spec, by_alias=True, by_name=False),
        spec_hash="abc",
        number=2,
        storage_uri=str(root / "out"),
        scratch=root,
        spool=root / "spool",
    )
    return replace(made, **changes)


CLUSTER = Cluster("vision", "1f-2e", "train-progress", "abc/1f-2e/run-0002", 2, ("HF_TOKEN",), {"team": "vision"})


@pytest.mark.parametrize(
    "more",
    [{}, {"tracking_uri": "http://here:5000", "run_id": "r1"}, {"cluster": CLUSTER}],
    ids=["alone", "tracked", "cluster"],
)
def test_attempt_round_trip(tmp_path: Path, more: dict[str, Any]) -> None:
    written = attempt(tmp_path, **more)
    path = tmp_path / "attempt.json"
    written.write(path)
    assert Attempt.read(path) == written
    assert [file.name for file in tmp_path.iterdir()] == ["attempt.json"]
    assert json.loads(path.read_text())["format"] == "dinoctl.attempt/v1"
    assert ("cluster" in json.loads(path.read_text())) == ("cluster" in more), "an older file has none"
    assert written.storage.uri == str(tmp_path / "out")
    assert written.stop_file == tmp_path / "stop"


def test_nulls_of_the_document_survive(tmp_path: Path) -> None:
    written = attempt(tmp_path)
    written.write(tmp_path / "attempt.json")
    stage = Attempt.read(tmp_path / "attempt.json").spec.pretrain
    assert stage is not None
    assert stage.heads.ibot is None


@pytest.mark.parametrize("content", ["{}", '{"format": "dinoctl.attempt/v2"}'])
def test_another_file_is_no_attempt(tmp_path: Path, content: str) -> None:
    path = tmp_path / "attempt.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"attempt\.json is not a dinoctl\.attempt/v1 file"):
        Attempt.read(path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "dinoctl.attempt/v1"}', '{"format": "dinoctl.att'])
def test_a_damaged_attempt_is_told_in_a_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "attempt.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"attempt\.json is damaged; run the job again$"):
        Attempt.read(path)


CLAIM = (
    "import sys; from pathlib import Path; from dinoctl.handover.claim import claim; print(claim(Path(sys.argv[1])))"
)


def claimed_by_another(scratch: Path) -> str:
    done = subprocess.run([sys.executable, "-c", CLAIM, str(scratch)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_attempt_is_claimed_once(tmp_path: Path) -> None:
    assert read_claim(tmp_path) is None
    assert claim(tmp_path)
    assert not claim(tmp_path), "not even twice by the same process"
    assert claimed_by_another(tmp_path) == "False"
    found = read_claim(tmp_path)
    assert found == Claim(os.getpid(), psutil.Process().create_time())
    assert found.alive()
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


def test_a_dead_process_keeps_its_claim(tmp_path: Path) -> None:
    assert claimed_by_another(tmp_path) == "True"
    found = read_claim(tmp_path)
    assert found is not None
    assert not found.alive()
    assert not claim(tmp_path)


def test_a_later_process_with_the_same_pid_is_another() -> None:
    own = psutil.Process().create_time()
    assert Claim(os.getpid(), own).alive()
    assert not Claim(os.getpid(), own - 60).alive()


def test_a_process_that_nobody_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = Claim(child.pid, psutil.Process(child.pid).create_time())
    assert held.alive()
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not held.alive()
    child.wait()
    assert not held.alive()


def test_progress_replaces_itself(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    file = ProgressFile(attempt(tmp_path))
    file.write(Progress(1, 10, 0.0, None, 0))
    latest = Progress(5, 10, 2.5, 4.0, 4, 0.5, "export")
    file.write(latest)
    found = read_progress(tmp_path)
    assert found is not None
    assert found.pop("at") > 1e9
    assert found == {**asdict(latest), "attempt": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


OUTPUT = Output("pretrain", "abc", 2, 60, "f00d", {"images_per_s": 2.5, "dataset_hash": "d"})
EVIDENCE = Evidence({"knn": 0.5, "random_knn": math.nan}, "data", "f00d", "abc")


def test_output_and_evidence_round_trip(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_output(storage) is None
    assert read_evidence(storage) is None
    write_output(storage, OUTPUT, EVIDENCE)
    assert read_output(storage) == OUTPUT
    found = read_evidence(storage)
    assert found is not None
    assert found.metrics["knn"] == 0.5
    assert math.isnan(found.metrics["random_knn"])
    assert (found.dataset_hash, found.checkpoint_hash, found.spec_hash) == ("data", "f00d", "abc")


def test_no_gate_no_evidence(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    write_output(storage, OUTPUT, None)
    assert (read_output(storage), read_evidence(storage)) == (OUTPUT, None)


class Dying(LocalStorage):
    """Dies before the proof."""

    def write(self, key: str, data: bytes) -> None:
        if key == "output.json":
            raise StorageError("power cut")
        super().write(key, data)


def test_the_proof_comes_last(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_output(Dying(tmp_path), OUTPUT, EVIDENCE)
    assert read_output(LocalStorage(tmp_path)) is None
    assert read_evidence(LocalStorage(tmp_path)) is not None
