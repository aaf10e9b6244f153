"""MLflow runs: one parent run a pipeline, one child run a job and spec hash, found again by their tags.

A run is created with its tags in one request, so that a crash leaves either a run that the next call finds or none.
There is one writer a pipeline (the executor's lock or lease); should two runs exist all the same, the older one is used
by everybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dinoctl.tracking import tags as names
from dinoctl.tracking.client import artifact_root, connect, error_code, mlflow_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

_PARAM_LENGTH = 6000  # mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
_TAG_LENGTH = 8000  # MAX_TAG_VAL_LENGTH
_BATCH = 100  # MAX_PARAMS_TAGS_PER_BATCH
_DIGEST_LENGTH = 36  # MAX_DATASET_DIGEST_SIZE


@dataclass(frozen=True, slots=True)
class RunIds:
    """Ids of the pipeline's run and of the job's run below it."""

    parent: str
    child: str


def ensure_run(
    uri: str, experiment: str, pipeline_name: str, job_name: str, spec_hash: str, tags: Mapping[str, str] | None = None
) -> RunIds:
    """The runs of a job: made at the first call, found by every later one, running again if they were closed.

    `tags` (names as in `dinoctl.tracking.tags`; values cut to 8,000 characters) are set on the job's run every time, so
    the attempt may change. Raises mlflow's MlflowException where the store cannot be reached.
    """
    client = connect(uri)
    place = _experiment(client, uri, experiment)
    whole = {names.KIND: "pipeline", names.PIPELINE: pipeline_name}
    parent = _run(client, place, pipeline_name, whole, {})
    own = {names.KIND: "job", names.PIPELINE: pipeline_name, names.JOB: job_name, names.SPEC_HASH: spec_hash}
    child = _run(client, place, job_name, own, {"mlflow.parentRunId": parent})
    set_tags(uri, child, tags or {})
    return RunIds(parent, child)


def close_run(uri: str, run_id: str, status: Status) -> None:
    """End a run. Closing it again, or with another status, is allowed: the last word counts."""
    connect(uri).set_terminated(run_id, status)


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, values cut to 8,000 characters."""
    from mlflow.entities import RunTag

    entries = [RunTag(key, str(value)[:_TAG_LENGTH]) for key, value in tags.items()]
    for batch in _batches(entries):
        connect(uri).log_batch(run_id, tags=batch)


def log_params(uri: str, run_id: str, spec: Mapping[str, Any]) -> None:
    """Log a resolved spec, flattened to `section.field` (lists by index), values cut to 6,000 characters.

    Parameters never change: the same values again are accepted. Raises ValueError when a value differs from the logged
    one.
    """
    from mlflow.entities import Param

    client = connect(uri)
    params = [Param(mlflow_name(key), _text(value)[:_PARAM_LENGTH]) for key, value in flatten(spec)]
    for batch in _batches(params):
        try:
            client.log_batch(run_id, params=batch)
        except Exception as error:
            if error_code(error) != "INVALID_PARAMETER_VALUE":
                raise
            raise ValueError(f"run {run_id} has other parameters already: {_changed(client, run_id, batch)}") from error


def log_dataset(
    uri: str, run_id: str, name: str, dataset_hash: str, source_uri: str, context: str = "training"
) -> None:
    """Record where the data came from. MLflow keeps 36 characters of the hash; the tag `dinoctl.dataset_hash` has all
    of it.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": source_uri})
    dataset = Dataset(name=name, digest=dataset_hash[:_DIGEST_LENGTH], source_type="uri", source=source)
    client = connect(uri)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])])
    client.set_tag(run_id, names.DATASET_HASH, dataset_hash)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists with their dotted paths; an empty mapping or list is a leaf."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), child) for index, child in enumerate(value)]
    if not items:
        yield prefix, value
    for key, child in items:
        yield from flatten(child, f"{prefix}.{key}" if prefix else key)


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    try:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name, artifact_root(uri)))
    except Exception as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(client, uri, name)  # somebody else made it in between


def _run(client: MlflowClient, experiment_id: str, name: str, key: Mapping[str, str], more: Mapping[str, str]) -> str:
    """The oldest run with the tags `key`, set running; or a new one with `key` and `more`."""
    wanted = " and ".join(f"tags.`{tag}` = {_quoted(value)}" for tag, value in key.items())
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    if not found:
        return str(client.create_run(experiment_id, tags={**key, **more}, run_name=name).info.run_id)
    run_id = str(found[0].info.run_id)
    if found[0].info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    return run_id


def _quoted(value: str) -> str:
    if "'" in value and '"' in value:
        raise ValueError(f"{value!r} cannot be looked up in MLflow: use one kind of quotation mark in a name, not both")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _changed(client: MlflowClient, run_id: str, batch: list[Any]) -> str:
    logged = client.get_run(run_id).data.params
    changed = [f"{p.key} was {logged[p.key]}, is {p.value}" for p in batch if logged.get(p.key, p.value) != p.value]
    return "; ".join(changed) or "a parameter name or value that MLflow refuses"


def _batches(entries: list[Any]) -> Iterator[list[Any]]:
    yield from (entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH))
