"""kill -9 in the middle of packing and indexing: the same command ends with the same bytes, nothing is left over."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.runs import DINOCTL
from support.s3server import S3Server

EVERY_WRITE = """
import json, os, signal, sys
from dinoctl.data import indexing, pack, storage
from dinoctl.data.local import LocalStorage
from dinoctl.data.s3 import S3Storage
import pyarrow

pyarrow.array(["x"])  # imports much: once here, not in every child
s = json.loads(sys.argv[1])
kind = S3Storage if s["out"].startswith("s3://") else LocalStorage
plain, plain_delete = kind.write_chunks, kind.delete_prefix

def run(out):
    if s["command"] == "pack":
        pack.pack(s["source"], out, splits={"val": 3}, shard_bytes=s["shard"], max_bad_rate=0.1)
    else:
        indexing.index(s["source"], out)

def interrupted(out, moment):
    # Dies when the moment comes: moments are pieces handed to a write, ends of writes, and deletions.
    passed = 0
    def moment_passes():
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    def watched(chunks):
        for chunk in chunks:
            moment_passes()
            yield chunk
    def write_chunks(self, key, chunks):
        plain(self, key, watched(chunks))
        moment_passes()
    def delete_prefix(self, prefix):
        moment_passes()
        plain_delete(self, prefix)
    kind.write_chunks, kind.delete_prefix = write_chunks, delete_prefix
    run(out)
    return passed

def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(type(error), error, file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

forked(lambda: run(f"{s['out']}/whole"))
reader, writer = os.pipe()
forked(lambda: os.write(writer, str(interrupted(f"{s['out']}/count", 0)).encode()))
moments = int(os.read(reader, 20))
chosen = sorted(set(range(1, moments + 1, s["stride"])) | set(range(max(1, moments - 8), moments + 1)))
for moment in chosen:
    out = f"{s['out']}/{moment}"
    killed = forked(lambda: interrupted(out, moment))
    again = forked(lambda: run(out))
    print(json.dumps([moment, killed, again]), flush=True)
"""


def picture(path: Path, seed: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(24):
        picture(root / ("cat", "dog")[number % 2] / f"{number:02d}.png", number)
    (root / "cat" / "notes.txt").write_text("remember the milk")
    return root


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    root = tmp_path / "tars"
    root.mkdir()
    for shard in range(4):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for number in range(5):
                sink = io.BytesIO()
                Image.new("RGB", (20 + number, 16), (number * 40, 90, shard * 50)).save(sink, "JPEG")
                for name, data in ((f"{number}.jpg", sink.getvalue()), (f"{number}.cls", b"%d" % shard)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def objects_of(server: S3Server, bucket: str, prefix: str) -> dict[str, bytes]:
    client, name = server.client(), bucket.removeprefix("s3://")
    found = client.list_objects_v2(Bucket=name, Prefix=f"{prefix}/").get("Contents", ())
    keys = [one["Key"] for one in found]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=name, Key=key)["Body"].read() for key in sorted(keys)
    }


def killed_at_every_write(**settings: Any) -> list[int]:
    """The moments at which it was killed; each was followed by a run that ended well."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_WRITE, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(killed, again) for _, killed, again in results} == {(-9, 0)}, done.stdout + done.stderr
    return [moment for moment, _, _ in results]


@pytest.mark.parametrize("command", ["pack", "index"])
def test_killed_at_every_write_to_a_directory(images: Path, tars: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    source = images if command == "pack" else tars
    moments = killed_at_every_write(command=command, source=str(source), out=str(out), shard=8000, stride=1)
    assert len(moments) > 20
    whole = files_of(out / "whole")
    assert "dataset.json" in whole
    assert not [name for name in whole if name.startswith(("_pack/", "."))]
    for moment in moments:
        assert files_of(out / str(moment)) == whole, moment


@pytest.mark.parametrize("command", ["pack", "index"])
def test_killed_at_writes_to_a_bucket(
    images: Path, tars: Path, s3: str, s3_server: S3Server, tmp_path: Path, command: str
) -> None:
    source, shard = tars, 8000
    if command == "pack":  # shards of several parts, so that uploads are left unfinished
        source, shard = tmp_path / "large", 30 * 2**20
        for number in range(5):
            picture(source / f"{number}.png", number, side=1700)
    moments = killed_at_every_write(command=command, source=str(source), out=f"{s3}/x", shard=shard, stride=8)
    assert len(moments) > 8
    whole = objects_of(s3_server, s3, "x/whole")
    assert "dataset.json" in whole
    assert not [name for name in whole if name.startswith("_pack/")]
    for moment in moments:
        assert objects_of(s3_server, s3, f"x/{moment}") == whole, moment
    left = s3_server.client().list_multipart_uploads(Bucket=s3.removeprefix("s3://"))
    assert not left.get("Uploads")


@pytest.mark.parametrize("command", ["pack", "index"])
def test_the_command_killed_again_and_again(images: Path, tars: Path, tmp_path: Path, command: str) -> None:
    """The real command with several workers, at random moments: children end with it, the next one goes on."""
    order = (
        ["pack", str(images), "--split", "val=3", "--shard-size", "64KiB", "--max-bad-rate", "0.1"]
        if command == "pack"
        else ["index", str(tars)]
    )
    if command == "pack":
        for number in range(60):
            picture(images / "cat" / f"more-{number}.png", 100 + number, side=80)
    began = time.monotonic()
    subprocess.run([*DINOCTL, *order, str(tmp_path / "whole"), "--workers", "2"], check=True, capture_output=True)
    whole_s = time.monotonic() - began
    draw = random.Random(7)
    for _ in range(5):
        process = subprocess.Popen(
            [*DINOCTL, *order, str(tmp_path / "out"), "--workers", "2"], stderr=subprocess.DEVNULL
        )
        time.sleep(whole_s * draw.uniform(0.3, 1.0))
        process.kill()
        process.wait()
    done = subprocess.run(
        [*DINOCTL, *order, str(tmp_path / "out"), "--workers", "2", "-o", "json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"]["train"] == (81 if command == "pack" else 20)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_another_command_after_a_kill_leaves_nothing_of_the_first(images: Path, tmp_path: Path) -> None:
    """Also not of a shard that was finished but not yet recorded, nor of an index of a split that is no more."""
    from dinoctl.data.pack import pack

    pack(str(images), tmp_path / "fresh", shard_bytes=10**6, max_bad_rate=0.1)
    moments = killed_moments(images, tmp_path / "out")
    assert len(moments) > 25
    for out in moments:
        pack(str(images), out, shard_bytes=10**6, max_bad_rate=0.1)
        assert files_of(out) == files_of(tmp_path / "fresh"), out


def killed_moments(images: Path, out: Path) -> list[Path]:
    """Directories, each left by a packing that was killed at another moment."""
    code = EVERY_WRITE.replace("    again = forked(lambda: run(out))\n", "    again = 0\n")
    settings = json.dumps({"command": "pack", "source": str(images), "out": str(out), "shard": 8000, "stride": 1})
    done = subprocess.run(
        [sys.executable, "-c", code, settings],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [out / str(json.loads(line)[0]) for line in done.stdout.splitlines()]
    return [path for path in paths if not (path / "dataset.json").exists()]
