"""A user's mistakes with ``dinoctl pack`` and ``dinoctl index``: one clear line, the right exit code, nothing lost."""

import json
import os
import pty
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from support.runs import DINOCTL


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.effect_noise((64, 48), 80 + number).convert("RGB").save(root / name / f"{number}.png")
    return root


def dinoctl(
    *arguments: object, preexec_fn: Callable[[], None] | None = None, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    done = subprocess.run(
        [*DINOCTL, *map(str, arguments)], capture_output=True, text=True, preexec_fn=preexec_fn, env=env, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def error_of(stderr: str) -> str:
    """The one line that says what is wrong; lines of progress may stand before it."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert stderr.splitlines()[-1] == errors[0]
    return errors[0]


def test_pack_says_how_far_it_is_and_what_it_made(images: Path, tmp_path: Path) -> None:
    (images / "cat" / "notes.txt").write_text("remember the milk")
    whole = (images / "cat" / "0.png").read_bytes()
    (images / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    order = ("pack", images, tmp_path / "out", "--split", "val=2", "--max-bad-rate", "0.2", "--workers", "2")
    code, output, progress = dinoctl(*order, "-o", "json")
    assert code == 0, progress
    result = json.loads(output)
    assert result["samples"] == {"train": 10, "val": 2}
    assert [entry["path"] for entry in result["rejected"]] == ["cat/notes.txt", "dog/cut.png"]
    assert "unknown suffix .txt" in result["rejected"][0]["reason"]
    assert "truncated" in result["rejected"][1]["reason"]
    assert "packing: 14 of 14 images" in progress
    assert "\x1b" not in progress, "no bar where nobody sees it"
    code, output, _ = dinoctl(*order)
    assert code == 0
    assert "train 10, val 2 samples" in output
    assert "rejected cat/notes.txt: unknown suffix .txt" in output
    code, _, stderr = dinoctl("pack", images, tmp_path / "strict")
    assert code == 2
    assert "2 of 14 files are unreadable" in error_of(stderr)
    assert "--max-bad-rate" in stderr
    assert len((tmp_path / "strict" / "bad.jsonl").read_text().splitlines()) == 2


def test_a_bar_where_somebody_looks(images: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen([*DINOCTL, "pack", str(images), str(tmp_path / "out")], stderr=theirs)
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how a terminal says that its last user has gone
            while piece := screen.read(4096):
                shown += piece
        assert process.wait() == 0
    assert b"\x1b[" in shown
    assert b"packing" in shown
    assert b"12/12" in shown
    assert b"0:00:00" in shown, "the time that is left"


@pytest.mark.parametrize("command", ["pack", "index"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file", "texts"])
def test_sources_that_hold_nothing(tmp_path: Path, command: str, kind: str) -> None:
    source = tmp_path / "source"
    if kind in ("empty", "texts"):
        source.mkdir()
    if kind == "texts":
        (source / "a.txt").write_text("words")
    if kind == "file":
        source.write_text("not a directory")
    code, _, stderr = dinoctl(command, source, tmp_path / "out")
    assert code == 2
    assert str(source) in error_of(stderr)
    assert not (tmp_path / "out").exists()


def test_places_that_lie_in_each_other(images: Path, tmp_path: Path) -> None:
    for source, out, reason in [
        (images, images, "are the same"),
        (images, images / "cat" / "packed", "lies in the source"),
        (images / "cat", images, "lies in the destination"),
    ]:
        code, _, stderr = dinoctl("pack", source, out)
        assert code == 2
        assert reason in error_of(stderr)
    (tmp_path / "link").symlink_to(images)
    code, _, stderr = dinoctl("pack", images, tmp_path / "link" / "packed")
    assert code == 2
    assert "lies in the source" in error_of(stderr)
    assert {path.name for path in images.iterdir()} == {"cat", "dog"}


def test_a_destination_that_holds_another_dataset(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert dinoctl("pack", images, out)[0] == 0
    before = (out / "dataset.json").read_bytes()
    for order in (("pack", images, out, "--split", "val=2"), ("index", out), ("index", out, out)):
        code, _, stderr = dinoctl(*order)
        assert code == 2
        assert "holds another dataset" in error_of(stderr)
    assert (out / "dataset.json").read_bytes() == before
    assert dinoctl("index", out, tmp_path / "again")[0] == 0
    taken = tmp_path / "taken"
    taken.write_text("a file")
    code, _, stderr = dinoctl("pack", images, taken)
    assert code == 2
    assert "is a file" in error_of(stderr)


@pytest.mark.parametrize("command", ["pack", "index"])
def test_full_disk(images: Path, tmp_path: Path, command: str) -> None:
    """A limit on the size of files fails where a full disk does, in write(): in a shard, and in an index."""
    source = images
    if command == "index":
        assert dinoctl("pack", images, tmp_path / "set")[0] == 0
        source = tmp_path / "set"
    limit = 20_000 if command == "pack" else 500
    order = (command, source, tmp_path / "out")
    code, _, stderr = dinoctl(*order, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert code == 3
    assert "make room" in error_of(stderr)
    assert not (tmp_path / "out" / "dataset.json").exists()
    code, _, stderr = dinoctl(*order)
    assert code == 0, stderr
    assert not (tmp_path / "out" / "_pack").exists()


def test_flags_that_make_no_sense(images: Path, tmp_path: Path) -> None:
    for flags, reason in [
        (("--split", "val"), "write it as val=500"),
        (("--split", "Val=3"), "lower-case"),
        (("--split", "val=none"), "a count"),
        (("--split", "val=50"), "'val' asks for 50 samples, but there are 12"),
        (("--shard-size", "lots"), "--shard-size lots"),
        (("--shard-size", "1KiB"), "at least 64KiB"),
        (("--format", "zip"), "'zip' is not a source format"),
    ]:
        code, _, stderr = dinoctl("pack", images, tmp_path / "out", *flags)
        assert code == 2
        assert reason in error_of(stderr)


def test_a_bucket_that_is_not_there(images: Path, s3: str) -> None:
    code, _, stderr = dinoctl("pack", images, "s3://no-such-bucket-of-ours/x")
    assert code == 3
    assert "the bucket does not exist" in error_of(stderr)
    code, _, stderr = dinoctl("index", "s3://no-such-bucket-of-ours/tars")
    assert code == 3
    assert "the bucket does not exist" in error_of(stderr)
    code, _, stderr = dinoctl("index", "s3://bucket/tars", env={**os.environ, "AWS_ENDPOINT_URL": "nonsense"})
    assert code == 3
    assert "nonsense" in error_of(stderr)


def test_a_bucket_prefix_of_images(images: Path, tmp_path: Path, s3: str) -> None:
    from dinoctl.data.storage import open_storage

    storage = open_storage(f"{s3}/images")
    for path in images.rglob("*.png"):
        storage.write(str(path.relative_to(images)), path.read_bytes())
    assert dinoctl("pack", f"{s3}/images", f"{s3}/packed", "--workers", "2")[0] == 0
    assert dinoctl("pack", images, tmp_path / "here")[0] == 0
    there = json.loads(open_storage(f"{s3}/packed").read("dataset.json"))
    assert there == json.loads((tmp_path / "here" / "dataset.json").read_text())
    code, output, stderr = dinoctl("doctor", "--dataset", f"{s3}/packed", "--shards")
    assert code == 0, stderr
    assert "train 12 samples" in output
    open_storage(f"{s3}/packed").delete("train/shard-000000.tar")
    code, _, stderr = dinoctl("doctor", "--dataset", f"{s3}/packed")
    assert code == 3
    assert "shard-000000.tar: is not there any more" in error_of(stderr)
