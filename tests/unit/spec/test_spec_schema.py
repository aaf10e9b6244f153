"""The JSON Schema agrees with the models, wherever JSON Schema can say it; the generated files are current."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dinoctl.spec.profile import OperatorConfig
from dinoctl.spec.reference import reference
from dinoctl.spec.schema import json_schema
from dinoctl.spec.yamldoc import read_yaml
from support.documents import BROKEN, CONTRADICTORY, GOOD, models_take

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


@pytest.mark.parametrize("document", BROKEN, ids=json.dumps)
def test_what_the_models_refuse_the_schema_refuses(document: object) -> None:
    assert not models_take(document)
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("document", GOOD, ids=json.dumps)
def test_what_the_models_take_the_schema_takes(document: object) -> None:
    assert models_take(document)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


@pytest.mark.parametrize("document", CONTRADICTORY, ids=json.dumps)
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
    page, config = reference(), json_schema(OperatorConfig)
    for name, section in [*sections(), ("OperatorConfig", config), *config["$defs"].items()]:
        body = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in section["properties"]:
            assert f"\n| `{field}` |" in body, f"{name}.{field}"


def test_links_of_the_reference_page_lead_somewhere() -> None:
    page = reference()
    titles = [title.lower() for title in re.findall(r"^## (\w+)$", page, re.MULTILINE)]
    assert len(set(titles)) == len(titles)
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= set(titles)
