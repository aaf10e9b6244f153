"""From the models' JSON Schema to the structural schema that a CustomResourceDefinition wants.

Everything is inlined, every node has one type, null is ``nullable``, and lists, maps and texts have bounds, so that the
cost of CEL rules can be estimated. No defaults: what a user left out stays out, and dinoctl fills it in.
"""

from typing import Any

from dinoctl.spec.base import Section
from dinoctl.spec.crd_rules import model_source_rules, rules

Node = dict[str, Any]
_MAX_TEXT, _MAX_ITEMS, _MAX_KEYS = 2048, 64, 32
_KEPT = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")
_LINK = "#/$defs/"


class Structural:
    """Converts nodes of one JSON Schema. ``models`` by name bring the CEL rules."""

    def __init__(self, definitions: dict[str, Node], models: dict[str, type[Section]]) -> None:
        self._definitions, self._models = definitions, models

    def section(self, name: str, description: str | None = None) -> Node:
        """The schema of one model."""
        raw = self._definitions[name]
        node = {
            "description": _one_line(description or raw.get("description", "")),
            "type": "object",
            "properties": {key: self.node(value) for key, value in raw["properties"].items()},
            **({"required": raw["required"]} if "required" in raw else {}),
        }
        return _ruled(node, rules(self._models[name]))

    def node(self, raw: Node) -> Node:
        """The schema of one value."""
        text = raw.get("description")
        if "$ref" in raw:
            return self.section(raw["$ref"].removeprefix(_LINK), text)
        options = raw.get("anyOf") or raw.get("oneOf")
        plain = self._union(options) if options else self._plain(raw)
        return {**({"description": _one_line(text)} if text else {}), **plain}

    def _union(self, options: list[Node]) -> Node:
        given = [option for option in options if option.get("type") != "null"]
        if len(given) < len(options):
            return {**_without_enum(self.node(given[0] if len(given) == 1 else {"anyOf": given})), "nullable": True}
        if len(given) == 1:
            return self.node(given[0])
        if all("$ref" in option for option in given):
            return self._alternatives([option["$ref"].removeprefix(_LINK) for option in given])
        if any("$ref" in option or "oneOf" in option for option in given):  # text or a mapping: no type says that
            return {"x-kubernetes-preserve-unknown-fields": True}
        return _number_or_text(given)

    def _alternatives(self, names: list[str]) -> Node:
        """Mappings that differ in their fields: one mapping of all fields; rules say which go together."""
        fields = {key: value for name in names for key, value in self.section(name)["properties"].items()}
        node = {"type": "object", "properties": fields, "x-kubernetes-map-type": "atomic"}
        return _ruled(node, model_source_rules())

    def _plain(self, raw: Node) -> Node:
        kind = raw.get("type") or _type_of(raw)
        node: Node = {"type": kind, **{key: raw[key] for key in _KEPT if key in raw}}
        if "enum" in raw or "const" in raw:
            return {**node, "enum": raw.get("enum", [raw.get("const")])}
        return {**node, **_limits(raw), **self._shape(kind, raw)}

    def _shape(self, kind: str, raw: Node) -> Node:
        if kind == "string":
            pattern = {"pattern": raw["pattern"]} if "pattern" in raw else {}
            return {"maxLength": raw.get("maxLength", _MAX_TEXT), **pattern}
        if kind == "array":
            items = raw["prefixItems"][0] if "prefixItems" in raw else raw["items"]  # all alike
            return {"items": self.node(items), "maxItems": raw.get("maxItems", _MAX_ITEMS)}
        if kind == "object":
            return {"additionalProperties": self.node(raw["additionalProperties"]), "maxProperties": _MAX_KEYS}
        return {"format": "int64"} if kind == "integer" else {}


def _without_enum(node: Node) -> Node:
    """The API server refuses null where there is an enum, even one that lists it; limits it does not apply to null."""
    values = node.get("enum")
    if values is None:
        return node
    rest = {key: value for key, value in node.items() if key != "enum"}
    if node["type"] == "integer":  # a whole range
        return {**rest, "minimum": min(values), "maximum": max(values)}
    return {**rest, "pattern": f"^({'|'.join(values)})$", "maxLength": max(map(len, values))}


def _limits(raw: Node) -> Node:
    """OpenAPI 3.0 has exclusive limits as flags, and its numbers end where JSON's do."""
    found: Node = {}
    for side in ("minimum", "maximum"):
        limit = raw.get(f"exclusive{side.capitalize()}")
        if limit is not None and abs(limit) < 2**63:
            found |= {side: limit, f"exclusive{side.capitalize()}": True}
    return found


def _number_or_text(options: list[Node]) -> Node:
    """Sizes and durations. A number of seconds with a fraction has to be written as text, as 1.5s."""
    text = next(option for option in options if option["type"] == "string")
    return {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": text["pattern"],
        "maxLength": 64,
        "x-kubernetes-int-or-string": True,
        "minimum": 1,
    }


def _type_of(raw: Node) -> str:
    values = raw.get("enum", [raw.get("const")])
    return "integer" if all(isinstance(value, int) for value in values) else "string"


def _ruled(node: Node, found: list[tuple[str, str]]) -> Node:
    listed = [{"rule": rule, "message": message} for rule, message in found]
    return {**node, "x-kubernetes-validations": listed} if listed else node


def _one_line(text: str) -> str:
    return " ".join(text.split())
