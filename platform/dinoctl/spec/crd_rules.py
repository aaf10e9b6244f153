"""What the models' own validators say, in CEL, so that the API server says it too: by model, and in the same words.

A rule is (expression, message); ``self`` is the section. Fields that are null count as absent in CEL. What CEL can't
say (a duration's value, a reference's target, anything inside a source, which may be text or a mapping) is caught by
the client and by the operator.
"""

from collections.abc import Iterator
from typing import Any

from dinoctl.spec import base, names
from dinoctl.spec.base import Section
from dinoctl.spec.compute import Compute, Engine
from dinoctl.spec.crops import RELEASED_ORDER, Augmentation, Blur
from dinoctl.spec.job import STAGES, TRAINING, JobSpec
from dinoctl.spec.model import SHAPES, ModelSpec
from dinoctl.spec.policy import CheckpointPolicy, Gate, KnnSettings
from dinoctl.spec.recipe import Schedules
from dinoctl.spec.sources import MAX_NAME, TrainData
from dinoctl.spec.stages import Distill, Headless, Pack, Protocols

Rule = tuple[str, str]
_NAME = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


def rules(model: type[Section]) -> list[Rule]:
    """Those of a model and of what it derives from, and those that its fields' types bring along."""
    own = [rule for parent in reversed(model.__mro__) for rule in _RULES.get(parent, ())]
    return [*own, *_ordered(model)]


def model_source_rules() -> list[Rule]:
    """Of a reference to a model, whose three forms are one mapping for the API server."""
    return [
        (_one_of("job", "model", "uri"), "give exactly one of job, model and uri"),
        ("!has(self.student) || has(self.job)", "student goes with job"),
    ]


def job_rules() -> list[dict[str, str]]:
    """Of the whole object: its name, and what may not change any more."""
    name = {
        "rule": f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{_NAME}')",
        "message": f"use lower-case letters, digits and '-' in the name, at most {MAX_NAME} characters",
    }
    never = [_frozen(field, "", "it is part of what the job is") for field in (*STAGES, "gate", "storage")]
    seed = _frozen("seed", "", "it is part of what the job is", default="0")
    held = "has(oldSelf.spec.suspend) && oldSelf.spec.suspend"
    sizes = [_frozen(field, held, "suspend the job first") for field in ("compute", "profile")]
    return [name, *never, seed, *sizes]


def _frozen(field: str, unless: str, why: str, default: str = "") -> dict[str, str]:
    """``spec.FIELD`` stays as it is from the first attempt until the job has ended."""
    here, before = f"self.spec.{field}", f"oldSelf.spec.{field}"
    if default:
        now, then = (f"(has({one}) ? {one} : {default})" for one in (here, before))
        same = f"{now} == {then}"
    else:
        same = f"(has({here}) ? (has({before}) && {here} == {before}) : !has({before}))"
    begun = "has(oldSelf.status) && has(oldSelf.status.attempt)"
    ended = f"has(oldSelf.status.state) && oldSelf.status.state in {list(names.ENDED_STATES)}"
    free = [f"!({begun})", ended, *([unless] if unless else [])]
    return {
        "rule": " || ".join([*(f"({part})" for part in free), same]),
        "message": f"cannot change once the job has started: {why}",
        "fieldPath": f".spec.{field}",
    }


def _ordered(model: type[Section]) -> Iterator[Rule]:
    """Intervals, whose type says that the first number must not exceed the second."""
    for name, info in model.model_fields.items():
        if base.ORDERED in info.metadata:
            key = info.alias or name
            text = f"{key}: the first number must not exceed the second; swap them"
            yield f"!has(self.{key}) || self.{key}.size() != 2 || self.{key}[0] <= self.{key}[1]", text


def _one_of(*names: str) -> str:
    return f"[{', '.join(f'has(self.{name})' for name in names)}].filter(given, given).size() == 1"


def _default(model: type[Section], name: str) -> Any:
    return model.model_fields[name].default


