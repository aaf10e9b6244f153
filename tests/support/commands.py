"""Commands as they are typed, in this process: exit code, output, and errors as ``main`` tells them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dinoctl.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``run("status", "-n", "team")``."""
    for name in ("DINOCTL_TARGET", "DINOCTL_STATE_DIR", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["dinoctl", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        found = capsys.readouterr()
        return Said(code, found.out, found.err)

    return run
