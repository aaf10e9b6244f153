"""A whole pipeline on a bucket: packed, trained, killed, resumed, measured, promoted; the same weights through faults;
and what is said, before anything starts, when the bucket can't be used.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dinoctl.data.pack import pack
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from support.faults import Fault, Proxy
from support.runs import Runs
from support.s3server import ACCESS, SECRET, S3Server

pytestmark = pytest.mark.timeout(1500)

DOCUMENTS = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: pack}}
spec: {{storage: "{storage}", pack: {{source: "builtin://digits", splits: {{val: 500}}, shardSize: 1MiB}}}}
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: train}}
spec:
  storage: "{storage}"
  compute: {{workers: 2, gpusPerWorker: 0, loaderWorkers: {loaders}, precision: fp32}}
  pretrain:
    data: {{source: {{job: pack}}, reader: {{cache: {cache}}}}}
    model: {{arch: custom, embedDim: 24, depth: 2, numHeads: 2, patchSize: 4, registers: 1, dropPath: 0.2}}
    steps: 24
    globalBatch: 16
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    heads:
      dino: {{prototypes: 32, hidden: 32, bottleneck: 16}}
      ibot: {{prototypes: 32, hidden: 32, bottleneck: 16}}
    schedules: {{learningRate: {{base: 1.0e-3, scaling: none, warmupSteps: 4}}}}
    logEvery: 2
  gate: {{min: 0.02, dataset: {{job: pack}}, knn: {{k: [10], resize: 16}}, promote: {{model: on-s3}}}}
  policy: {{checkpoint: {{everySteps: 4, keep: 2, keepEvery: 12}}}}
"""

FAULTS = [
    Fault("slowdown", rate=0.04),
    Fault("reset", rate=0.03),
    Fault("error", rate=0.02),
    Fault("lost-answer", method="PUT|POST|DELETE", rate=0.04),
    Fault("truncate", method="GET", rate=0.03),
    Fault("flip", key=r"\.(tar|bin|json)$|COMMIT", rate=0.03),
    Fault("latency", value=0.01),
]


def documents(bucket: str, loaders: int = 0, cache: Path | None = None) -> str:
    where = f"{{path: {cache}, bytes: 1GB}}" if cache else "null"
    return DOCUMENTS.format(storage=f"{bucket}/jobs", loaders=loaders, cache=where)


@pytest.fixture
def runs(tmp_path: Path, s3: str) -> Iterator[Runs]:
    made = Runs(tmp_path, documents(s3, loaders=1, cache=tmp_path / "cache"))
    yield made
    made.close()


def weights(bucket: str) -> str:
    """sha256 over the exported weights."""
    export = open_storage(f"{bucket}/jobs/train/run-0001/export")
    files = [key for key in export.list() if key.endswith(".safetensors")]
    assert len(files) >= 2
    return hashlib.sha256(b"".join(export.read(key) for key in files)).hexdigest()


def readers(runs: Runs) -> list[psutil.Process]:
    """The loaders' children, which read ahead and fill the cache."""
    children = runs.worker("train").children(recursive=True)
    return [child for child in children if "dinoctl.data.children" in " ".join(child.cmdline())]


def test_killed_and_resumed_and_through_faults(
    runs: Runs,
    s3: str,
    s3_server: S3Server,
    s3_faults: Proxy,
    tmp_path: Path,
) -> None:
    runs.start()
    runs.wait(lambda: runs.step("train") >= 10, "the first attempt to train")
    readers(runs)[0].kill()
    code, output = runs.finish()
    assert code == 0, output + runs.log("train")
    status = runs.status("train")
    assert "died (killed by SIGKILL)" in status["attempts"][0]["message"]
    assert list((tmp_path / "cache").rglob("*.tar")), "the cache was of use"
    assert status["attempts"][1]["startStep"] >= 4, "resumed from the bucket"
    assert Ledger(open_storage(f"{s3}/jobs/train/run-0001/{CHECKPOINTS}")).steps() == [12, 20, 24]
    assert not list((runs.state / "jobs").rglob("*.tar")), "the dataset is in the bucket alone"
    assert not list((runs.state / "jobs").rglob("*.bin"))
    assert status["promotion"]["model"] == "on-s3"

    other = s3_server.bucket(f"{s3.removeprefix('s3://')}-faults")
    through = Runs(tmp_path / "through", documents(other))
    s3_faults.forget()
    s3_faults.faults = FAULTS
    try:
        code, output = through.run()
        s3_faults.faults = ()
        assert code == 0, output + through.log("train")
        assert len(through.attempts("train")) == 1, "faults that pass end no attempt"
        assert sum(s3_faults.injected.values()) >= 10, s3_faults.injected
        assert weights(other) == weights(s3)
    finally:
        through.close()


