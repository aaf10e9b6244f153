"""``validate``, ``resolve``, ``schema``: documents, without running them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dinoctl.cli.options import Files, Format, Output

if TYPE_CHECKING:
    from dinoctl.spec.job import JobSpec


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(validate)
    app.command()(resolve)
    app.command()(schema)


def validate(files: Files, output: Output = Format.TABLE) -> None:
    """Check documents; shows all mistakes of all files at once."""
    from dinoctl.spec.load import load
    from dinoctl.spec.resolve import resolve as resolve_jobs

    jobs = resolve_jobs(load(files))
    if output is Format.JSON:
        typer.echo(json.dumps([{"name": job.name, "stage": job.kind, "parents": list(job.parents)} for job in jobs]))
        return
    for job in jobs:
        after = f" after {', '.join(job.parents)}" if job.parents else ""
        typer.echo(f"ok  {job.name} ({job.kind}){after}{_division(job.spec)}")


def _division(spec: JobSpec) -> str:
    """How several students share the workers."""
    students = spec.distill.students if spec.distill else None
    return ": workers " + ", ".join(f"{name} {one.ranks}" for name, one in students.items()) if students else ""


def resolve(
    files: Files,
    origins: Annotated[bool, typer.Option("--origins", help="Say beside every value where it comes from.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print documents as they will run: every field with its value."""
    from dinoctl.cli.render import resolved_yaml
    from dinoctl.spec.load import load
    from dinoctl.spec.resolve import resolve as resolve_jobs

    jobs = resolve_jobs(load(files))
    if output is Format.JSON:
        documents = [{**job.to_dict(), "specHash": job.spec_hash} for job in jobs]
        if origins:
            documents = [{**d, "origins": dict(j.origins)} for d, j in zip(documents, jobs, strict=True)]
        typer.echo(json.dumps(documents, indent=1))
        return
    typer.echo("---\n".join(resolved_yaml(job, origins=origins) for job in jobs), nl=False)


def schema(
    crd: Annotated[bool, typer.Option("--crd", help="The CustomResourceDefinition for Kubernetes instead.")] = False,
) -> None:
    """Print the JSON Schema of a document, for editors; with --crd what Kubernetes has to know of it."""
    if crd:
        from dinoctl.spec.crd import crd_yaml

        typer.echo(crd_yaml(), nl=False)
        return
    from dinoctl.spec.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
