"""The report of ``dinoctl run``: one HTML file that shows all jobs, needs nothing else, and may be mailed.

    jobs     what the state directory says of each job        (facts)
    curves   which metrics share a chart                      (from the spool)
    chart    numbers to the geometry of a chart
    *.html   how it looks: a Jinja template that escapes everything

It holds for runs that are half finished or failed too, and the same state directory gives the same bytes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dinoctl.local.report.jobs import JobView, view
from dinoctl.local.state import StateDir, write_atomic

REPORT = "report.html"


def write_report(state: StateDir, names: Sequence[str]) -> Path:
    """Writes ``report.html`` into the state directory, with the named jobs in the order given."""
    jobs = [view(state.job(name)) for name in names]
    path = state.root / REPORT
    write_atomic(path, _environment().get_template("report.html").render(**_page(state, jobs)))
    return path


def _page(state: StateDir, jobs: Sequence[JobView]) -> dict[str, Any]:
    begins = [job.began_at for job in jobs if job.began_at is not None]
    ends = [job.changed_at for job in jobs if job.changed_at is not None]
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.row.state] = counts.get(job.row.state, 0) + 1
    return {
        "pipeline": ", ".join(dict.fromkeys(job.file_stem for job in jobs)) or "no jobs",
        "jobs": jobs,
        "counts": counts,
        "began_at": min(begins, default=None),
        "changed_at": max(ends, default=None),
        "versions": _versions(),
        "root": state.root,
        "tracking_uri": state.tracking_uri,
    }


def _environment() -> Any:
    # Imported here: starting the command line must not wait for a template engine.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dinoctl.local.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": _when, "duration": duration, "percent": _percent, "number": _number}
    return environment


def _versions() -> dict[str, str]:
    """Of the environment that the report is written in, which is the one that the jobs ran in."""
    found = {}
    for name in ("dinoctl", "torch", "deepspeed", "ray", "mlflow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """``43 s``, ``5 min 12 s``, ``7 h 05 min``, ``3 d 02 h``."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
