"""Which metrics of a training job share a chart, and where its attempts went on."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoctl.local.report.chart import Chart, Drawing, Line, Points, draw
from dinoctl.tracking.spool import history
from dinoctl.tracking.spool_files import attempt_files, start_of

Curves = Mapping[str, Points]

_PARTS = {"dino_global": "DINO global", "dino_local": "DINO local", "ibot": "iBOT", "koleo": "KoLeo", "gram": "Gram"}
_ENTROPIES = {
    "health/target_entropy": "class targets",
    "health/prototype_usage": "prototypes in use",
    "health/patch_prototype_usage": "patch prototypes in use",
}
_AGREEMENTS = {"health/agreement": "class tokens", "health/patch_agreement": "masked patches"}
_RANKS = {"health/effective_rank_student": "student", "health/effective_rank_teacher": "teacher"}
_GRADIENTS = "grad_norm/"
_SCHEDULES = {
    "schedule/learning_rate": "Learning rate",
    "schedule/momentum": "Teacher momentum",
    "schedule/teacher_temperature": "Teacher temperature",
    "schedule/weight_decay": "Weight decay",
}


@dataclass(frozen=True)
class Charts:
    """Those to look at first, what does not change and so needs no chart, and the rest."""

    main: Sequence[Drawing] = ()
    constant: Sequence[Line] = ()
    more: Sequence[Drawing] = ()


def read_charts(spool: Path, stage: Mapping[str, Any], steps: int) -> Charts:
    """Charts of everything in the spool. ``stage`` is the stage's section of the document, ``steps`` the planned ones.

    Without two points of a loss there is nothing to draw: other stages' results are in their tables.
    """
    curves = history(spool)
    if not curves.get("loss"):
        return Charts()
    steps = max(steps, *(points[-1][0] for points in curves.values()))
    marks = list(resumptions(spool))
    main = list(_main(curves, stage))
    shown = {*_SCHEDULES, *(key for _, keys in main for key in keys)}
    rest = [
        Chart(key, "s" if key.endswith("_s") else "", [Line(key, curves[key], 1)]) for key in curves if key not in shown
    ]
    schedules = [Chart(name, "", [Line(name, curves[key], 1)]) for key, name in _SCHEDULES.items() if key in curves]
    first = [chart for chart, _ in main] + [chart for chart in schedules if not _is_constant(chart.lines[0])]
    constant = [chart.lines[0] for chart in schedules if _is_constant(chart.lines[0])]
    return Charts(list(_drawn(first, steps, marks)), constant, list(_drawn(rest, steps, marks)))


def _drawn(charts: Iterable[Chart], steps: int, marks: Sequence[tuple[int, str]]) -> Iterator[Drawing]:
    return (drawing for chart in charts if (drawing := draw(chart, steps, marks)))


def _is_constant(line: Line) -> bool:
    return len({value for _, value in line.points}) == 1


def resumptions(spool: Path) -> Iterator[tuple[int, str]]:
    """The first step of every attempt after the first, as a mark of the charts."""
    starts = {number: start_of(path) for number, path in attempt_files(spool).items()}
    first = min(starts, default=None)
    for number, start in starts.items():
        if start is not None and number != first:
            yield start, f"attempt {number}"


def _main(curves: Curves, stage: Mapping[str, Any]) -> Iterator[tuple[Chart, list[str]]]:
    """Charts with the metrics that they show."""
    parts = {key: name for key, name in _PARTS.items() if any(value for _, value in curves.get(key, ()))}
    yield Chart("Loss and its parts", "nats", _lines(curves, {"loss": "total", **parts}, 0)), ["loss", *_PARTS]
    # The first point comes before any interval has passed: a rate of 0 that says nothing.
    pace = [(step, value if value > 0 else math.nan) for step, value in curves.get("images_per_s", ())]
    yield Chart("Speed", "images/s", [Line("images/s", pace, 1)], zero=True), ["images_per_s"]
    norms = {key: _module(key) for key in curves if key.startswith(_GRADIENTS)}
    yield Chart("Gradient norms before clipping", "log scale", _lines(curves, norms, 1), log=True), list(norms)
    entropy = Chart("Entropy of the teacher", "nats", _lines(curves, _ENTROPIES, 1), level=_uniform(stage))
    yield entropy, list(_ENTROPIES)
    spread = _lines(curves, {"health/feature_std": "feature std"}, 1)
    yield Chart("Spread of class tokens", "std; 0 is collapse", spread, zero=True), ["health/feature_std"]
    ranks = Chart("Effective rank of class tokens", "1 is collapse", _lines(curves, _RANKS, 1), zero=True)
    yield ranks, list(_RANKS)
    agreed = Chart("Student and teacher agree", "share of tokens", _lines(curves, _AGREEMENTS, 1), zero=True)
    yield agreed, list(_AGREEMENTS)
    skipped = curves.get("health/skipped_steps", ())
    lines = [Line("skipped", skipped, 1)] if any(value for _, value in skipped) else []
    yield Chart("Skipped steps", "in all", lines, zero=True), ["health/skipped_steps"]


def _lines(curves: Curves, names: Mapping[str, str], first_colour: int) -> list[Line]:
    found = [(name, curves[key]) for key, name in names.items() if key in curves]
    return [Line(name, points, first_colour + i) for i, (name, points) in enumerate(found)]


def _module(key: str) -> str:
    return key.removeprefix(_GRADIENTS).removeprefix("student.").replace("_", " ")


def _uniform(stage: Mapping[str, Any]) -> tuple[float, str] | None:
    """The entropy of a teacher that prefers no prototype: what the curves are to be compared with."""
    prototypes = stage.get("heads", {}).get("dino", {}).get("prototypes")
    if not isinstance(prototypes, int) or prototypes < 2:
        return None
    return math.log(prototypes), f"ln {prototypes}: no preference"
