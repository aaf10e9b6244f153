"""Files, directories and standard input to validated jobs; every mistake of every file is reported at once."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath

from pydantic import ValidationError

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.graph import check_references
from dinoctl.spec.job import DinoJob
from dinoctl.spec.wording import problem_of
from dinoctl.spec.yamldoc import YamlDoc, read_yaml


@dataclass(frozen=True)
class LoadedJob:
    """A valid document and the text it came from."""

    job: DinoJob
    doc: YamlDoc

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.name


def load(arguments: Iterable[str]) -> list[LoadedJob]:
    """Every job of the files, directories (``*.yaml``, ``*.yml``) and ``-`` (standard input) given.

    Raises:
        SpecError: with all problems of all files.

    """
    arguments = list(arguments)
    problems: list[Problem] = []
    docs = [doc for file, text in _texts(arguments, problems) for doc in read_yaml(text, file, problems)]
    jobs = [job for doc in docs if (job := validate(doc, problems)) is not None]
    check_references(jobs, problems, complete=not problems)
    if problems:
        raise SpecError(problems)
    if not jobs:
        place = ", ".join(arguments) or "the command line"
        text = "no DinoJob documents found; a document starts with apiVersion: dinoctl.io/v1alpha1 and kind: DinoJob"
        raise SpecError([Problem(place, 0, 0, "", text)])
    return jobs


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


def validate(doc: YamlDoc, problems: list[Problem]) -> LoadedJob | None:
    """The job of one document, or None and its problems."""
    try:
        return LoadedJob(DinoJob.model_validate(doc.data, by_alias=True, by_name=False), doc)
    except ValidationError as error:
        problems.extend(problem_of(doc, detail) for detail in error.errors())
        return None
