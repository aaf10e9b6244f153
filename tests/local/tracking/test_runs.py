import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import pytest

from dinoctl.tracking import tags
from dinoctl.tracking.client import connect
from dinoctl.tracking.mlflow_runs import RunIds, close_run, ensure_run, log_dataset, log_params

Name = Callable[[str], str]


@pytest.fixture
def run(uri: str, fresh: Name) -> RunIds:
    return ensure_run(uri, fresh("exp"), "digits", "pretrain", "hash-1")


def test_the_same_job_finds_its_run_again(uri: str, fresh: Name) -> None:
    experiment = fresh("exp")
    first = ensure_run(uri, experiment, "digits", "pretrain", "hash-1", {tags.ATTEMPT: "1"})
    again = ensure_run(
        uri, experiment, "digits", "pretrain", "hash-1", {tags.ATTEMPT: "2", tags.CODE_VERSION: "x" * 9000}
    )
    other = ensure_run(uri, experiment, "digits", "highres", "hash-1")
    changed = ensure_run(uri, experiment, "digits", "pretrain", "hash-2")
    elsewhere = ensure_run(uri, experiment, "it's digits", "pretrain", "hash-1")
    assert again == first
    assert {first.parent, other.parent, changed.parent} == {first.parent} != {elsewhere.parent}
    assert len({first.child, other.child, changed.child, elsewhere.child}) == 4
    client = connect(uri)
    assert len(client.search_runs([client.get_run(first.child).info.experiment_id])) == 6
    stored = client.get_run(first.child).data.tags
    assert stored["mlflow.parentRunId"] == first.parent
    assert stored[tags.ATTEMPT] == "2"
    assert len(stored[tags.CODE_VERSION]) == 8000
    assert stored["mlflow.runName"] == "pretrain"


def test_a_closed_run_is_opened_again(uri: str, fresh: Name) -> None:
    experiment = fresh("exp")
    run = ensure_run(uri, experiment, "digits", "pretrain", "hash-1")
    client = connect(uri)
    for status in ("FAILED", "FAILED", "FINISHED"):
        close_run(uri, run.child, status)
        assert client.get_run(run.child).info.status == status
    assert ensure_run(uri, experiment, "digits", "pretrain", "hash-1") == run
    assert client.get_run(run.child).info.status == "RUNNING"


def test_a_name_with_both_quotation_marks_is_refused(uri: str, fresh: Name) -> None:
    with pytest.raises(ValueError, match="one kind of quotation mark"):
        ensure_run(uri, fresh("exp"), "'\"", "pretrain", "hash-1")


def test_artifacts_lie_beside_the_database(uri: str, run: RunIds) -> None:
    place = connect(uri).get_run(run.child).info.artifact_uri
    database = Path(uri.removeprefix("sqlite:///"))
    assert Path(urlparse(place).path).is_relative_to(database.parent / "artifacts")


def test_parameters_are_flattened_cut_and_may_be_logged_again(uri: str, run: RunIds) -> None:
    spec = {"data": {"source": "s3://x", "mix": [0.5, {"a@b": True}]}, "empty": {}, "none": None, "long": "x" * 7000}
    spec |= {f"field{index}": index for index in range(150)}
    log_params(uri, run.child, spec)
    log_params(uri, run.child, spec)
    logged = connect(uri).get_run(run.child).data.params
    assert len(logged) == 156
    assert logged["data.source"] == "s3://x"
    assert (logged["data.mix.0"], logged["data.mix.1.a_at_b"]) == ("0.5", "true")
    assert (logged["empty"], logged["none"], len(logged["long"])) == ("{}", "null", 6000)


def test_a_changed_parameter_is_named(uri: str, run: RunIds) -> None:
    log_params(uri, run.child, {"steps": 100, "seed": 0})
    with pytest.raises(ValueError, match=r"other parameters already: steps was 100, is 200$"):
        log_params(uri, run.child, {"steps": 200, "seed": 0})
    assert connect(uri).get_run(run.child).data.params["steps"] == "100"


def test_the_dataset_is_recorded_once(uri: str, run: RunIds) -> None:
    digest = "0123456789abcdef" * 4
    for _ in range(2):
        log_dataset(uri, run.child, "digits", digest, "file:///data/digits")
    stored = connect(uri).get_run(run.child)
    (given,) = stored.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", digest[:36])
    assert given.dataset.source == '{"uri": "file:///data/digits"}'
    assert stored.data.tags[tags.DATASET_HASH] == digest


def test_mlflow_is_imported_by_nothing_but_a_client() -> None:
    modules = [
        "background",
        "client",
        "cursor",
        "gate",
        "jsonnum",
        "lookup",
        "mlflow_runs",
        "registry",
        "shipper",
        "spool",
        "spool_files",
        "tags",
    ]
    code = f"import sys, {', '.join('dinoctl.tracking.' + name for name in modules)}\nprint('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_a_new_store_is_made_without_a_word(tmp_path: Path) -> None:
    code = (
        "import sys; from dinoctl.tracking.mlflow_runs import ensure_run;"
        "ensure_run(sys.argv[1], 'e', 'p', 'j', 'h'); import os; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("true\n", "")


def test_what_mlflow_makes_of_infinity(uri: str, run: RunIds) -> None:
    """The reason why the shipper leaves it out. If this fails, MLflow has learned it and the shipper may send it."""
    client = connect(uri)
    client.log_metric(run.child, "loss", math.inf)
    assert client.get_metric_history(run.child, "loss")[0].value == sys.float_info.max
