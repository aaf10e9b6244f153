"""The CustomResourceDefinition of DinoJobs, generated from the models: ``dinoctl schema --crd``.

It says less than the models, never more, but for two limits of the API server: texts, lists and maps are bounded, and a
number of seconds with a fraction has to be written as text.
"""

import io
from typing import Any

from dinoctl.spec.crd_rules import job_rules
from dinoctl.spec.crd_schema import Structural
from dinoctl.spec.crd_status import status_schema
from dinoctl.spec.job import DinoJob
from dinoctl.spec.names import GROUP, KIND, PLURAL, VERSION
from dinoctl.spec.reference import sections

CRD_NAME = f"{PLURAL}.{GROUP}"
_COLUMNS = (
    ("Stage", "string", ".status.stage", "Kind of the job"),
    ("State", "string", ".status.state", "What it is doing"),
    ("Queue", "string", ".status.queue", "Queue that it waits in"),
    ("Workers", "integer", ".status.workers", "Ranks"),
    ("Step", "integer", ".status.step", "Optimizer steps done, or images"),
    ("ETA", "string", ".status.eta", "Time left"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was submitted"),
)
_WIDE = (
    ("Attempt", "integer", ".status.attempt", "Newest attempt"),
    ("Parent", "string", ".status.parents[0].name", "Job that it waits for, the first one"),
    ("Model version", "string", ".status.model.version", "Version that was registered"),
    ("Reason", "string", ".status.message", "What happens next, and why"),
)


def crd() -> dict[str, Any]:
    """As the API server takes it."""
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": ["dj"],
        "categories": ["dinoctl"],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [*map(_column, _COLUMNS), *({**_column(c), "priority": 1} for c in _WIDE)],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def crd_yaml() -> str:
    """As a file for ``kubectl apply --server-side``."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    stream.write("# Generated from the models: dinoctl schema --crd > manifests/crd.yaml\n")
    yaml.dump(crd(), stream)
    return stream.getvalue()


def _schema() -> dict[str, Any]:
    raw = DinoJob.model_json_schema(by_alias=True)
    models = {model.__name__: model for model in sections()}
    return {
        "description": "One job: a stage of the way to a model.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": Structural(raw["$defs"], models).section("JobSpec"),
            "status": status_schema(),
        },
        "x-kubernetes-validations": job_rules(),
    }


def _column(column: tuple[str, str, str, str]) -> dict[str, Any]:
    name, kind, path, description = column
    return {"name": name, "type": kind, "jsonPath": path, "description": description}