def _shapes() -> Iterator[Rule]:
    arch = f"(has(self.arch) ? self.arch : '{_default(ModelSpec, 'arch')}')"
    sizes = ("embedDim", "depth", "numHeads")
    given = " && ".join(f"has(self.{name})" for name in sizes)
    yield f"{arch} != 'custom' || ({given})", f"arch custom needs {', '.join(sizes)}"
    for known, shape in SHAPES.items():
        values = dict(zip(sizes, (shape.embed_dim, shape.depth, shape.num_heads), strict=True))
        same = " && ".join(f"(!has(self.{name}) || self.{name} == {value})" for name, value in values.items())
        has = ", ".join(f"{name} {value}" for name, value in values.items())
        yield f"{arch} != '{known}' || ({same})", f"{known} has {has}; other sizes need arch: custom"
    whole = "!has(self.embedDim) || !has(self.numHeads) || self.embedDim % self.numHeads == 0"
    yield f"{arch} != 'custom' || {whole}", "embedDim must be a multiple of numHeads"


_EVERY = f"(has(self.everySteps) ? self.everySteps : {_default(CheckpointPolicy, 'every_steps')})"
_RULES: dict[type, list[Rule]] = {
    JobSpec: [
        (_one_of(*STAGES), f"give exactly one of {', '.join(STAGES)}"),
        (
            " || ".join(["!has(self.gate)", *(f"has(self.{kind})" for kind in TRAINING)]),
            "a gate measures a trained model; this stage has none",
        ),
    ],
    Compute: [
        (
            "!(has(self.compile) && self.compile && has(self.activationCheckpointing) && "
            "self.activationCheckpointing == 'selective')",
            "a compiled block keeps what its compiler decides: use activationCheckpointing none or full",
        )
    ],
    Engine: [
        (
            "!has(self.zeroStage) || !has(self.name) || self.name == 'deepspeed'",
            "only deepspeed has a zeroStage; leave it out or use engine deepspeed",
        )
    ],
    Blur: [("!has(self.kernel) || self.kernel % 2 == 1", "kernel must be odd")],
    Augmentation: [
        (
            f"!has(self.order) || (self.order.size() == {len(RELEASED_ORDER)} && "
            "self.order.all(one, self.order.exists_one(other, other == one)))",
            f"order: name each of {', '.join(RELEASED_ORDER)} exactly once; a chance of 0 switches one off",
        )
    ],
    CheckpointPolicy: [
        (f"!has(self.keepEvery) || self.keepEvery % {_EVERY} == 0", "keepEvery must be a multiple of everySteps")
    ],
    KnnSettings: [
        (
            "!has(self.resize) || !has(self.imageSize) || self.resize >= self.imageSize",
            "resize is smaller than imageSize; make it at least as large",
        )
    ],
    Gate: [
        (
            "!has(self.championMargin) || has(self.promote)",
            "championMargin compares with the holder of an alias; add promote: {model: NAME}",
        )
    ],
    Schedules: [
        (
            "!has(self.momentum) || (self.momentum.start <= 1.0 && self.momentum.end <= 1.0)",
            "momentum is a share of 1: start and end are at most 1",
        )
    ],
    Headless: [(_one_of("warmup", "features"), "give exactly one of warmup and features")],
    Distill: [
        (
            "has(self.model) != (has(self.students) && self.students.size() > 0)",
            "give exactly one of model and students",
        ),
        (
            f"!has(self.students) || self.students.all(name, name.matches('{_NAME}'))",
            "names of students: use lower-case letters, digits and '-'",
        ),
    ],
    TrainData: [
        (
            "has(dyn(self).source) != (has(self.mixture) && self.mixture.size() > 0)",
            "give exactly one of source and mixture",
        )
    ],
    Pack: [
        (
            "!has(self.splits) || self.splits.all(name, name.matches('^[a-z0-9][a-z0-9_-]*$') && name != 'train' && "
            "self.splits[name] >= 1)",
            "splits: held-out splits have names of lower-case letters, digits, '-' and '_', other than train, and a "
            "count of at least 1",
        )
    ],
    Protocols: [("has(self.knn)", "name at least one protocol: knn")],
    ModelSpec: list(_shapes()),
}
