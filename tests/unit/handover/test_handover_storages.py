"""Datasets are looked for before anything is started, whichever field names them, unless they are still to come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_handover_files import attempt

from dinoctl.data.errors import DataError
from dinoctl.data.pack import pack
from dinoctl.handover.outcome import Outcome
from dinoctl.handover.storages import check_datasets
from dinoctl.spec.job import JobSpec, dataset_uris
from dinoctl.worker import main

PACKED = {"pack": {"source": "/images"}}


def spec(**sections: Any) -> JobSpec:
    return JobSpec.model_validate(sections, by_alias=True, by_name=False)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storages") / "set"
    pack("builtin://digits", path, verify=False)
    return path


def naming(field: str, uri: str, other: str) -> JobSpec:
    gate = {"dataset": uri if field == "gate" else other, "min": 0.5}
    if field == "evaluate":
        return spec(evaluate={"model": {"uri": "/model"}, "protocols": {"knn": {"dataset": uri}}})
    if field == "part":
        return spec(pretrain={"data": {"mixture": [{"source": other}, {"source": uri}]}}, gate=gate)
    return spec(pretrain={"data": {"source": uri if field == "data" else other}}, gate=gate)


@pytest.mark.parametrize("field", ["data", "part", "gate", "evaluate"])
def test_a_missing_dataset_is_told_with_its_place(there: Path, tmp_path: Path, field: str) -> None:
    check_datasets([naming(field, str(there), str(there))])
    with pytest.raises(DataError, match=rf"^{tmp_path}/none: no packed dataset there"):
        check_datasets([naming(field, f"{tmp_path}/none", str(there))])


def test_what_other_jobs_write_may_still_come(tmp_path: Path) -> None:
    named = naming("data", f"{tmp_path}/job/run-0001/dataset", "/elsewhere/job/dataset")
    check_datasets([named], outputs=[f"{tmp_path}/job/run-0001/", "file:///elsewhere/job"])
    with pytest.raises(DataError, match="run-0001/dataset: no packed dataset there"):
        check_datasets([named], outputs=[f"{tmp_path}/job/run-000", "file:///elsewhere/job"])


def test_references_and_what_is_packed_are_no_datasets() -> None:
    assert list(dataset_uris(spec(**PACKED))) == []
    assert list(dataset_uris(spec(pretrain={"data": {"source": {"job": "pack"}}}))) == []


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """A worker has handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
def test_a_worker_looks_before_it_starts_ray(tmp_path: Path) -> None:
    """The dataset went away after the job was accepted."""
    made = attempt(tmp_path, spec=naming("data", f"{tmp_path}/none", f"{tmp_path}/none"))
    made.write(tmp_path / "attempt.json")
    assert main(["--job", str(tmp_path / "attempt.json")]) == 1
    outcome = Outcome.read(tmp_path)
    assert outcome is not None
    assert (outcome.cause, outcome.message.partition(":")[0]) == ("Spec", f"{tmp_path}/none")
    assert not (tmp_path / "ray").exists()
