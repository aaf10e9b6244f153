"""JSON Schema of a document, generated from the models, made for editors: what is shown on hover is what helps.

It says less than the models (a duration's value, a reference's target, sums over fields), never more: what the models
take, the schema takes.
"""

from typing import Any

from dinoctl.spec.base import Section
from dinoctl.spec.job import DinoJob

URL = "https://json-schema.org/draft/2020-12/schema"


def json_schema(root: type[Section] = DinoJob) -> dict[str, Any]:
    """Draft 2020-12, with YAML names, descriptions and defaults."""
    raw = root.model_json_schema(by_alias=True)
    definitions = {name: _section(name, node) for name, node in sorted(raw.pop("$defs").items())}
    return {"$schema": URL, **_section(root.__name__, raw), "$defs": definitions}


def _section(name: str, node: dict[str, Any]) -> dict[str, Any]:
    """One model: its title and description first, then its fields in the order of the document."""
    fields = {key: _field(value) for key, value in node.get("properties", {}).items()}
    rest = {key: value for key, value in node.items() if key not in ("title", "description", "properties")}
    text = " ".join(str(node.get("description", "")).split())
    return {"title": name, "description": text, "properties": fields, **rest}


def _field(node: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what is ours alone, automatic titles, and defaults that the field's own section repeats."""
    hidden = {"source", "derived", "title"}
    if isinstance(node.get("default"), dict) or node.get("default", ...) is None:
        hidden.add("default")
    return _nullable({key: _typed(value) for key, value in node.items() if key not in hidden})


def _typed(node: Any) -> Any:
    if isinstance(node, dict):
        return _nullable({key: _typed(value) for key, value in node.items() if key != "title"})
    return [_typed(item) for item in node] if isinstance(node, list) else node


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    """``anyOf [X, null]`` of a plain type is ``type: [X, null]``, which editors show in one line."""
    options = [inner for option in node.get("anyOf", []) for inner in option.get("anyOf", [option])]
    plain = [option for option in options if option != {"type": "null"}]
    if len(options) != 2 or len(plain) != 1 or not isinstance(plain[0].get("type"), str):
        return {**node, "anyOf": options} if options else node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    only = {**plain[0], "type": [plain[0]["type"], "null"]}
    if "enum" in only:
        only["enum"] = [*only["enum"], None]
    return {**rest, **only}
