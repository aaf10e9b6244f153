"""What became of a document."""

from collections.abc import Iterator
from typing import Any


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of ``added``, ``removed`` or ``changed`` and the place, as ``.spec.containers[0].image``. A list that grew
    at its end has got more entries; one that shrank has changed.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new:
                yield "removed", f"{where}.{key}"
            elif key not in old:
                yield "added", f"{where}.{key}"
            else:
                yield from differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        for index, value in enumerate(new):
            if index < len(old):
                yield from differences(old[index], value, f"{where}[{index}]")
            else:
                yield "added", f"{where}[{index}]"
    elif old != new:
        yield "changed", where
