"""What every section of a document shares: strict, frozen, camelCase outside, every field described and sourced.

``paper`` and ``choice`` are how fields are declared. Both take a description (with the unit); ``paper`` also takes
the source of the value, and ``dinoctl resolve --origins`` prints it beside the value. A default that depends on other
fields is written as None and filled by ``resolve``; ``derived`` declares it and says the rule.
"""

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.alias_generators import to_camel


class Section(BaseModel):
    """Base of every part of a document."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=False,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

    @model_serializer(mode="wrap")
    def _keep_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """With ``exclude_none`` a null that differs from the default (``layerScale: null``) still has to be written,
        or the document that is read back would be another one.
        """
        written: dict[str, Any] = handler(self)
        for name, info in type(self).model_fields.items():
            if getattr(self, name) is None and info.default is not None:
                written.setdefault(info.alias or name, None)
        return written


def paper(default: Any, description: str, source: str, **limits: Any) -> Any:
    """A field whose default is published; ``source`` names the table, section or configuration it comes from."""
    return Field(default, description=f"{description} [{source}]", json_schema_extra={"source": source}, **limits)


def choice(default: Any, description: str, **limits: Any) -> Any:
    """A field whose default is ours."""
    return Field(default, description=description, json_schema_extra={"source": "dinoctl"}, **limits)


def derived(description: str, rule: str, **limits: Any) -> Any:
    """A field that is None in the document unless the user sets it; ``resolve`` fills it in by ``rule``."""
    text = f"{description} Default: {rule}."
    return Field(None, description=text, json_schema_extra={"source": rule, "derived": True}, **limits)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> object:
    """``90s``, ``15m``, ``12h``, ``30d`` (or combined, ``1h30m``) to seconds; numbers are seconds already.

    Raises:
        ValueError: when a string is not of that form.

    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(f"{value!r} is not a duration; write for example 90s, 15m, 12h or 30d")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))  # inf is refused by the model


_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(value: object) -> object:
    """``256MiB``, ``64MB``, ``1GiB`` to bytes; numbers are bytes already.

    Raises:
        ValueError: when a string is not of that form.

    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2].upper() not in _BYTES:
        raise ValueError(f"{value!r} is not a size; write for example 256MiB or 1GB")
    size = float(match[1]) * _BYTES[match[2].upper()]
    if size >= 2**63:
        raise ValueError(f"{value!r} is too large a size")
    return int(size)


def _plain_seconds(value: float) -> str:
    return f"{value:.15f}".rstrip("0").rstrip(".") + "s" if value % 1 else f"{value:.0f}s"


DURATION_PATTERN = r"^\s*(\d+(\.\d+)?\s*(s|m|h|d)\s*)+$"
SIZE_PATTERN = r"^\s*\d+(\.\d+)?\s*([kKmMgG][iI]?[bB])?\s*$"
Positive = Annotated[float, Field(gt=0.0)]
Duration = Annotated[
    Positive,
    BeforeValidator(
        parse_duration,
        json_schema_input_type=Annotated[str, Field(pattern=DURATION_PATTERN)] | Annotated[float, Field(gt=0)],
    ),
    PlainSerializer(_plain_seconds, return_type=str),
]
Size = Annotated[
    int,
    BeforeValidator(
        parse_bytes, json_schema_input_type=Annotated[str, Field(pattern=SIZE_PATTERN)] | Annotated[int, Field(ge=1)]
    ),
]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Steps = Annotated[int, Field(ge=1)]


def as_tuple(value: object) -> object:
    """YAML has lists only."""
    return tuple(value) if isinstance(value, list) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the first number must not exceed the second, got {list(value)}; swap them")
    return value


_Tuple = BeforeValidator(as_tuple)
ORDERED = AfterValidator(_ordered)
"""Marks intervals: the first number must not exceed the second."""
PositiveInterval = Annotated[tuple[Positive, Positive], _Tuple, ORDERED]
UnitInterval = Annotated[tuple[Probability, Probability], _Tuple, ORDERED]
ShareInterval = Annotated[tuple[Share, Share], _Tuple, ORDERED]
Decays = Annotated[tuple[Decay, Decay], _Tuple]
PositiveRgb = Annotated[tuple[Positive, Positive, Positive], _Tuple]
Rgb = Annotated[tuple[float, float, float], _Tuple]
