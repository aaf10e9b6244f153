"""Files, directories and standard input to validated jobs; every mistake of every file is reported at once.

On a cluster a parent need not be in the files: ``find`` looks for it where the jobs will go, and one that isn't there
either may come later.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.graph import check_references, parents
from dinoctl.spec.job import DinoJob
from dinoctl.spec.wording import problem_of
from dinoctl.spec.yamldoc import YamlDoc, read_yaml


@dataclass(frozen=True)
class LoadedJob:
    """A valid document and the text it came from. ``elsewhere``: it is not one of the files', only referred to."""

    job: DinoJob
    doc: YamlDoc
    elsewhere: bool = False

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.name


Find = Callable[[str], dict[str, Any] | None]
"""A job's document by name, wherever jobs are; None when there is none."""


def load(arguments: Iterable[str], find: Find | None = None) -> list[LoadedJob]:
    """Every job of the files, directories (``*.yaml``, ``*.yml``) and ``-`` (standard input) given; with ``find`` also
    those found there that they descend from.

    Raises:
        SpecError: with all problems of all files.

    """
    arguments = list(arguments)
    problems: list[Problem] = []
    docs = [doc for file, text in _texts(arguments, problems) for doc in read_yaml(text, file, problems)]
    jobs = [job for doc in docs if (job := validate(doc, problems)) is not None]
    around = _ancestors(jobs, find) if find is not None and not problems else []
    check_references([*jobs, *around], problems, complete=not problems and find is None)
    if problems:
        raise SpecError(problems)
    if not jobs:
        place = ", ".join(arguments) or "the command line"
        text = "no DinoJob documents found; a document starts with apiVersion: dinoctl.io/v1alpha1 and kind: DinoJob"
        raise SpecError([Problem(place, 0, 0, "", text)])
    return [*jobs, *around]


def _ancestors(jobs: list[LoadedJob], find: Find) -> list[LoadedJob]:
    known = {job.name for job in jobs}
    found: list[LoadedJob] = []
    waiting = [name for job in jobs for name in parents(job)]
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        document = find(name)
        job = validate(YamlDoc(f"dinojob/{name}", document), [], elsewhere=True) if document else None
        if job is not None:  # one that this dinoctl can't read is as good as unknown; the operator judges it
            found.append(job)
            waiting.extend(parents(job))
    return found


def _texts(arguments: Iterable[str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for argument in dict.fromkeys(arguments):
        if argument == "-":
            yield from _text("<stdin>", _stdin, problems)
            continue
        path = FilePath(argument)
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        if not files:
            problems.append(Problem(argument, 0, 0, "", "no *.yaml files in this directory"))
        for file in files:
            real = os.path.realpath(file)
            if real not in seen:  # a directory and a file of it may both be named
                seen.add(real)
                yield from _text(str(file), file.read_bytes, problems)


def _text(name: str, read: Callable[[], bytes], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    try:
        data = read()
        yield name, data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        problems.append(Problem(name, line, column, "", "not UTF-8 text; save the file as UTF-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.append(Problem(name, 0, 0, "", f"cannot be read: {reason}"))


def _stdin() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    return stream.read() if stream is not None else sys.stdin.read().encode()


def validate(doc: YamlDoc, problems: list[Problem], *, elsewhere: bool = False) -> LoadedJob | None:
    """The job of one document, or None and its problems."""
    try:
        return LoadedJob(DinoJob.model_validate(doc.data, by_alias=True, by_name=False), doc, elsewhere)
    except ValidationError as error:
        problems.extend(problem_of(doc, detail) for detail in error.errors())
        return None
