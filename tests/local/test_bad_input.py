"""A user's mistakes, each through the real command: one clear line, the right exit code, nothing lost."""

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.runs import DINOCTL, PACK, Runs

FOLDER = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: pack}}
spec: {{pack: {{source: "{source}", splits: {{val: 2}}, shardSize: 1MiB, maxBadRate: {rate}}}}}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of five small images."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (12, 9), (number * 20, 40, 90)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def make(tmp_path: Path) -> Iterator["type[Maker]"]:
    Maker.root = tmp_path
    Maker.made = []
    yield Maker
    for runs in Maker.made:
        runs.close()


class Maker:
    root: Path
    made: list[Runs]

    @classmethod
    def runs(cls, text: str) -> Runs:
        cls.made.append(Runs(cls.root / f"runs{len(cls.made)}", text))
        return cls.made[-1]

    @classmethod
    def pack(cls, source: Path, rate: float = 1e-4) -> Runs:
        return cls.runs(FOLDER.format(source=source, rate=rate))


def no_traceback(output: str) -> None:
    assert "Traceback" not in output, output


def dinoctl(*arguments: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run([*DINOCTL, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_all_mistakes_of_a_document_at_once(make: type[Maker], tmp_path: Path) -> None:
    broken = PACK.replace("shardSize", "shardSzie").replace("val: 500", "val: many")
    runs = make.runs(broken)
    code, output = dinoctl("run", str(runs.file), cwd=tmp_path)
    assert code == 2
    assert f"{runs.file}:5:" in output
    assert "spec.pack.shardSzie: unknown field; did you mean 'shardSize'?" in output
    assert "spec.pack.splits.val" in output
    no_traceback(output)
    assert not (tmp_path / ".dinoctl").exists(), "nothing was begun"


def test_cycle_and_missing_parent(make: type[Maker], tmp_path: Path) -> None:
    text = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: one}
spec: {highres: {from: {job: two}}}
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: two}
spec: {highres: {from: {job: one}}}
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: three}
spec: {highres: {from: {job: tow}}}
"""
    runs = make.runs(text)
    code, output = dinoctl("validate", str(runs.file), cwd=tmp_path)
    assert code == 2
    assert "one → two → one" in output or "two → one → two" in output
    assert "no job named 'tow'; did you mean 'two'?" in output
    no_traceback(output)


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_data_directory_that_cannot_be_used(make: type[Maker], tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "empty":
        source.mkdir()
    elif kind == "file":
        source.write_text("not a directory")
    runs = make.pack(source)
    code, output = runs.run()
    assert code == 2, output
    assert str(source) in output
    no_traceback(output)


def test_text_file_and_truncated_image_are_listed_not_fatal(make: type[Maker], images: Path) -> None:
    (images / "cat" / "notes.txt").write_text("remember the milk")
    whole = (images / "cat" / "0.png").read_bytes()
    (images / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    runs = make.pack(images, rate=0.5)
    code, output = runs.run()
    assert code == 0, output + runs.log("pack")
    bad = next((runs.state / "jobs" / "pack").glob("run-*/dataset/bad.jsonl")).read_text()
    assert "notes.txt" in bad
    assert "cut.png" in bad


def test_too_many_bad_files_stop_the_job(make: type[Maker], images: Path) -> None:
    whole = (images / "cat" / "0.png").read_bytes()
    (images / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    runs = make.pack(images)
    code, output = runs.run()
    assert code == 2, output
    assert "cut.png" in output
    assert "maxBadRate" in output
    no_traceback(output)
    assert len(runs.attempts("pack")) == 1, "a mistake in the data is not retried"

    (images / "dog" / "cut.png").unlink()
    code, output = runs.run("--restart", "pack")
    assert code == 0, output + runs.log("pack")


def test_full_disk(make: type[Maker]) -> None:
    """A file size limit is what a full disk looks like from inside a process: writing fails half-way."""
    runs = make.runs(PACK.replace("1MiB", "64MiB"))
    code, output = runs.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000)))
    assert code == 3, output + runs.log("pack")
    no_traceback(output)
    assert "disk" in output or "space" in output
    code, output = runs.run()
    assert code == 0, output + runs.log("pack")


def test_taken_ports_do_not_matter_and_a_second_run_is_refused(make: type[Maker]) -> None:
    taken = []
    for port in (6379, 8265, 10001):
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
        except OSError:
            pass  # taken by somebody else: just as good
        taken.append(listener)
    text = PACK + EVALUATE
    runs = make.runs(text)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(runs.state)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    code, output = runs.run()
    assert code == 2
    assert f"pid {holder.pid}" in output
    no_traceback(output)
    holder.kill()
    holder.wait()
    code, output = runs.run()
    assert code == 2, output  # packs, then says that there is no such model
    assert "no-such-model" in output
    assert runs.status("pack")["outcome"]["complete"]
    for listener in taken:
        listener.close()


EVALUATE = """
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: evaluate}
spec:
  compute: {gpusPerWorker: 0, precision: fp32}
  evaluate:
    model: {uri: /tmp/no-such-model}
    protocols: {knn: {dataset: {job: pack}}}
"""

HOLD = """
import sys, time
from pathlib import Path
from dinoctl.local.state import StateDir
with StateDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_changed_document_after_a_finished_run(make: type[Maker]) -> None:
    runs = make.runs(PACK)
    assert runs.run()[0] == 0
    runs.write(PACK.replace("val: 500", "val: 400"))
    code, output = runs.run()
    assert code == 2
    assert "spec.pack.splits.val was 500, is 400" in output
    assert "--restart pack" in output
    no_traceback(output)
    assert len(runs.attempts("pack")) == 1

    code, output = runs.run("--restart", "pack")
    assert code == 0, output
    assert len(runs.attempts("pack")) == 2
    lives = sorted(path.name for path in (runs.state / "jobs" / "pack").glob("run-*"))
    assert lives == ["run-0001", "run-0002"], "the first run's output is still there"

    code, output = runs.run("--restart", "pakc")
    assert code == 2
    assert "pakc" in output
    runs.write(PACK.replace("val: 500", "val: 400").replace("spec: {", "spec: {policy: {retries: {application: 1}}, "))
    assert runs.run()[0] == 0, "a policy is not part of the result"


def test_wrong_names_of_commands_and_jobs(make: type[Maker], tmp_path: Path) -> None:
    code, output = dinoctl("status", "--state-dir", str(tmp_path / "nothing"), cwd=tmp_path)
    assert code == 2
    assert "holds no jobs" in output
    code, output = dinoctl("logs", "nobody", "--state-dir", str(tmp_path / "nothing"), cwd=tmp_path)
    assert code == 2
    assert "no job named 'nobody'" in output
    code, output = dinoctl("run", str(tmp_path / "missing.yaml"), cwd=tmp_path)
    assert code == 2
    assert "missing.yaml: cannot be read: No such file or directory" in output
    no_traceback(output)