REFUSALS = {
    "bucket": ({}, None, "the bucket does not exist; create it or correct the URI"),
    "secret": ({"AWS_SECRET_ACCESS_KEY": "wrong-one"}, None, "the secret key is wrong"),
    "server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, None, "check the network and AWS_ENDPOINT_URL"),
    "expired": ({}, Fault("expired"), "the credentials have expired"),
    "clock": ({}, Fault("skew"), "this machine's clock is wrong"),
    "region": ({}, Fault("malformed"), "the bucket is in another region; set AWS_DEFAULT_REGION to it"),
    "read-only": ({}, Fault("denied", method="PUT"), "access denied"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bucket_that_can_not_be_used_is_told_before_anything_starts(
    runs: Runs,
    s3_faults: Proxy,
    case: str,
) -> None:
    environment, fault, reason = REFUSALS[case]
    s3_faults.faults = [fault] if fault else []
    if case == "bucket":
        runs.write(documents("s3://there-is-no-such-bucket"))
    began = time.monotonic()
    code, output = runs.run(env={**os.environ, **environment})
    assert code == 3, output
    assert time.monotonic() - began < 180, "it was tried for minutes"
    (line,) = [line for line in output.splitlines() if "s3://" in line]
    assert line.startswith("error: cannot ")
    assert reason in line
    assert "Traceback" not in output
    assert not any(secret in output for secret in (ACCESS, SECRET, "wrong-one"))
    assert not runs.attempts("pack"), "nothing was begun"
    assert not (runs.state / "jobs").exists()


READING = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: train}}
spec:
  compute: {{workers: 2, gpusPerWorker: 0, loaderWorkers: 0, precision: fp32}}
  pretrain:
    data: {data}
    model: {{arch: custom, embedDim: 24, depth: 2, numHeads: 2, patchSize: 4}}
    steps: 2
    globalBatch: 4
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
"""
DATA_REFUSALS = {
    "bucket": (3, "s3://there-is-no-such-bucket/set/: the bucket does not exist; create it or correct the URI"),
    "secret": (3, "the secret key is wrong; check AWS_SECRET_ACCESS_KEY"),
    "key": (3, "the access key is unknown there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"),
    "none": (3, "no usable credentials"),
    "region": (3, "the bucket is in another region; set AWS_DEFAULT_REGION to it"),
    "denied": (3, "access denied; check the credentials' permissions on this bucket"),
    "dataset": (2, "{bucket}/set: no packed dataset there (dataset.json is missing); pack it first"),
    "part": (2, "{bucket}/other: no packed dataset there (dataset.json is missing); pack it first"),
    "changed": (2, "{bucket}/set/dataset.json: was changed after packing"),
}
VARIABLES = {
    "secret": {"AWS_SECRET_ACCESS_KEY": "wrong-one"},
    "key": {"AWS_ACCESS_KEY_ID": "nobody"},
    "none": {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
}


@pytest.mark.parametrize("case", DATA_REFUSALS)
def test_training_data_that_can_not_be_read_is_told_before_anything_starts(
    s3: str, s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """The outputs are on this machine's disk, only the data is in a bucket; no packing job precedes."""
    if case not in ("bucket", "dataset"):
        pack("builtin://digits", f"{s3}/set", verify=False)
    if case == "changed":
        manifest = open_storage(f"{s3}/set")
        manifest.write("dataset.json", manifest.read("dataset.json").replace(b'"samples": 1797', b'"samples": 1796'))
    source = "s3://there-is-no-such-bucket/set" if case == "bucket" else f"{s3}/set"
    both = f"{{mixture: [{{source: {s3}/set}}, {{source: {s3}/other}}]}}"
    runs = Runs(tmp_path, READING.format(data=both if case == "part" else f"{{source: {source}}}"))
    kinds = {"region": [Fault("malformed")], "denied": [Fault("denied")]}
    s3_faults.faults = kinds.get(case, [])
    for name, value in VARIABLES.get(case, {}).items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    wanted, reason = DATA_REFUSALS[case]
    began = time.monotonic()
    code, output = runs.run()
    assert code == wanted, output
    assert time.monotonic() - began < 180, "it was tried for minutes"
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    assert reason.format(bucket=s3) in line
    assert not any(secret in output for secret in (ACCESS, SECRET, "wrong-one"))
    assert not (runs.state / "jobs").exists(), "nothing was begun"
