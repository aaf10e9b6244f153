"""The resolved document as YAML for people."""

import io
from typing import Any

from dinoctl.spec.resolve import ResolvedJob


def resolved_yaml(job: ResolvedJob, *, origins: bool) -> str:
    """The resolved document as YAML; with ``origins`` every leaf has a comment that says where it comes from."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(_commented(job.to_dict(), "", job.origins if origins else {}), stream)
    return stream.getvalue()


def _commented(node: Any, path: str, origins: Any) -> Any:
    """``node`` as ruamel's round-trip types. A list of plain values stands in one line, as people write it."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(node, list):
        items = CommentedSeq(_commented(item, f"{path}[{i}]", origins) for i, item in enumerate(node))
        if not any(isinstance(item, (dict, list)) for item in node):
            items.fa.set_flow_style()
        return items
    if not isinstance(node, dict):
        return node
    result = CommentedMap()
    for key, value in node.items():
        where = f"{path}.{key}" if path else key
        result[key] = _commented(value, where, origins)
        if where in origins:
            result.yaml_add_eol_comment(origins[where], key)
    return result
