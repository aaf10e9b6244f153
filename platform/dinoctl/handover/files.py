"""Small files that others read while they are written."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces ``path``: a reader sees all of the old text or all of the new."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
