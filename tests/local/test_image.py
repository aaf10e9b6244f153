"""What the image is made with, into a fresh prefix: the client works from it read-only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "image" / "install.sh"
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the client alone: half a minute. The extras take the same way."""
    made = tmp_path_factory.mktemp("image") / "dinoctl"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([INSTALL, made], env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    return made


def _run(prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From a prefix that can't be written to: mounted so for root, whom no mode would keep out."""
    command = [str(prefix / "bin" / arguments[0]), *arguments[1:]]
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(prefix), *command]
    else:
        subprocess.run(["chmod", "-R", "a-w", prefix], check=True)
    environment = {"PATH": f"{prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd="/")


def test_it_runs_read_only(prefix: Path) -> None:
    refused = _run(prefix, "python", "-c", f"open('{prefix}/x', 'w')")
    assert "Read-only file system" in refused.stderr or "Permission denied" in refused.stderr
    assert _run(prefix, "dinoctl", "--version").stdout.startswith("dinoctl ")
    document = (ROOT / "jobs" / "vitg_pretrain.yaml").read_text(encoding="utf-8")
    (prefix.parent / "job.yaml").write_text(document)
    told = _run(prefix, "dinoctl", "validate", str(prefix.parent / "job.yaml"))
    assert told.returncode == 0, told.stderr


def test_nobody_else_may_write_there(prefix: Path) -> None:
    assert not [path for path in prefix.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]


def test_a_used_prefix_is_refused(prefix: Path) -> None:
    done = subprocess.run([INSTALL, prefix], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is there already; name a fresh directory" in done.stderr


@pytest.mark.parametrize("extras", ["", "train,operator", "build-system"])
def test_of_what_is_needed_nothing_is_left_out(extras: str) -> None:
    """Also where the lock has one entry for each Python."""
    files = [str(ROOT / name) for name in ("image/needed.py", "requirements.lock", "pyproject.toml")]
    wanted = subprocess.run([sys.executable, *files, extras], capture_output=True, text=True, check=True).stdout
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entry = re.compile(r"^[a-z0-9][\w.-]*==[^\\]*", re.M)
    named = {one.partition("==")[0] for one in entry.findall(wanted)}
    assert entry.findall(wanted) == [one for one in entry.findall(locked) if one.partition("==")[0] in named]
    assert {"": "pydantic", "train,operator": "numpy", "build-system": "hatchling"}[extras] in named


def test_the_containerfile_names_no_registry() -> None:
    lines = (ROOT / "image" / "Containerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM ${BASE}"]
    assert "ARG BASE=python:3.11-slim-bookworm" in lines
    assert "USER 1000:1000" in lines


def test_the_containerfile_takes_every_step_of_the_script_and_no_other(tmp_path: Path) -> None:
    written = (ROOT / "image" / "Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"install\.sh \S+ \S+ (\w+)", written) == ["packages", "project"]
    done = subprocess.run([INSTALL, tmp_path / "new", "", "all"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, (tmp_path / "new").exists()) == (2, False)
    assert "no step 'all'; there are packages and project" in done.stderr
