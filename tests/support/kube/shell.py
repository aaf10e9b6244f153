"""Commands of the system that either succeed or are said in full."""

import subprocess
from pathlib import Path

_LIMIT_S = 60


class CommandFailed(Exception):
    """A command with what it wrote."""


def call(*words: str | Path) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
