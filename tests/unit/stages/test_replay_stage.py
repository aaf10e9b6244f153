"""What a replay refuses before it works, and how it writes values that are not finite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cli.replay import _lines
from dinoctl.data.pack import pack
from dinoctl.handover.attempt import Attempt
from dinoctl.spec.errors import UserError
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve
from dinoctl.stages import replay as stage
from dinoctl.stages.replay import Request, main, run

HEAD = "apiVersion: dinoctl.io/v1alpha1\nkind: DinoJob\nmetadata: {name: job}\nspec:\n"
COMPUTE = "  compute: {gpusPerWorker: 0, loaderWorkers: 0, precision: fp32, engine: {name: ddp}"
PRETRAIN = (
    f"{HEAD}{COMPUTE}}}\n  pretrain: {{data: {{source: DATA}}, globalBatch: 8, steps: 4, "
    "model: {arch: custom, embedDim: 16, depth: 1, numHeads: 2, patchSize: 4}, "
    "crops: {global: {size: 16}, local: {count: 0}}, "
    "heads: {dino: {prototypes: 12, hidden: 16, bottleneck: 8}, ibot: null}}\n"
)
STUDENTS = (
    f"{HEAD}{COMPUTE}, workers: 2}}\n  distill: {{teacher: {{uri: nowhere}}, data: {{source: DATA}}, globalBatch: 8, "
    "students: {a: {model: {arch: vit_small}}, b: {model: {arch: vit_small}}}}\n"
)


def attempt(root: Path, text: str) -> Attempt:
    (root / "job.yaml").write_text(text.replace("DATA", str(root / "data")))
    (job,) = resolve(load([str(root / "job.yaml")]))
    return Attempt("job", job.spec, job.spec_hash, 1, str(root / "out"), root, root / "spool")


@pytest.fixture
def pretraining(tmp_path: Path) -> Attempt:
    pack("builtin://digits", tmp_path / "data", splits={"val": 1700}, shard_bytes=40_000)
    return attempt(tmp_path, PRETRAIN)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (3, "8 images of a step do not divide among 3 ranks; --ranks can be 1, 2, 4"),
        (8, "1 image a rank, but KoLeo compares at least 2; --ranks can be 1, 2, 4"),
    ],
)
def test_ranks_that_cannot_be_are_refused(pretraining: Attempt, ranks: int, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        run(Request(pretraining, 0, ranks=ranks))


def test_several_students_are_refused_before_the_teacher_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several students, whose steps are not done again"):
        run(Request(attempt(tmp_path, STUDENTS), 0))


def test_a_folder_that_cannot_be_is_told_before_the_work(
    pretraining: Attempt, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(stage, "replay")  # the work would fail
    pretraining.write(tmp_path / "attempt.json")
    (tmp_path / "file").write_text("")
    arguments = ["--attempt", str(tmp_path / "attempt.json"), "--out", str(tmp_path / "out.json"), "--step", "0"]
    assert main([*arguments, "--save", str(tmp_path / "file")]) == 3
    assert capsys.readouterr().err == f"{tmp_path / 'file'}: File exists; mend it, then run the same command again\n"


def test_what_is_not_finite_is_strict_json(
    pretraining: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.replay

    def broken(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        metrics = found.metrics | {"loss": float("nan"), "dino_global": float("inf")}
        return replace(found, metrics=metrics, images=[one | {"loss": float("nan")} for one in found.images])

    monkeypatch.setattr(stage, "replay", broken)
    pretraining.write(tmp_path / "attempt.json")
    arguments = ["--attempt", str(tmp_path / "attempt.json"), "--out", str(tmp_path / "out.json"), "--step", "0"]
    assert main([*arguments, "--save", str(tmp_path / "crops")]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in (tmp_path / "out.json", tmp_path / "crops" / "replay.json"):
        told = json.loads(path.read_text(), parse_constant=refuse)
        assert (told["metrics"]["loss"], told["metrics"]["dino_global"]) == ("nan", "inf")
        text = "\n".join(_lines(told, 2))
        assert f"{'loss':<32} nan" in text
