"""The CustomResourceDefinition: current, structural, complete; what the API server makes of it is in tests/kube."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinoctl.spec.base import Section
from dinoctl.spec.crd import crd, crd_yaml
from dinoctl.spec.crd_rules import rules
from dinoctl.spec.job import JobSpec, Metadata
from dinoctl.spec.reference import sections
from dinoctl.spec.wording import models_in

ROOT = Path(__file__).parents[3]
VERSION = crd()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
_JUNCTORS = ("anyOf", "oneOf", "allOf", "not")


def test_the_file_is_current_and_says_what_the_models_say() -> None:
    text = crd_yaml()
    assert (ROOT / "manifests" / "crd.yaml").read_text() == text, "run: make schema"
    assert YAML(typ="safe").load(text) == crd()


def test_it_fits_into_the_annotation_of_a_client_side_apply() -> None:
    assert len(json.dumps(crd())) < 200_000


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}.{key}")


ALL = dict(nodes(SCHEMA))


def test_every_node_is_structural() -> None:
    for path, node in ALL.items():
        free = node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields")
        assert ("type" in node) or free, path
        assert isinstance(node.get("type", ""), str), path
        assert not {"$ref", "const", "default", "title", "prefixItems", "if", "$defs"} & set(node), path
        assert not any(key in node for key in _JUNCTORS) or node["x-kubernetes-int-or-string"], path
        assert node.get("additionalProperties") is not False, path
        assert not (node.get("nullable") and "enum" in node), f"{path}: the API server would refuse null"


def test_every_text_list_and_map_of_the_spec_is_bounded() -> None:
    for path, node in ALL.items():
        if path.startswith(".spec"):
            assert node.get("type") != "string" or "maxLength" in node or "enum" in node, path
            assert node.get("type") != "array" or "maxItems" in node, path
            assert "additionalProperties" not in node or "maxProperties" in node, path


def fields(model: type[Section], path: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        where = f"{path}.{info.alias or name}"
        yield where
        for inner in models_in(info.annotation):
            yield from fields(inner, where)


def test_no_field_of_the_models_would_be_pruned() -> None:
    below_sources = [path for path, node in ALL.items() if node.get("x-kubernetes-preserve-unknown-fields")]
    held = {path.replace(".items", "").replace(".additionalProperties", "") for path in ALL}
    missing = {
        path
        for path in fields(JobSpec, ".spec")
        if path not in held and not any(path.startswith(f"{source.replace('.items', '')}.") for source in below_sources)
    }
    assert missing == set()


def test_every_validator_of_a_model_has_a_rule() -> None:
    judged = [model for model in sections() if model.__pydantic_decorators__.model_validators]
    silent = [model for model in judged if not rules(model)]
    assert silent == [Metadata]  # labels can't be seen by CEL


def test_columns() -> None:
    shown = {column["name"]: column.get("priority", 0) for column in VERSION["additionalPrinterColumns"]}
    assert [name for name, priority in shown.items() if not priority] == [
        *("Stage", "State", "Queue", "Workers", "Step", "ETA", "Age")
    ]
    assert [name for name, priority in shown.items() if priority] == ["Attempt", "Parent", "Model version", "Reason"]
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].replace("[0]", ".items")
        assert path in ALL or path == ".metadata.creationTimestamp"
