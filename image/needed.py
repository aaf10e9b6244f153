"""needed.py LOCK PYPROJECT [EXTRAS]: the part of a lock that the project with these extras needs, hashes and all.

The lock is for all extras; who asked for what stands below each of its entries ("# via"). ``build-system`` in place of
extras: what the project is built with.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def entries(lock: str) -> list[tuple[str, str]]:
    """Name and text of every entry; a name may have several, for one Python each."""
    parts = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)
    return [(part.split("==")[0], part) for part in parts if "==" in part]


def asked_for(pyproject: str, extras: Iterable[str]) -> set[str]:
    """What the project itself asks for."""
    document = tomllib.loads(pyproject)
    project, extras = document["project"], list(extras)
    wanted = [*project["dependencies"]]
    if extras == ["build-system"]:
        wanted, extras = document["build-system"]["requires"], []
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            raise SystemExit(f"needed.py: no extra {extra!r}; there are {', '.join(project['optional-dependencies'])}")
        wanted += project["optional-dependencies"][extra]
    return {_normal(re.split(r"[\[<>=!~; ]", one)[0]) for one in wanted}


def needed(found: list[tuple[str, str]], first: set[str]) -> list[str]:
    """Entries of ``first``, and of whatever they brought in."""
    reached, grown = set(first), True
    while grown:
        more = {name for name, text in found if name not in reached and _askers(text) & reached}
        reached |= more
        grown = bool(more)
    return [text for name, text in found if name in reached]


def _askers(text: str) -> set[str]:
    after = text.partition("# via")[2]
    return {_normal(name) for name in re.findall(r"[A-Za-z0-9][\w.-]*", after.replace("(pyproject.toml)", ""))}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    lock, pyproject, extras = sys.argv[1], sys.argv[2], [one for one in ",".join(sys.argv[3:]).split(",") if one]
    first = asked_for(Path(pyproject).read_text(encoding="utf-8"), extras)
    sys.stdout.write("".join(needed(entries(Path(lock).read_text(encoding="utf-8")), first)))
