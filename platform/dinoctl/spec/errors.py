"""Two kinds of trouble that are not bugs, and how they are told: one clear line each, no traceback (design §9)."""

import re
from dataclasses import dataclass


def redacted(text: object) -> str:
    """In one line, and without the user and password that a URL in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(str(text).split()))


class UserError(ValueError):
    """The user's mistake: names the place, what is wrong and what would be right. Exit code 2."""


class EnvironmentProblem(OSError):
    """The surroundings' fault (storage, network, disk, ports): what was tried and what to do. Exit code 3."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a document. ``line`` and ``column`` count from 1; 0 means that there is no place."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class SpecError(UserError):
    """All mistakes of the documents given."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))
