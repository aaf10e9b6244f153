"""What the API server does with bodies: merge patches, server-side apply, selectors."""

import copy
import re
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def leaves(body: Any, path: Path = ()) -> dict[Path, Any]:
    """Path to value; lists are whole (so are most lists of CRDs), and so are empty maps."""
    if not isinstance(body, dict) or (not body and path):
        return {path: body}
    return {leaf: value for key, child in body.items() for leaf, value in leaves(child, (*path, key)).items()}


def at(target: Any, path: Path) -> Any:
    for part in path:
        if not isinstance(target, dict) or part not in target:
            return None
        target = target[part]
    return target


def put(target: Object, path: Path, value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[path[-1]] = copy.deepcopy(value)


def drop(target: Object, path: Path) -> None:
    parents = [target]
    for part in path[:-1]:
        if not isinstance(parents[-1].get(part), dict):
            return
        parents.append(parents[-1][part])
    parents[-1].pop(path[-1], None)
    for parent, key in reversed(list(zip(parents[:-1], path[:-1], strict=True))):
        if parent[key] == {}:
            del parent[key]


def applied(old: Object, body: Object, manager: str, owners: dict[str, set[Path]]) -> tuple[Object, list[Path]]:
    """The object after server-side apply, with ``owners`` brought up to date, and fields in conflict."""
    wanted = {path: value for path, value in leaves(body).items() if path[:2] not in _IDENTITY and path[0] not in _TYPE}
    others = {name: paths for name, paths in owners.items() if name != manager}
    conflicts = [
        path
        for path, value in wanted.items()
        if at(old, path) != value and any(path in paths for paths in others.values())
    ]
    new = copy.deepcopy(old)
    for path in owners.get(manager, set()) - wanted.keys():
        if not any(path in paths for paths in others.values()):
            drop(new, path)
    for path, value in wanted.items():
        put(new, path, value)
    for path in conflicts:
        for paths in others.values():
            paths.discard(path)
    owners[manager] = set(wanted)
    return new, conflicts


_TYPE = ("apiVersion", "kind")
_IDENTITY = {("metadata", key) for key in ("name", "namespace", "uid", "resourceVersion")}
_TERM = re.compile(r"\s*(?:(!)?([\w./-]+)\s*(?:(==|=|!=|in|notin)\s*(\([^)]*\)|[\w.:/-]*))?)\s*(?:,|$)")


def selected(labels: dict[str, str], selector: str) -> bool:
    """Equality, existence and sets, as in kubectl's ``-l``."""
    for no, key, operator, text in _TERM.findall(selector):
        values = [value.strip() for value in text.strip("()").split(",")]
        has = key in labels
        inside = has and labels[key] in values
        good = {"": has != bool(no), "=": inside, "==": inside, "in": inside}.get(operator, not inside)
        if not good:
            return False
    return True


def fields_match(body: Object, selector: str) -> bool:
    """``metadata.name=x,involvedObject.uid=y``."""
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("=")
        if str(at(body, tuple(path.split("."))) or "") != value.lstrip("="):
            return False
    return True
