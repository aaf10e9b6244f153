"""Files, directories and standard input to validated jobs; every mistake of every file is reported at once."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.graph import check_references
from dinoctl.spec.job import DinoJob
from dinoctl.spec.yamldoc import Path, YamlDoc, read_yaml


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
    problems: list[Problem] = []
    docs: list[YamlDoc] = []
    for file, text in _texts(arguments, problems):
        try:
            docs.extend(read_yaml(text, file))
        except SpecError as error:
            problems.extend(error.problems)
    jobs = [job for doc in docs if (job := _validate(doc, problems)) is not None]
    check_references(jobs, problems, complete=not problems)
    if problems:
        raise SpecError(problems)
    if not jobs:
        raise SpecError([Problem(", ".join(arguments), 0, 0, "", "no DinoJob documents found")])
    return jobs


def load_text(text: str, file: str) -> list[LoadedJob]:
    """Every job of ``text``, without checking references to jobs of other files."""
    problems: list[Problem] = []
    jobs = [job for doc in read_yaml(text, file) if (job := _validate(doc, problems)) is not None]
    if problems:
        raise SpecError(problems)
    return jobs


def _texts(arguments: Iterable[str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    for argument in arguments:
        if argument == "-":
            yield "<stdin>", sys.stdin.read()
            continue
        path = FilePath(argument)
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        if not files:
            problems.append(Problem(argument, 0, 0, "", "no *.yaml files in this directory"))
        for file in files:
            try:
                yield str(file), file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                problems.append(Problem(str(file), 0, 0, "", f"cannot be read: {reason}"))


def _validate(doc: YamlDoc, problems: list[Problem]) -> LoadedJob | None:
    try:
        return LoadedJob(DinoJob.model_validate(doc.data, by_alias=True, by_name=False), doc)
    except ValidationError as error:
        problems.extend(_problem(doc, detail) for detail in error.errors())
        return None


def _problem(doc: YamlDoc, detail: Any) -> Problem:
    path: Path = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("<")))
    kind, message = detail["type"], str(detail["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "unknown field" + _suggest(str(path[-1]), _fields_at(path[:-1]))
    elif kind == "missing":
        message = "required field is missing"
    elif kind == "literal_error":
        allowed = [str(value) for value in _literals(detail)]
        message = f"must be one of {', '.join(allowed)}, not {detail['input']!r}" + _suggest(
            str(detail["input"]), allowed
        )
    elif kind != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
    return doc.problem(path, message)


def _literals(detail: Any) -> list[str]:
    expected = str(detail["ctx"]["expected"]).replace(" or ", ", ")
    return [part.strip().strip("'") for part in expected.split(",")]


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    folded = {name.lower().replace("_", ""): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", ""), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


def _fields_at(path: Path) -> list[str]:
    """YAML names of the fields of the section at ``path``."""
    models: list[type[BaseModel]] = [DinoJob]
    for part in path:
        if isinstance(part, int):
            continue
        models = [
            inner
            for model in models
            for name, info in model.model_fields.items()
            if (info.alias or name) == part
            for inner in _models_in(info.annotation)
        ]
    return [info.alias or name for model in models for name, info in model.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list) or get_args(annotation):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []
