"""``export``: a model in the format of another library."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinoctl.cli.options import STATE_DEFAULT, State
from dinoctl.export import FORMATS, missing

if TYPE_CHECKING:
    from dinoctl.export.run import Result
    from dinoctl.local.state import StateDir

To = StrEnum("To", {name.upper(): name for name in FORMATS})  # type: ignore[misc]  # from the table, not again


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(export)


def export(
    model: Annotated[str, typer.Argument(help="A job, a path or s3:// URI, or models:/NAME@ALIAS.", metavar="MODEL")],
    to: Annotated[To, typer.Option("--to", help="The format.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Directory; default: exports/NAME-FORMAT.", metavar="DIRECTORY"),
    ] = None,
    student: Annotated[
        str | None, typer.Option("--student", help="Of a job that distils several.", metavar="NAME")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Side in pixels that positions are for; default: the model's.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="Of ONNX; default: 18.")] = None,
    verify: Annotated[bool, typer.Option(help="Load the result in its library and compare features.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    state_dir: State = STATE_DEFAULT,
) -> None:
    """Write a model for another library, and check it there.

    safetensors is dinoctl's own form with official DINOv2 names; hf is for transformers; onnx and torchscript take any
    batch of images of one size.
    """
    from dinoctl.cli.screen import say
    from dinoctl.spec.errors import EnvironmentProblem, UserError

    if opset is not None and to != "onnx":
        raise UserError(f"--opset is for --to onnx, not for --to {to}")
    if absent := missing(to, verify=verify):
        raise EnvironmentProblem(
            f"--to {to} needs {', '.join(absent)}, not installed here; pip install 'dinoctl[train,export]'"
        )
    from dinoctl.export.run import Request, export
    from dinoctl.export.verify import DifferentFeaturesError

    source, name, tracking_uri = _locate(model, student, state_dir)
    request = Request(source, str(to), name, output, image_size, opset, verify, force, tracking_uri)
    try:
        result = export(request, say)
    except DifferentFeaturesError as error:
        typer.echo(f"error: {source}: {error}", err=True)
        raise typer.Exit(1) from None
    _print(result)


def _locate(model: str, student: str | None, state_dir: Path) -> tuple[str, str | None, str | None]:
    """Where the model lies, its name if it is a job's, and the registry to look in."""
    from dinoctl.local.state import JobState, StateDir
    from dinoctl.spec.errors import UserError

    state = StateDir(state_dir)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and (state.root / "mlflow.db").is_file():
        uri = state.tracking_uri
    job = state.job(model) if "/" not in model else None
    document = job.document if job else None
    if job is None or document is None:
        _refuse_unknown(model, state)
        if student is not None:
            raise UserError(
                f"--student is for a job of {state.root}; of a path name the student's own, .../export/{student}"
            )
        return model, None, uri
    status = job.status
    if status is None or not status.output:
        raise UserError(f"job {model} has no model yet; see dinoctl status {model}")
    output = JobState(job.directory, document["spec"].get("storage")).storage_uri(status)
    _check_student(model, student, list((document["spec"].get("distill") or {}).get("students") or {}))
    return (output, model, uri) if student is None else (f"{output}/export/{student}", f"{model}-{student}", uri)


def _check_student(job: str, student: str | None, students: list[str]) -> None:
    """Of several students one has to be named, and there has to be one of that name."""
    from dinoctl.spec.errors import UserError

    if student is not None and not students:
        raise UserError(f"job {job} has one model; leave --student out")
    if students and student not in students:
        said = "distils several students" if student is None else f"has no student {student!r}"
        raise UserError(f"job {job} {said}; give --student {students[0]} (there are {', '.join(students)})")


def _refuse_unknown(model: str, state: "StateDir") -> None:
    """A name that is neither a job's nor a path's, where there are jobs to choose from."""
    from dinoctl.spec.errors import UserError

    names = [known.name for known in state.jobs()]
    if names and not re.search(r"[/.:]|^dinov2_", model) and not Path(model).exists():
        raise UserError(f"{model}: neither a path nor a job in {state.root}; jobs here: {', '.join(names)}")


def _print(result: "Result") -> None:
    typer.echo(f"wrote {result.directory} ({result.size / 1e6:.1f} MB)")
    if result.differences:
        largest = max(one.relative for one in result.differences)
        compared = "; ".join(map(str, result.differences))
        typer.echo(f"features equal in {result.library}: largest difference for {compared}")
        typer.echo(f"  ({largest:.1e} of the largest feature; allowed 1e-04)")
    else:
        typer.echo("not compared with the model (--no-verify)")
    for remark in result.remarks:
        typer.echo(f"note: {remark}")
    typer.echo(f"load it: {result.usage}")
