"""Documents for the tests of the spec."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from dinoctl.spec.errors import SpecError
from dinoctl.spec.load import LoadedJob, load
from dinoctl.spec.resolve import ResolvedJob, resolve

HEADER = "apiVersion: dinoctl.io/v1alpha1\nkind: DinoJob\n"
PRETRAIN = "pretrain: {data: {source: s3://b/d}}"


def document(name: str, spec: str) -> str:
    """A document whose spec is ``spec``, which starts in line 5."""
    body = "".join(f"  {line}\n" for line in dedent(spec).strip().splitlines())
    return f"{HEADER}metadata: {{name: {name}}}\nspec:\n{body}"


class Workshop:
    """Writes files and takes them through the spec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, text: str | bytes, name: str = "job.yaml") -> Path:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, *texts: str) -> list[LoadedJob]:
        return load([str(self.write("---\n".join(texts)))])

    def resolve(self, *texts: str) -> dict[str, ResolvedJob]:
        return {job.name: job for job in resolve(self.load(*texts))}

    def spec(self, text: str) -> dict[str, Any]:
        """The resolved spec of one job, as plain data."""
        return self.resolve(document("a", text))["a"].to_dict()["spec"]

    def problems(self, *texts: str) -> list[str]:
        """What is wrong, as shown, without the folder."""
        return self.told(lambda: resolve(self.load(*texts)))

    def told(self, action: Callable[[], object]) -> list[str]:
        with pytest.raises(SpecError) as error:
            action()
        return [line.replace(f"{self.folder}/", "") for line in str(error.value).splitlines()]

    def told_of(self, arguments: Sequence[str | Path]) -> list[str]:
        return self.told(lambda: load([str(argument) for argument in arguments]))
