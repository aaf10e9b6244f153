"""The JSON Schema agrees with the models, wherever JSON Schema can say it; the generated files are current."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from dinoctl.spec.job import DinoJob
from dinoctl.spec.reference import reference
from dinoctl.spec.schema import json_schema
from dinoctl.spec.yamldoc import read_yaml

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "jobs").glob("*.yaml"))
SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_file_is_current() -> None:
    text = (ROOT / "jobs" / "dinojob.schema.json").read_text()
    assert json.loads(text) == SCHEMA, "run: dinoctl schema > jobs/dinojob.schema.json"


def test_the_reference_page_is_current() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert text == reference(), "run: python -m dinoctl.spec.reference > docs/reference.md"


def test_it_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_document_is_valid(path: Path) -> None:
    for doc in read_yaml(path.read_text(), str(path)):
        assert [error.message for error in VALIDATOR.iter_errors(doc.data)] == []


def job(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    document = {"apiVersion": "dinoctl.io/v1alpha1", "kind": "DinoJob", "metadata": {"name": "a"}, "spec": spec}
    return {**document, **more}


DATA = {"data": {"source": "s3://b/d"}}
BROKEN = [
    {},
    [],
    "text",
    job({}),
    job({"pretrain": DATA}, kind="Job"),
    job({"pretrain": DATA}, apiVersion="v1"),
    job({"pretrain": DATA}, metadata={}),
    job({"pretrain": DATA}, metadata={"name": "Big"}),
    job({"pretrain": DATA}, metadata={"name": "x" * 39}),
    job({"pretrain": DATA}, metadata={"name": "a", "labels": {"x": 1}}),
    job({"pretrain": DATA}, extra=1),
    job({"pretrain": None}),
    job({"pretain": DATA}),
    job({"pretrain": DATA, "pack": {"source": "x"}}),
    job({"pack": {"source": "x"}, "gate": {"dataset": "x"}}),
    job({"evaluate": {"model": {"uri": "x"}, "protocols": {"knn": {"dataset": "x"}}}, "gate": {"dataset": "x"}}),
    job({"pretrain": {}}),
    job({"pretrain": {**DATA, "steps": 0}}),
    job({"pretrain": {**DATA, "steps": "10"}}),
    job({"pretrain": {**DATA, "steps": 1.5}}),
    job({"pretrain": {**DATA, "steps": None}}),
    job({"pretrain": {**DATA, "model": {"arch": "vit_huge"}}}),
    job({"pretrain": {**DATA, "model": {"dropPath": 1}}}),
    job({"pretrain": {**DATA, "model": {"layerScale": 0}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0, 1]}}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.1]}}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.1, 0.2, 0.3]}}}}),
    job({"pretrain": {**DATA, "crops": {"local_crops": {}}}}),
    job({"pretrain": {**DATA, "optimizer": {"betas": [0.9, 1]}}}),
    job({"pretrain": {"data": {"source": {"job": "a", "x": 1}}}}),
    job({"pretrain": {"data": {"source": {"job": "A"}}}}),
    job({"pretrain": {"data": {"source": 5}}}),
    job({"pretrain": {"data": {"source": "s3:x"}}}),
    job({"pretrain": {"data": {"mixture": [{"weight": 1}]}}}),
    job({"pretrain": {"data": {"mixture": [{"source": "x", "weight": 0}]}}}),
    job({"highres": {}}),
    job({"highres": {"parent": {"job": "a"}}}),
    job({"highres": {"from": "models:/a@b"}}),
    job({"highres": {"from": {"model": "a@b"}}}),
    job({"highres": {"from": {"model": "models:/a@b", "uri": "x"}}}),
    job({"distill": {"teacher": {"uri": "x"}, **DATA}}),
    job({"pretrain": DATA, "compute": {"gpusPerWorker": 2}}),
    job({"pretrain": DATA, "compute": {"engine": {"zeroStage": 4}}}),
    job({"pretrain": DATA, "suspend": "yes"}),
    job({"pretrain": DATA, "seed": -1}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "knn": {"k": []}}}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "promote": {"model": "a/b"}}}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "min": 80}}),
    job({"pretrain": DATA, "policy": {"deadline": "3 weeks"}}),
    job({"pretrain": DATA, "policy": {"deadline": 0}}),
    job({"pack": {"source": "x", "shardSize": "5XB"}}),
    job({"pack": {"source": "x", "splits": [1]}}),
]
GOOD = [
    job({"pretrain": DATA}),
    job({"pretrain": DATA, "pack": None, "gate": None, "policy": {"deadline": None}}),
    job({"pretrain": {**DATA, "model": {"layerScale": None, "dropPath": None, "ffn": None}, "heads": {"ibot": None}}}),
    job({"pretrain": {**DATA, "crops": {"global": {"scale": [1, 1]}}}, "policy": {"deadline": "1h30m"}}),
    job({"pretrain": DATA, "policy": {"deadline": 60}, "gate": {"dataset": {"job": "b"}, "min": 1, "promote": None}}),
    job({"pack": {"source": "x", "shardSize": "64MiB", "splits": {"val": 3}}}),
    job({"pack": {"source": "/data/images", "shardSize": 70000}}),
    job({"highres": {"from": {"job": "b"}, "crops": {"augmentation": {"solarize": 0}}}}),
    job({"evaluate": {"model": {"model": "models:/a/3"}, "protocols": {"knn": {"dataset": "x", "k": [1]}}}}),
    job({"pretrain": {"data": {"mixture": [{"source": "x"}, {"source": {"job": "b"}, "weight": 2}]}}}),
]


def models_take(document: object) -> bool:
    try:
        DinoJob.model_validate(document, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("document", BROKEN, ids=json.dumps)
def test_what_the_models_refuse_the_schema_refuses(document: object) -> None:
    assert not models_take(document)
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("document", GOOD, ids=json.dumps)
def test_what_the_models_take_the_schema_takes(document: object) -> None:
    assert models_take(document)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


# Beyond JSON Schema: sums and orders of values, targets of references
@pytest.mark.parametrize(
    "document",
    [
        job({"pretrain": {"data": {"source": "x", "mixture": [{"source": "y"}]}}}),
        job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.5, 0.1]}}}}),
        job({"pretrain": {**DATA, "model": {"arch": "custom"}}}),
        job({"pretrain": {**DATA, "crops": {"augmentation": {"blur": {"kernel": 8}}}}}),
        job({"pretrain": {**DATA, "steps": 5.0}}),
    ],
    ids=json.dumps,
)
def test_what_only_the_models_can_say(document: object) -> None:
    assert not models_take(document)
    assert VALIDATOR.is_valid(document)


def sections() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "DinoJob", SCHEMA
    yield from SCHEMA["$defs"].items()


@pytest.mark.parametrize(("name", "section"), list(sections()), ids=[name for name, _ in sections()])
def test_every_section_is_made_for_editors(name: str, section: dict[str, Any]) -> None:
    assert section["title"] == name
    assert section["description"]
    assert section["additionalProperties"] is False
    for field, schema in section["properties"].items():
        assert re.fullmatch(r"[a-z][a-zA-Z]*", field), "fields are camelCase"
        assert "title" not in schema, f"{field}: automatic titles only repeat the name"
        assert schema.get("description") or "$ref" in schema, f"{field} has no description"


def test_defaults_are_shown_where_they_are_values() -> None:
    losses = SCHEMA["$defs"]["Losses"]["properties"]
    assert losses["koleo"]["default"] == 0.1
    assert SCHEMA["$defs"]["Head"]["properties"]["prototypes"]["default"] == 131072
    assert "default" not in SCHEMA["$defs"]["Pretrain"]["properties"]["schedules"]
    assert SCHEMA["$defs"]["DistillLearningRate"]["properties"]["base"]["default"] == 1e-3


def test_every_section_and_field_is_on_the_reference_page() -> None:
    page = reference()
    for name, section in sections():
        body = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in section["properties"]:
            assert f"\n| `{field}` |" in body, f"{name}.{field}"


def test_links_of_the_reference_page_lead_somewhere() -> None:
    page = reference()
    titles = {title.lower() for title in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= titles
