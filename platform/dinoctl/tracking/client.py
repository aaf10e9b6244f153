"""The one place where an MLflow client is made, and what MLflow's names and errors look like from here.

sqlite needs no server (`sqlite:////abs/path/mlflow.db`; MLflow makes the folder and the tables, about two seconds the
first time). Artifacts then lie in `artifacts/` beside the database; without that MLflow would use `./mlruns` of whoever
starts it.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# MLflow would send usage data to its makers, print links among our lines, and repeat a request for about four minutes
# when the server is down.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def connect(uri: str) -> MlflowClient:
    """A client for tracking and registry at `uri` (sqlite:///, postgresql://, http://, https://).

    Environment variables that the user has set win over `_DEFAULTS`. Costs about 1.6 s for the first import of mlflow.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for each of some sixty table migrations
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def artifact_root(uri: str) -> str | None:
    """`file://` URI of `artifacts/` beside a sqlite database; None for a server, which has its own place."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).resolve().parent / "artifacts").as_uri()


def error_code(error: BaseException) -> str:
    """MLflow's name of an error (`RESOURCE_DOES_NOT_EXIST`, ...), "" for an error of anything else."""
    return str(getattr(error, "error_code", ""))


def mlflow_name(key: str) -> str:
    """A name of a metric or parameter that MLflow 3.17 accepts: `top1@10` becomes `top1_at_10`, other strangers `_`.

    Allowed are 250 letters, digits, `_ - . : /` and blanks, in the form of a relative path in its shortest form.
    """
    name = re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))[:250]
    if posixpath.normpath(name) != name or name.startswith((".", "/")):
        name = re.sub(r"^[./]+", "_", name.replace("/", "_")) or "_"
    return name
