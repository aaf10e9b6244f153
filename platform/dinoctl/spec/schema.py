"""JSON Schema of a document, generated from the models."""

from typing import Any

from dinoctl.spec.job import DinoJob


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, with YAML names and descriptions."""
    schema = DinoJob.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "DinoJob", **_clean(schema)}


def _clean(node: Any) -> Any:
    """Leaves out what is ours alone (source marks) and pydantic's automatic titles."""
    if isinstance(node, dict):
        is_properties = all(isinstance(value, dict) for value in node.values())
        drop = set() if is_properties and "type" not in node else {"source", "derived", "title"}
        return {key: _clean(value) for key, value in node.items() if key not in drop or isinstance(value, dict)}
    return [_clean(item) for item in node] if isinstance(node, list) else node
