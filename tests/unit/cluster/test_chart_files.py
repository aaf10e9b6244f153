"""What of the chart is made from the models is up to date (``make manifests``)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dinoctl.spec.profile import OperatorConfig
from support.chart import CHART, CI, FROM_MODELS, ROOT
from support.chart_values import values_schema


@pytest.mark.parametrize("path", FROM_MODELS, ids=lambda path: path.name)
def test_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == FROM_MODELS[path]()


@pytest.mark.parametrize("values", sorted(CI.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_good_for_chart_and_operator(values: Path) -> None:
    document = yaml.safe_load(values.read_text(encoding="utf-8"))
    jsonschema.validate(document, values_schema())
    OperatorConfig.model_validate(document["operator"]["config"], by_alias=True)


def test_every_default_is_in_the_schema() -> None:
    """Of the values as they are only the two that everybody must give are wrong."""
    errors = jsonschema.Draft202012Validator(values_schema()).iter_errors(
        yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    )
    assert {".".join(map(str, error.path)) for error in errors} == {"image.name", "operator.config.profiles"}


def test_dashboard_and_rules_ask_for_metrics_that_there_are() -> None:
    board = json.loads((CHART / "dashboards" / "dinoctl.json").read_text(encoding="utf-8"))
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in board["panels"]]
    assert len(set(places)) == len(places) == len({one["id"] for one in board["panels"]})
    rules = (CHART / "templates" / "monitoring.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"dinoctl_[a-z_]+", json.dumps([one["targets"] for one in board["panels"]])))
    alarmed = set(re.findall(r"expr: .*?(dinoctl_[a-z_]+)", rules))
    assert alarmed
    assert alarmed <= asked
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "platform/dinoctl/cluster").glob("*.py"))
    assert [name for name in asked if f'"{name.removesuffix("_bucket")}"' not in code] == []
