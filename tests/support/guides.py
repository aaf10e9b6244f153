"""Examples in the project's pages, so that tests can try them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "image" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[str]:
    """Fenced texts of one language."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found[1] == language:
            yield found[2]


def documents(page: Path) -> list[dict[str, Any]]:
    """YAML of a page, with whole digests."""
    whole = (text.replace("sha256:...", f"sha256:{'5d' * 32}") for text in blocks(page, "yaml"))
    return [one for text in whole for one in yaml.safe_load_all(text)]


def commands(page: Path, program: str) -> list[list[str]]:
    """Arguments of each call of a program, as a shell would split them."""
    lines = [shlex.split(line, comments=True) for text in blocks(page, "sh") for line in text.splitlines()]
    return [line[1:] for line in lines if line[:1] == [program]]
