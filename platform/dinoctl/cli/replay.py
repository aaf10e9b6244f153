"""``replay``: one step of a job again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dinoctl.cli.options import STATE_DEFAULT, Format, Name, Output, State

_MAXIMA = 5


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(replay)


def replay(
    name: Name,
    step: Annotated[int, typer.Option("--step", help="Step, counted from 0; metrics call it STEP + 1.", min=0)],
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from-step",
            help="Checkpoint to take weights from, 0: the initial ones; default: the newest before.",
            min=0,
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Ranks that the job had in that step; default: its workers.", min=1)
    ] = None,
    worst: Annotated[int, typer.Option("--worst", help="How many images to show, greatest losses first.", min=1)] = 8,
    save: Annotated[Path | None, typer.Option("--save", help="Write these images' crops and replay.json here.")] = None,
    state_dir: State = STATE_DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Do a training step again on one process, with its very batch: losses, norms, what is not finite, which images.

    Nothing of the job changes; it may be finished or stopped.
    """
    from dinoctl.local.replay import replay as replayed
    from dinoctl.local.state import StateDir

    options = {"from_step": from_step, "ranks": ranks, "worst": worst, "save": save}
    told = replayed(StateDir(state_dir).known(name), step, options)
    if output is Format.JSON:
        typer.echo(json.dumps(told, indent=1, allow_nan=False))
    else:
        typer.echo("\n".join(_lines(told, worst)))
        if save is not None:
            typer.echo(f"crops and replay.json are in {save}")


def _lines(told: dict[str, Any], worst: int) -> Iterator[str]:
    # Floats that are not finite come as strings (tracking.jsonnum).
    yield f"{told['job']} step {told['step']} with the {_weights(told)}, {told['ranks']} rank(s) on {told['device']}"
    for note in told["notes"]:
        yield f"note: {note}"
    yield f"not finite: {told['not_finite'] or 'nothing'}"
    if told["logged_loss"] is not None:
        yield f"loss in the job's metrics: {float(told['logged_loss']):.7g}"
    for metric, value in told["metrics"].items():
        yield f"{metric:<32} {float(value):.7g}"
    for module, value in told["norms"].items():
        yield f"{'grad_norm/' + module:<32} {float(value):.7g}"
    yield "largest outputs: " + ", ".join(f"{n} {float(v):.4g}" for n, v in list(told["maxima"].items())[:_MAXIMA])
    if told["images"]:
        yield "images with the greatest losses:"
    for image in told["images"][:worst]:
        yield f"  {float(image['loss']):10.6g}  sample {image['sample']}  {image['key']}  ({image['dataset']})"


def _weights(told: dict[str, Any]) -> str:
    return "initial weights" if told["weights"] == "initial" else f"weights of the {told['weights']}"
