"""The state of jobs as a table or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from dinoctl.cli.options import Format
from dinoctl.data.storage import open_storage
from dinoctl.handover.output import read_output
from dinoctl.lifecycle import Status, explain, state_of
from dinoctl.lifecycle.codec import encode
from dinoctl.local.state import JobState, StateDir

_COLOURS = {"Complete": "green", "Failed": "red", "Blocked": "red", "Running": "cyan", "Retrying": "yellow"}
_COLUMNS = ("job", "stage", "state", "steps", "images/s", "kNN", "untrained", "model", "alias")


@dataclass(frozen=True)
class Row:
    """One job as people see it. Accuracies in [0, 1]."""

    name: str
    stage: str
    state: str
    why: str
    step: int | None
    steps: int | None
    images_per_s: float | None
    knn_top1: float | None
    random_knn_top1: float | None
    model: str
    alias: str
    eta_s: float | None
    attempt: int | None
    status: Status | None

    def plain(self) -> dict[str, Any]:
        """For ``-o json``."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "status"}
        conditions = encode(self.status).get("conditions", []) if self.status else []
        return {**fields, "conditions": conditions}


def row(job: JobState, storage_root: str | None = None) -> Row:
    """Reads a job's files."""
    status, document = job.status, job.document or {"spec": {}}
    spec = document["spec"]
    stage = next((kind for kind in ("pack", "pretrain", "highres", "distill", "evaluate") if kind in spec), "?")
    files = JobState(job.directory, storage_root or spec.get("storage"))
    output = read_output(open_storage(files.storage_uri(status))) if status and status.output else None
    numbers = dict(output.summary) if output else {}
    progress, promotion = (status.progress, status.promotion) if status else (None, None)
    newest = status.attempts[-1] if status and status.attempts else None
    return Row(
        name=job.name,
        stage=stage,
        state=state_of(status),
        why=explain(status),
        step=output.step if output else progress.step if progress else None,
        steps=progress.steps if progress else output.step if output else None,
        images_per_s=_number(numbers.get("images_per_s")) or (progress.images_per_s if progress else None),
        knn_top1=_number(numbers.get("knn_top1")),
        random_knn_top1=_number(numbers.get("random_knn_top1")),
        model=f"{promotion.model}/{promotion.version}" if promotion else "",
        alias=promotion.alias if promotion else "",
        eta_s=progress.eta_s if progress and status and status.live else None,
        attempt=newest.number if newest else None,
        status=status,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def print_states(state: StateDir, names: Sequence[str], output: Format, *, final: bool = False) -> int:
    """Prints; returns the exit code that the states call for."""
    rows = [row(state.job(name)) for name in names]
    if output is Format.JSON:
        typer.echo(json.dumps([row.plain() for row in rows], indent=1))
    else:
        _print_table(rows)
        if final:
            _print_hints(state, rows)
    return exit_code(rows)


def exit_code(rows: Sequence[Row]) -> int:
    """2 when a job's document or data was at fault, 1 when another job failed or could not start, else 0."""
    failed = [row for row in rows if row.state in ("Failed", "Blocked")]
    reasons = {str(row.status.outcome.reason) for row in failed if row.status and row.status.outcome}
    return 2 if "SpecError" in reasons else 1 if failed else 0


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _COLUMNS[3:7] else "left", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.stage, _coloured(row.state), _steps(row), *_numbers(row), row.model, row.alias)
    console = Console(width=None if _is_terminal() else 160)
    console.print(table)
    for row in rows:
        if row.state not in ("Complete", "Pending"):
            console.print(f"[bold]{row.name}[/]: {row.why}", highlight=False, soft_wrap=True)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _coloured(state: str) -> str:
    colour = {"Complete": "green", "Failed": "red", "Blocked": "red", "Running": "cyan", "Retrying": "yellow"}.get(
        state
    )
    return f"[{colour}]{state}[/]" if colour else state


def _steps(row: Row) -> str:
    if row.step is None:
        return ""
    return str(row.step) if row.step == row.steps or row.steps is None else f"{row.step}/{row.steps}"


def _numbers(row: Row) -> tuple[str, str, str]:
    pace = f"{row.images_per_s:.0f}" if row.images_per_s else ""
    shares = (row.knn_top1, row.random_knn_top1)
    first, second = (f"{100 * value:.1f} %" if value is not None else "" for value in shares)
    return pace, first, second


def _print_hints(state: StateDir, rows: Sequence[Row]) -> None:
    report = state.root / "report.html"
    if report.exists():
        typer.echo(f"\nreport: {report}")
    if any(row.state == "Complete" for row in rows):
        typer.echo(f"metrics and models: mlflow ui --backend-store-uri {state.tracking_uri}")
    failed = next((row for row in rows if row.state == "Failed"), None)
    if failed is not None:
        typer.echo(f"log: dinoctl logs {failed.name} --state-dir {state.root}")
