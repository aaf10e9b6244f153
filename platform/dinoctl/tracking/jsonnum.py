"""Floats in strict JSON: nan and the infinities, which JSON has no word for, travel as the strings "nan", "inf",
"-inf".
"""

import math
from typing import Any, TypeAlias

JsonNumber: TypeAlias = float | str


def to_json(value: float) -> JsonNumber:
    """A float that `json.dumps(..., allow_nan=False)` accepts. Integers and numpy or torch scalars become floats.

    Raises TypeError or ValueError where `float(value)` does.
    """
    number = float(value)
    return number if math.isfinite(number) else str(number)


def strict(value: Any) -> Any:
    """Dicts, lists and tuples with every float in them through `to_json`; anything else as it is."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return to_json(value) if isinstance(value, float) else value


def from_json(value: object) -> float:
    """Inverse of `to_json`. Raises ValueError for anything that is neither a number nor one of its strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
