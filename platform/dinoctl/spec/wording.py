"""What pydantic found, in words of the document: one line, what is wrong, what would be right."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from dinoctl.spec.errors import Problem
from dinoctl.spec.job import API_VERSION, STAGES, DinoJob
from dinoctl.spec.sources import SOURCE_TAGS
from dinoctl.spec.yamldoc import Path, YamlDoc

_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text of valid characters",
    "list_type": "a list, for example [1, 2]",
    "tuple_type": "a list, for example [1, 2]",
    "dict_type": "a mapping (name: value)",
    "model_type": "a mapping (field: value)",
    "model_attributes_type": "a mapping (field: value)",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "at least {min_length} characters long",
    "string_pattern_mismatch": "text like {pattern}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
_NUMBERS = ("int_type", "float_type", "int_from_float")


def problem_of(doc: YamlDoc, detail: Any, root: type[BaseModel] = DinoJob) -> Problem:
    """One of pydantic's errors with its place in the file. ``root`` is what the document was read as."""
    path: Path = tuple(part for part in detail["loc"] if part not in (*SOURCE_TAGS, "[key]"))
    return doc.problem(path, _message(path, detail, root))


def _message(path: Path, detail: Any, root: type[BaseModel]) -> str:
    kind, given = detail["type"], detail["input"]
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "extra_forbidden":
        return "unknown field" + suggestion(str(detail["loc"][-1]), _fields_at(path[:-1], root))
    if kind == "missing":
        return _missing(path, given)
    if kind == "union_tag_invalid":
        return _reference(path, given)
    if kind == "literal_error":
        return _one_of(detail)
    if not path and root is DinoJob:
        return f"must be a mapping with apiVersion: {API_VERSION}, kind: DinoJob, metadata and spec, not {_show(given)}"
    if kind == "too_short" and isinstance(given, Mapping):
        return f"must have at least {detail['ctx']['min_length']} entry"
    if kind in _MUST_BE:
        limits = {name: f"{v:g}" if isinstance(v, float) else v for name, v in detail.get("ctx", {}).items()}
        return f"must be {_MUST_BE[kind].format(**limits)}, not {_show(given)}{_hint(kind, given)}"
    message = str(detail["msg"])
    return f"{message[0].lower()}{message[1:]}, not {_show(given)}"


def _missing(path: Path, given: object) -> str:
    """A stage's name beside ``spec`` instead of below it is a slip that deserves its own words."""
    if path == ("spec",) and isinstance(given, dict) and (found := [kind for kind in STAGES if kind in given]):
        return f"required field is missing; put {found[0]} below spec"
    return "required field is missing"


def _reference(path: Path, given: object) -> str:
    if path and path[-1] in ("source", "dataset"):
        return f"must be a URI, a path or {{job: NAME}}, not {_show(given)}"
    if isinstance(given, str):
        kind = "model" if given.startswith("models:") else "uri"
        right = f"{{{kind}: {given}}}" if ":" in given or "/" in given else f"{{job: {given}}}"
        return f"must be a mapping; write {right[:100]}"
    return f"must be {{job: NAME}}, {{model: models:/NAME@ALIAS}} or {{uri: ...}}, not {_show(given)}"


def _one_of(detail: Any) -> str:
    expected = str(detail["ctx"]["expected"]).replace(" or ", ", ")
    allowed = [part.strip().strip("'") for part in expected.split(",")]
    text = f"must be {allowed[0]}" if len(allowed) == 1 else f"must be one of {', '.join(allowed)}"
    given = detail["input"]
    close = suggestion(str(given), allowed) if isinstance(given, str) and len(allowed) > 1 else ""
    return f"{text}, not {_show(given)}{close if 'did you mean' in close else ''}"


def _hint(kind: str, given: object) -> str:
    if kind in _NUMBERS and isinstance(given, str) and given.replace(".", "", 1).isdigit():
        return "; remove the quotes"
    if kind == "bool_type" and isinstance(given, str) and given.lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if given.lower() in ('yes', 'on') else 'false'}"
    if kind == "string_type" and isinstance(given, (int, float)):
        return "; put it in quotes"
    return ""


def _show(value: object) -> str:
    """At most 60 characters of a value, as one line."""
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or what there is."""
    known = sorted(known)
    folded = {name.lower().replace("_", ""): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", ""), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _fields_at(path: Path, root: type[BaseModel]) -> list[str]:
    """YAML names of the fields of the section at ``path``; a part that is no field is a key of a mapping."""
    models: list[type[BaseModel]] = [root]
    for part in path:
        if isinstance(part, int):
            continue
        models = [
            inner
            for model in models
            for name, info in model.model_fields.items()
            if (info.alias or name) == part
            for inner in models_in(info.annotation)
        ] or models
    return [info.alias or name for model in models for name, info in model.model_fields.items()]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections that an annotation speaks of: X, X | None, list[X], Annotated[X | Y, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
