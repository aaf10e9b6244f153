"""What the state directory says of one job, as the report shows it."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.output import read_output
from dinoctl.lifecycle import Attempt, AttemptState, Cause, Status
from dinoctl.local.report.curves import Charts, read_charts
from dinoctl.local.rows import Row, read_row
from dinoctl.local.state import JobState

LOG_LINES = 40
_LOG_BYTES = 256 * 2**10
_PICTURE = "pictures/pca.png"
_PICTURE_BYTES = 300_000
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_PID = re.compile(r"pid=\d+")


@dataclass(frozen=True)
class Measure:
    """A figure of the trained model, and the same of the untrained one where it was measured."""

    name: str
    value: str
    untrained: str


@dataclass(frozen=True)
class JobView:
    """Everything about a job that the template asks for. Times in seconds."""

    row: Row
    file_stem: str
    spec: str
    attempts: Sequence[Attempt]
    waste_s: float
    began_at: float | None
    changed_at: float | None
    measures: Sequence[Measure]
    charts: Charts
    picture: str | None
    log: Sequence[str]


def view(job: JobState) -> JobView:
    """Reads a job's files; whatever is not there yet is left out."""
    row, status, document = read_row(job), job.status, job.document or {"spec": {}}
    spec = document["spec"]
    storage = open_storage(JobState(job.directory, spec.get("storage")).storage_uri(status))
    stage = spec.get(row.stage, {})
    attempts = [a for a in status.attempts if a.number >= status.first_attempt] if status else []
    return JobView(
        row=row,
        file_stem=Path(document.get("file", job.name)).stem,
        spec="\n".join(_yaml(spec)),
        attempts=attempts,
        waste_s=status.waste.queue_s + status.waste.start_s + status.waste.replay_s if status else 0.0,
        began_at=status.began_at if status else None,
        changed_at=_changed_at(status),
        measures=_measures(storage),
        charts=read_charts(job.spool(status), stage, stage.get("steps") or 0),
        picture=_picture(storage),
        log=log_tail(job.scratch(attempts[-1].number) / "worker.log")
        if attempts and _went_wrong(row, attempts)
        else [],
    )


def _went_wrong(row: Row, attempts: Sequence[Attempt]) -> bool:
    """A gate that was not passed is no matter of the log: the attempt itself went well."""
    newest = attempts[-1]
    ended_badly = newest.state is AttemptState.ENDED and newest.cause not in (Cause.SUCCEEDED, Cause.STOPPED)
    return ended_badly and row.state != "Complete"


def _changed_at(status: Status | None) -> float | None:
    if status is None:
        return None
    times = [time for a in status.attempts for time in (a.ended_at, a.started_at, a.intended_at) if time is not None]
    return max([*times, *([status.progress.at] if status.progress else [])], default=None)


def _measures(storage: Storage) -> list[Measure]:
    """The figures in the job's proof of completion, but for those that the table of all jobs has."""
    try:
        output = read_output(storage)
    except StorageError:
        output = None
    summary = {} if output is None else {key: v for key, v in output.summary.items() if not isinstance(v, str)}
    names = [key for key in summary if not key.startswith("random_") and key != "images_per_s"]
    return [Measure(name, _figure(name, summary[name]), _figure(name, summary.get(f"random_{name}"))) for name in names]


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if "_top" in name else f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _picture(storage: Storage) -> str | None:
    """The picture of the patch features as a data URI; a large one goes in with some loss, to keep the file small."""
    try:
        data, kind = storage.read(_PICTURE), "png"
    except (NotFoundError, StorageError):
        return None
    if len(data) > _PICTURE_BYTES:
        data, kind = _webp(data), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _webp(png: bytes) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, format="WEBP", quality=80)
    return out.getvalue()


def log_tail(path: Path) -> list[str]:
    """The last lines of a log, without terminal colours; a line that repeats is said once, with its count."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    clean = (_ANSI.sub("", line).rstrip() for line in lines)
    runs = [(list(run)) for _, run in groupby(clean, key=lambda line: _PID.sub("", line))]
    return [f"{run[0]}  (x {len(run)})" if len(run) > 1 and run[0] else run[0] for run in runs][-LOG_LINES:]


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """The resolved document as YAML. Its values are plain, so this needs no library."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping) and inner:
                yield f"{indent}{key}:"
                yield from _yaml(inner, indent + "  ")
            else:
                yield f"{indent}{key}: {_flow(inner)}"


def _flow(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or not value.isprintable() else value
