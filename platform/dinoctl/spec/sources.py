"""Where a stage's inputs come from: a URI, or another job of the same name space."""

import re
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from dinoctl.spec.base import Section, Size, choice

_URI = r"[a-z][a-z0-9+.-]*://.+|[^:]+"
_MODEL = r"models:/[^/@]+(@[^/@]+|/[0-9]+)"
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
MAX_NAME = 38
"""RayJob names hold 47 characters, of which an attempt's hash and number take 9."""


def _check_uri(value: str) -> str:
    if not re.fullmatch(_URI, value):
        raise ValueError(f"{value!r} is not a URI or a path; write s3://bucket/prefix, file:///path or a path")
    return value


def _check_model(value: str) -> str:
    if not re.fullmatch(_MODEL, value):
        raise ValueError(f"{value!r} is not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    return value


def _check_name(value: str) -> str:
    if not re.fullmatch(_NAME, value) or len(value) > MAX_NAME:
        raise ValueError(
            f"{value!r} is not a job name; use lower-case letters, digits and '-', at most {MAX_NAME} characters"
        )
    return value


Uri = Annotated[str, AfterValidator(_check_uri), WithJsonSchema({"type": "string", "pattern": f"^({_URI})$"})]
ModelUri = Annotated[str, AfterValidator(_check_model), WithJsonSchema({"type": "string", "pattern": f"^{_MODEL}$"})]
JobName = Annotated[
    str,
    AfterValidator(_check_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$", "maxLength": MAX_NAME}),
]


class JobRef(Section):
    """The output of another job. The job waits until that one is complete and its gate has passed."""

    job: JobName = Field(description="Name of the job.")
    student: str | None = choice(None, "Which one, where the job distils several students.", min_length=1)


class ModelRef(Section):
    """A model of the registry."""

    model: ModelUri = Field(description="models:/NAME@ALIAS or models:/NAME/VERSION.")


class UriRef(Section):
    """A directory or bucket prefix."""

    uri: Uri = Field(description="s3://bucket/prefix, file:///path or a path.")


DATASET_FIELDS = ("source", "dataset")
"""Names of the fields that a `DataSource` stands in."""
SOURCE_TAGS = ("<uri-text>", "<job>", "<model>", "<uri>")


def _tag(value: object) -> str:
    """Which branch a source is meant to be, so that errors speak of that one only; these tags are not shown."""
    if isinstance(value, (str, int, float)):
        return "<uri-text>"
    if isinstance(value, dict):
        return next((f"<{key}>" for key in ("model", "uri") if key in value), "<job>")
    return f"<{type(value).__name__.removesuffix('Ref').lower()}>"


_Job = Annotated[JobRef, Tag("<job>")]
DataSource = Annotated[Annotated[Uri, Tag("<uri-text>")] | _Job, Discriminator(_tag)]
ModelSource = Annotated[
    _Job | Annotated[ModelRef, Tag("<model>")] | Annotated[UriRef, Tag("<uri>")], Discriminator(_tag)
]


class WeightedSource(Section):
    """One part of a mixture."""

    source: DataSource = Field(description="Dataset: a URI or {job: NAME}.")
    split: str = choice("train", "Split of the dataset.")
    weight: float = choice(1.0, "Relative weight of this part.", gt=0)


class DiskCache(Section):
    """Image bytes kept on a node's disk for later epochs, shared by the node's workers."""

    path: str = Field(description="Directory on each node; it is made when it is missing.", min_length=1)
    bytes: Size = Field(description="What the cache may take on a node, in bytes (100GB, 1TB is 1000GB).", ge=1)


class Reading(Section):
    """How training data on a bucket is read ahead. Nothing here changes a batch."""

    memory: Size = choice(
        64 * 2**20, "Bytes of images that a worker holds or has asked for; one sample a lane in any case.", ge=1
    )
    requests_per_second: float = choice(
        5500.0, "Requests a second of the whole job, at most. S3 serves 5,500 GETs a second and prefix.", gt=0
    )
    price_per_thousand: float = choice(
        0.0004, "Price of 1,000 GET requests, for the estimate before the start (S3: 0.0004 USD).", ge=0
    )
    cache: DiskCache | None = choice(None, "A cache on each node's disk; off unless given.")


class TrainData(Section):
    """What a training job learns from: one dataset or a weighted mixture."""

    source: DataSource | None = choice(None, "Dataset: a URI or {job: NAME}.")
    split: str = choice("train", "Split of the dataset.")
    mixture: list[WeightedSource] = choice([], "Weighted parts, in place of source.")
    homogeneous: float = choice(0.0, "Share of batches that take all samples from one part.", ge=0, le=1)
    run_length: int = choice(16, "Consecutive samples read with one request.", ge=1)
    max_bad_rate: float = choice(1e-4, "Share of unreadable samples above which the job stops.", ge=0, le=1)
    max_enlargement: float = choice(
        4.0, "How many times larger than the median image a global crop may be; beyond it the job does not start.", gt=0
    )

    reader: Reading = choice(Reading(), "How data on a bucket is read ahead.")

    @model_validator(mode="after")
    def _one_of(self) -> "TrainData":
        if (self.source is None) == (not self.mixture):
            raise ValueError("give exactly one of source and mixture")
        return self

    def parts(self) -> list[WeightedSource]:
        """The mixture, also when it is a single source."""
        if self.source is not None:
            return [WeightedSource(source=self.source, split=self.split)]
        return self.mixture
