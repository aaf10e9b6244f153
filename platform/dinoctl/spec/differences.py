"""What differs between two documents, leaf by leaf, in the words of the document."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """``path`` with YAML names; None means that the field isn't set."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path} was {shown(self.old)}, is {shown(self.new)}"


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = (), path: str = "spec"
) -> Iterator[Difference]:
    """Leaves below ``path`` that differ; ``free`` paths may."""
    for key in sorted({*old, *new}):
        where = f"{path}.{key}" if path else key
        if where in free:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, free, where)
        elif before != after:
            yield Difference(where, before, after)


def shown(value: Any) -> str:
    """One value, in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)
