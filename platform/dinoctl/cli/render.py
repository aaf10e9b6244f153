"""Tables and YAML for people."""

import io
from typing import Any

from dinoctl.spec.resolve import ResolvedJob


def resolved_yaml(job: ResolvedJob, *, origins: bool) -> str:
    """The resolved document as YAML; with ``origins`` every leaf has a comment that says where it comes from."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    def commented(node: dict[str, Any], path: str) -> CommentedMap:
        result = CommentedMap()
        for key, value in node.items():
            where = f"{path}.{key}" if path else key
            result[key] = commented(value, where) if isinstance(value, dict) else value
            if origins and where in job.origins:
                result.yaml_add_eol_comment(job.origins[where], key)
        return result

    yaml = YAML()
    yaml.width = 4096
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(commented(job.to_dict(), ""), stream)
    return stream.getvalue()
