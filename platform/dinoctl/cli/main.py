"""``dinoctl``: assembling the commands, and turning errors into one line and an exit code (design §9)."""

import sys
from typing import Annotated

import typer

from dinoctl.cli import data, export, jobs, operator, replay, run, spec, submit, system

app = typer.Typer(
    name="dinoctl",
    help="From a few lines of YAML to a DINOv2-class vision foundation model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dinoctl {version('dinoctl')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for module in (run, submit, spec, jobs, operator, replay, data, export, system):
    module.add_to(app)


def main() -> None:
    """Exit codes: 0 done, 1 a job failed or a bug, 2 the user's mistake, 3 the surroundings, 130 Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        from dinoctl.spec.errors import EnvironmentProblem, UserError

        if isinstance(error, ModuleNotFoundError):
            error = EnvironmentProblem(_missing(error)) if _foreign(error) else error
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        if isinstance(error, OSError) and not isinstance(error, EnvironmentProblem) and error.filename:
            error = EnvironmentProblem(f"{error.filename}: {error.strerror}; mend it, then run the same command again")
        if not isinstance(error, (UserError, EnvironmentProblem)):
            raise
        sys.stderr.write(f"{_red('error')}: {error}\n" if "\n" not in str(error) else f"{error}\n")
        sys.exit(2 if isinstance(error, UserError) else 3)


def _foreign(error: ModuleNotFoundError) -> bool:
    return error.name is not None and error.name.partition(".")[0] != "dinoctl"


def _missing(error: ModuleNotFoundError) -> str:
    """The client alone has few packages; which of the others are needed turns out here."""
    extra = "s3" if error.name in ("boto3", "botocore", "tenacity") else "train"
    return f"{error.name} is not installed, and this needs it: pip install 'dinoctl[{extra}]'"


def _red(text: str) -> str:
    return f"\x1b[31m{text}\x1b[0m" if sys.stderr.isatty() else text
