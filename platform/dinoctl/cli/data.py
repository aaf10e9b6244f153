"""``pack`` and ``index``: images become a dataset, without a job."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinoctl.cli.options import Format, Output

if TYPE_CHECKING:
    from dinoctl.data.building import PackReport

_SHOWN = 5
Destination = Annotated[str, typer.Argument(help="Directory or s3:// prefix of the dataset.", metavar="DST")]
MaxBadRate = Annotated[
    float, typer.Option("--max-bad-rate", help="Share of unreadable files above which it stops.", min=0.0, max=1.0)
]
Verify = Annotated[bool, typer.Option(help="Decode every image once, so that no bad one gets in.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes; default: one a core.", min=1)]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(pack)
    app.command()(index)


def pack(
    source: Annotated[
        str, typer.Argument(help="Image folder or s3:// prefix, Parquet file(s), builtin://digits.", metavar="SRC")
    ],
    destination: Destination,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Samples to hold out, such as val=500; the rest is train.", metavar="NAME=COUNT"),
    ] = None,
    shard_size: Annotated[str, typer.Option("--shard-size", help="Bytes of a shard.")] = "256MiB",
    format: Annotated[str, typer.Option("--format", help="auto, folder or parquet.")] = "auto",  # noqa: A002
    max_bad_rate: MaxBadRate = 1e-4,
    verify: Verify = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice and order of samples.")] = 0,
    workers: Workers = None,
    output: Output = Format.TABLE,
) -> None:
    """Pack images into a dataset of tar shards with an index.

    The same command goes on after a kill, and ends with the same bytes. Class folders become labels. Unreadable files
    are listed in DST/bad.jsonl.
    """
    from dinoctl.cli.bar import counted
    from dinoctl.data import pack as packing

    held_out = {name: _count(name, value) for name, value in _pairs(split, "val=500").items()}
    size = _bytes(shard_size)
    with counted("packing", "images") as progress:
        report = packing.pack(
            source,
            _place(destination),
            format=format,
            splits=held_out,
            shard_bytes=size,
            max_bad_rate=max_bad_rate,
            verify=verify,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
        )
    _print(report, destination, output)


def index(
    source: Annotated[
        str, typer.Argument(help="Directory or s3:// prefix of WebDataset tars, MDS or LitData shards.", metavar="SRC")
    ],
    destination: Annotated[
        str | None, typer.Argument(help="Where the index goes; default: beside the shards.", metavar="[DST]")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help="Shards of a split, such as 'val=val/*'; default: folders train, val, ... or all train.",
            metavar="NAME=PATTERN",
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="auto, webdataset, mds or litdata.")] = "auto",  # noqa: A002
    image_key: Annotated[
        str | None, typer.Option("--image-key", help="Column of the image (MDS, LitData).", metavar="NAME")
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option(
            "--label-key", help="Column of the label; in tars a key of .json instead of .cls.", metavar="NAME"
        ),
    ] = None,
    labels: Annotated[bool, typer.Option(help="Take labels.")] = True,
    max_bad_rate: MaxBadRate = 1e-4,
    verify: Verify = True,
    workers: Workers = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a dataset of shards that exist already, where they lie.

    The shards are read once and stay as they are. The same command goes on after a kill. Samples that cannot be used
    are listed in bad.jsonl.
    """
    from dinoctl.cli.bar import counted
    from dinoctl.data import indexing
    from dinoctl.data.inplace import Keys
    from dinoctl.spec.errors import UserError

    if label_key is not None and not labels:
        raise UserError("--label-key names a label and --no-labels wants none; leave one out")
    with counted("indexing", "bytes") as progress:
        report = indexing.index(
            source,
            _place(destination) if destination else None,
            format=format,
            splits=_pairs(split, "'val=val/*'"),
            keys=Keys(image_key, label_key, labels),
            max_bad_rate=max_bad_rate,
            verify=verify,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
        )
    _print(report, destination or source, output)


def _pairs(given: list[str] | None, example: str) -> dict[str, str]:
    from dinoctl.spec.errors import UserError

    pairs = dict(text.partition("=")[::2] for text in given or ())
    for name, value in pairs.items():
        if not value or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise UserError(f"--split {name}={value}: write it as {example}, the name in lower-case letters and digits")
    return pairs


def _count(name: str, text: str) -> int:
    from dinoctl.spec.errors import UserError

    if not text.isdigit() or int(text) < 1 or name == "train":
        raise UserError(
            f"--split {name}={text}: held-out splits need a count of at least 1 and another name than train"
        )
    return int(text)


def _bytes(text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from dinoctl.spec.base import Size
    from dinoctl.spec.errors import UserError

    try:
        size: int = TypeAdapter(Size).validate_python(text)
    except ValidationError as error:
        raise UserError(f"--shard-size {text}: {error.errors()[0]['msg']}; write it as 256MiB") from error
    if size < 2**16:
        raise UserError(f"--shard-size {text}: at least 64KiB; 64MiB to 512MiB suits object storage")
    return size


def _place(destination: str) -> str:
    """Refuses a file, which would otherwise be told by whatever is written first."""
    from dinoctl.spec.errors import UserError

    if "://" not in destination and Path(destination).expanduser().is_file():
        raise UserError(f"{destination}: is a file; give a directory or an s3:// prefix for the dataset")
    return destination


def _print(report: "PackReport", place: str, output: Format) -> None:
    if output is Format.JSON:
        rejected = [{"path": path, "reason": reason} for path, reason in report.bad]
        typer.echo(
            json.dumps(
                {"dataset": place, "samples": report.samples, "hash": report.hash, "rejected": rejected}, indent=1
            )
        )
        return
    counts = ", ".join(f"{name} {count}" for name, count in sorted(report.samples.items()))
    typer.echo(f"{place}: {counts} samples, hash {report.hash[:12]}")
    for path, reason in report.bad[:_SHOWN]:
        typer.echo(f"rejected {path}: {reason}")
    if len(report.bad) > _SHOWN:
        typer.echo(f"rejected {len(report.bad) - _SHOWN} more; all are in {place}/bad.jsonl")
