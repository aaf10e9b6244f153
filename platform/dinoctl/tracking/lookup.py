"""Finding model versions in the registry. What is not there is None, not an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dinoctl.tracking import tags as names
from dinoctl.tracking.client import error_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# MLflow 3.17 says the first for a model or version that is not there, the second for an alias.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def by_alias(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias."""
    return _or_none(lambda: client.get_model_version_by_alias(model, alias))


def by_number(client: MlflowClient, model: str, number: str) -> ModelVersion | None:
    """The version of a number."""
    return _or_none(lambda: client.get_model_version(model, number))


def of_export(client: MlflowClient, model: str, export_hash: str, spec_hash: str) -> ModelVersion | None:
    """The oldest version of an export and spec. A request that MLflow repeated by itself may have made a second one."""
    wanted = {names.EXPORT_HASH: export_hash, names.SPEC_HASH: spec_hash}
    found = client.search_model_versions(f"tags.`{names.EXPORT_HASH}` = '{export_hash}'")
    own = [version for version in found if version.name == model and wanted.items() <= version.tags.items()]
    return min(own, key=lambda version: int(version.version), default=None)


def inventory(client: MlflowClient, model: str) -> str:
    """What the registry does have, for the message about what it does not."""
    models = {known.name: known for known in client.search_registered_models()}
    if model not in models:
        return f"it has the models {', '.join(sorted(models)) or '(none)'}"
    # search_model_versions leaves the aliases of versions empty; the model's own list is complete
    return f"{model} has the aliases {', '.join(sorted(models[model].aliases)) or '(none)'}"


def _or_none(get: Callable[[], ModelVersion]) -> ModelVersion | None:
    try:
        return get()
    except Exception as error:
        if error_code(error) in _ABSENT:
            return None
        raise
