"""``validate``, ``resolve`` and ``schema`` on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from spec_documents import PRETRAIN, Workshop, document
from typer.testing import CliRunner

from dinoctl.cli.main import app

ROOT = Path(__file__).parents[3]


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_validate_lists_jobs_parents_first() -> None:
    lines = said("validate", str(ROOT / "jobs" / "dinov2_family.yaml")).splitlines()
    assert lines[0] == "ok  family-vitg (pretrain)"
    assert "ok  family-vits (distill) after family-vitg" in lines
    found = json.loads(said("validate", str(ROOT / "jobs" / "dinov2_family.yaml"), "-o", "json"))
    assert found[0] == {"name": "family-vitg", "stage": "pretrain", "parents": []}


def test_resolve_shows_every_value_and_its_origin(workshop: Workshop) -> None:
    path = str(workshop.write(document("a", f"{PRETRAIN}\nseed: 3")))
    plain, told = said("resolve", path), said("resolve", path, "--origins")
    assert "warmupSteps: 100000" in plain
    assert "#" not in plain
    assert f"seed: 3  # {path}:6" in told
    assert "scale: [0.32, 1.0]" in plain
    (found,) = json.loads(said("resolve", path, "--origins", "-o", "json"))
    assert found["spec"]["pretrain"]["globalBatch"] == 3072
    assert found["origins"]["spec.pretrain.globalBatch"] == "default: paper Table 16"
    assert len(found["specHash"]) == 64


def test_schema_is_the_shipped_file() -> None:
    assert said("schema") == (ROOT / "jobs" / "dinojob.schema.json").read_text()


@pytest.mark.parametrize("command", ["validate", "resolve"])
def test_mistakes_are_lines_without_a_traceback_and_exit_code_two(workshop: Workshop, command: str) -> None:
    path = workshop.write(document("a", f"{PRETRAIN}\nseeed: 1\nsuspend: yes"))
    result = subprocess.run(
        [sys.executable, "-c", "from dinoctl.cli.main import main; main()", command, str(path)],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:6:3: spec.seeed: unknown field; did you mean 'seed'?",
        f"{path}:7:3: spec.suspend: must be true or false, not 'yes'; write true",
    ]
