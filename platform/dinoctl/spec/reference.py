"""The reference page, generated from the models: ``python -m dinoctl.spec.reference > docs/reference.md``."""

import sys
from collections.abc import Iterator
from typing import Any

from dinoctl.spec.base import Section
from dinoctl.spec.job import API_VERSION, DinoJob
from dinoctl.spec.profile import OperatorConfig
from dinoctl.spec.schema import json_schema
from dinoctl.spec.wording import models_in

_INTRO = f"""# Reference of the document

A file holds one or many documents of this form, separated by `---`; one that needs another names it by `{{job: NAME}}`.

```yaml
apiVersion: {API_VERSION}
kind: DinoJob
metadata: {{name: my-job}}
spec:
  pretrain:        # exactly one of: pack pretrain highres distill evaluate
    data: {{source: s3://bucket/dataset/}}
```

Unknown fields are refused. A default's source stands in brackets: *paper* is DINOv2 (arXiv 2304.07193), *code* its
official implementation and *released behaviour* what that really does where it differs from what was meant; defaults
without a source are dinoctl's own. *derived* defaults are filled in by the rule given; `dinoctl resolve --origins FILE`
shows every value with the place it comes from.

What administrators write, profiles and settings of the operator, is [below](#operatorconfig).

This page is generated from the models (`python -m dinoctl.spec.reference`)."""

_OPERATOR = """# Reference of the operator's configuration

In the values of the Helm chart this is `operator.config`; [cluster.md](cluster.md) says how to choose. A profile is no
part of a job's hash: it may change under a running job, whose next attempt takes the new one."""


def reference() -> str:
    """The whole page."""
    parts = [_INTRO, *_tables(DinoJob), _OPERATOR, *_tables(OperatorConfig)]
    return "\n\n".join(parts) + "\n"


def _tables(root: type[Section]) -> Iterator[str]:
    whole = json_schema(root)
    for model in sections(root):
        schema = whole["$defs"].get(model.__name__) or whole
        yield f"## {model.__name__}\n\n{schema['description']}\n\n{_table(schema, model)}"


def sections(root: type[Section] = DinoJob) -> list[type[Section]]:
    """Every section in the order in which a reader of the document meets it."""
    found: dict[type[Section], None] = {}
    waiting: list[type[Section]] = [root]
    while waiting:
        model = waiting.pop(0)
        if model not in found:
            found[model] = None
            waiting = [*_below(model), *waiting]
    return list(found)


def _below(model: type[Section]) -> Iterator[type[Section]]:
    for info in model.model_fields.values():
        for inner in models_in(info.annotation):
            assert issubclass(inner, Section)  # noqa: S101 - documents are made of nothing else
            yield inner


def _table(schema: dict[str, Any], model: type[Section]) -> str:
    rows = ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    required = schema.get("required", [])
    infos = {info.alias or name: info for name, info in model.model_fields.items()}
    for name, field in schema["properties"].items():
        extra = infos[name].json_schema_extra
        derived = isinstance(extra, dict) and bool(extra.get("derived"))
        default = "**required**" if name in required else "derived" if derived else _default(field, infos[name].default)
        cells = (f"`{name}`", _type(field), default, infos[name].description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(field: dict[str, Any], value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Section):
        return "see there"
    shown = field.get("default", value)
    return f"`{str(shown).lower() if isinstance(shown, bool) else _number(shown)}`"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(field: dict[str, Any]) -> str:
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{'null' if v is None else v}`" for v in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return _list(field)
    if field.get("type") == "object":
        return _mapping(field)
    if field.get("type") == ["object", "null"]:
        return f"{_mapping(field)} or null"
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    return " or ".join(_list(field) if kind == "array" else _KINDS[kind] for kind in kinds) + _limits(field)


def _mapping(field: dict[str, Any]) -> str:
    """Of anything where that is Kubernetes' affair; keys may have a pattern."""
    values = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    return f"mapping of name to {_type(values[0])}" if isinstance(values[0], dict) else "mapping"


def _list(field: dict[str, Any]) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(_type(item) for item in field['prefixItems'])}]"
    return f"list of {_type(field['items'])}"


def _limits(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" ({', '.join(found)})" if found else ""


_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}

if __name__ == "__main__":
    sys.stdout.write(reference())
