"""What the image is made with, into a fresh prefix: the client works from it as another user, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "image" / "install.sh"
_USER = 1000


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the client alone: seconds. The extras take the same way."""
    made = tmp_path_factory.mktemp("image") / "dinoctl"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([INSTALL, made], env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    for folder in (made.parent, made.parent.parent, made.parent.parent.parent):
        folder.chmod(0o755)
    return made


def _run(prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    as_another = {"user": _USER, "group": _USER} if os.geteuid() == 0 else {}
    environment = {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    return subprocess.run(
        [prefix / "bin" / arguments[0], *arguments[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        **as_another,  # type: ignore[arg-type]
    )


def test_it_runs_and_leaves_the_prefix_as_it_is(prefix: Path) -> None:
    before = _content(prefix)
    assert _run(prefix, "dinoctl", "--version").stdout.startswith("dinoctl ")
    document = (ROOT / "jobs" / "vitg_pretrain.yaml").read_text(encoding="utf-8")
    (prefix.parent / "job.yaml").write_text(document)
    told = _run(prefix, "dinoctl", "validate", str(prefix.parent / "job.yaml"))
    assert told.returncode == 0, told.stderr
    assert _content(prefix) == before


def test_nobody_else_may_write_there(prefix: Path) -> None:
    assert not [path for path in prefix.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]


def test_a_used_prefix_is_refused(prefix: Path) -> None:
    done = subprocess.run([INSTALL, prefix], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is there already; name a fresh directory" in done.stderr


def test_the_containerfile_names_no_registry() -> None:
    lines = (ROOT / "image" / "Containerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM ${BASE}"]
    assert "ARG BASE=python:3.11-slim-bookworm" in lines
    assert "USER 1000:1000" in lines


def _content(prefix: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in prefix.rglob("*")}
