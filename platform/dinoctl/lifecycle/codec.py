"""A status as plain JSON and back, by the dataclasses' own types.

Keys are the fields in camelCase. Unknown keys are passed over and missing ones take their defaults, so an older and a
newer dinoctl can read each other's files within one version; another version is refused rather than misread.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from dinoctl.lifecycle.types import Status

VERSION = 1


def encode(status: Status) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers; fields at their default are left out."""
    return {"version": VERSION, **_encode_fields(status)}


def decode(document: Mapping[str, Any]) -> Status:
    """The status that ``encode`` was given. A ValueError names the field that is wrong."""
    version = document.get("version")
    if version != VERSION:
        raise ValueError(f"status: version {version!r} cannot be read by this dinoctl, which knows version {VERSION}")
    status: Status = _decode(Status, document, "status")
    return status


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return _encode_fields(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def _encode_fields(value: Any) -> dict[str, Any]:
    present = ((f, getattr(value, f.name)) for f in fields(value))
    return {_camel(f.name): _encode(item) for f, item in present if item != _default(f)}


def _decode(kind: Any, value: Any, path: str) -> Any:
    if is_dataclass(kind):
        return _decode_fields(kind, value, path)
    if get_origin(kind) is UnionType:  # X | None is the only union here
        inner = next(arg for arg in get_args(kind) if arg is not NoneType)
        return None if value is None else _decode(inner, value, path)
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list) else _refuse(path, "a list", value)
        return tuple(_decode(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    return _decode_plain(kind, value, path)


def _decode_fields(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        _refuse(path, "an object", value)
    hints, found = _hints(kind), {}
    for f in fields(kind):
        key = _camel(f.name)
        if key in value:
            found[f.name] = _decode(hints[f.name], value[key], f"{path}.{key}")
        elif _default(f) is MISSING:
            raise ValueError(f"{path}.{key}: is missing")
    return kind(**found)


def _decode_plain(kind: Any, value: Any, path: str) -> Any:
    if issubclass(kind, StrEnum):
        words = kind._value2member_map_
        return (
            words[value]
            if isinstance(value, str) and value in words
            else _refuse(path, f"one of {', '.join(kind)}", value)
        )
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else _refuse(path, f"a {kind.__name__}", value)


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _refuse(path: str, wanted: str, value: Any) -> Any:
    raise ValueError(f"{path}: expected {wanted}, found {value!r}")
