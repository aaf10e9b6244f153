"""What README and docs/ show is right: documents, values of the chart, and commands with their options."""

from __future__ import annotations

import io
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from dinoctl.cli.main import app
from dinoctl.spec.load import load
from dinoctl.spec.profile import OperatorConfig
from dinoctl.spec.resolve import resolve
from support.chart_values import values_schema
from support.guides import PAGES, ROOT, commands, documents

COMMANDS = [(page.name, call) for page in PAGES for call in commands(page, "dinoctl")]


def test_documents_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [[one for one in documents(page) if one.get("kind") == "DinoJob"] for page in PAGES]
    assert sum(map(len, found)) > 2
    for jobs in filter(None, found):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(yaml.safe_dump_all(jobs).encode())))
        assert len(resolve(load(["-"]))) == len(jobs)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "cluster.md"], ids=lambda page: page.name)
def test_values_are_good_for_chart_and_operator(page: Path) -> None:
    (values,) = (one for one in documents(page) if "operator" in one)
    jsonschema.validate(values, values_schema())
    config = OperatorConfig.model_validate(values["operator"]["config"], by_alias=True)
    assert config.namespaces == ["vision"]


@pytest.mark.parametrize(("page", "call"), COMMANDS, ids=[" ".join(call) for _, call in COMMANDS])
def test_commands_are_understood(page: str, call: list[str]) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    with known[call[0]].make_context(call[0], call[1:]) as context:
        assert context.params, page
    for file in (part for part in call if part.startswith("jobs/")):
        assert (ROOT / file).is_file()
