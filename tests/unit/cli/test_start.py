"""The command starts fast because it imports little: what is imported is measured, not the time."""

import json
import subprocess
import sys

import pytest

HEAVY = [
    "torch",
    "ray",
    "mlflow",
    "deepspeed",
    "numpy",
    "boto3",
    "pyarrow",
    "matplotlib",
    "jinja2",
    "kubernetes",
    "pydantic",
]

PROBE = """
import json, sys
sys.argv = ["dinoctl", *json.loads(sys.argv[1])]
try:
    from dinoctl.cli.main import main
    main()
except SystemExit:
    pass
sys.stdout.flush()
print("\\n" + json.dumps([name for name in json.loads(sys.stdin.read()) if name in sys.modules]))
"""


def imported(*arguments: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        input=json.dumps(HEAVY),
        capture_output=True,
        text=True,
        check=True,
    )
    output, _, modules = done.stdout.rstrip().rpartition("\n")
    return json.loads(modules), output


def test_help_imports_nothing_heavy() -> None:
    modules, output = imported("--help")
    assert modules == []
    commands = "run validate resolve schema status logs suspend resume cancel doctor export pack index"
    for command in f"{commands} submit diff events explain delete".split():
        assert command in output


@pytest.mark.parametrize(
    "command", ["run", "submit", "status", "logs", "suspend", "explain", "export", "pack", "index"]
)
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    modules, output = imported(command, "--help")
    assert set(modules) <= {"pydantic"}  # typer looks for its types when it is there
    assert "Usage" in output


def test_validate_needs_pydantic_alone() -> None:
    modules, output = imported("validate", "jobs/digits.yaml")
    assert modules == ["pydantic"]
    assert "ok  digits-pretrain (pretrain) after digits-pack" in output


def test_completion_can_be_installed() -> None:
    _, output = imported("--help")
    assert "--install-completion" in output


def test_validate_as_json() -> None:
    _, output = imported("validate", "jobs/digits.yaml", "-o", "json")
    jobs = {job["name"]: job for job in json.loads(output)}
    assert jobs["digits-distill"] == {
        "name": "digits-distill",
        "stage": "distill",
        "parents": ["digits-pack", "digits-pretrain"],
    }
