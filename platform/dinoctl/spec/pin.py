"""Replacing ``{job: NAME}`` by the place of that job's output: the last step before a document runs."""

from collections.abc import Mapping

from dinoctl.spec.base import Section
from dinoctl.spec.job import JobSpec
from dinoctl.spec.sources import DATASET_FIELDS, JobRef, UriRef


def pin(spec: JobSpec, outputs: Mapping[str, str]) -> JobSpec:
    """``spec`` with every reference to a job of ``outputs`` (name -> storage URI) replaced.

    A dataset becomes ``<URI>/dataset``; a model the job's storage itself, which holds export and checkpoints; one of
    several students the directory of its export.
    """
    pinned = _pin(spec, outputs)
    assert isinstance(pinned, JobSpec)  # noqa: S101 - a section keeps its class
    return pinned


def _pin(section: Section, outputs: Mapping[str, str]) -> Section:
    update: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, JobRef) and value.job in outputs:
            uri = outputs[value.job]
            model = UriRef(uri=f"{uri}/export/{value.student}" if value.student else uri)
            update[name] = f"{uri}/dataset" if name in DATASET_FIELDS else model
        elif isinstance(value, Section):
            update[name] = _pin(value, outputs)
        elif isinstance(value, list):
            update[name] = [_pin(item, outputs) if isinstance(item, Section) else item for item in value]
    return section.model_copy(update=update)
