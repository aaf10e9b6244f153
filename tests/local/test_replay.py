"""``dinoctl replay`` on real jobs: it repeats a step exactly, of one rank and of two, and changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.runs import PACK, TRAIN, Runs

STEPS = 8


def job(name: str, workers: int) -> str:
    text = TRAIN.replace("name: train", f"name: {name}").replace("workers: 2", f"workers: {workers}")
    text = text.replace("precision: fp32", "precision: fp32, engine: {name: ddp}")
    return text.replace("steps: 60", f"steps: {STEPS}").replace("logEvery: 2", "logEvery: 1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    text = PACK + job("one", 1) + job("two", 2)
    made = Runs(tmp_path_factory.mktemp("replay"), text.replace("warmupSteps: 10", "warmupSteps: 2"))
    try:
        code, output = made.run()
        assert code == 0, output
        yield made
    finally:
        made.close()


def files(runs: Runs) -> dict[str, str]:
    found = sorted(path for path in (runs.state / "jobs").rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def replay(runs: Runs, *arguments: str) -> dict[str, Any]:
    code, output = runs.call("replay", *arguments, "-o", "json")
    assert code == 0, output
    told: dict[str, Any] = json.loads(output)
    return told


def points(runs: Runs, name: str) -> dict[int, dict[str, float]]:
    (path,) = (runs.state / "jobs" / name / "spool").glob("run-*/metrics-1.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line["metrics"] for line in lines if "step" in line}


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_step_from_its_own_weights_is_that_of_the_job(runs: Runs, name: str, step: int) -> None:
    before = files(runs)
    told = replay(runs, name, "--step", str(step))
    assert files(runs) == before
    assert (told["checkpoint"], told["not_finite"]) == (step, "")
    logged = points(runs, name)[step + 1]
    assert told["logged_loss"] == logged["loss"]
    parts = ("loss", "dino_global", "dino_local", "ibot", "koleo")
    assert [told["metrics"][part] for part in parts] == pytest.approx([logged[part] for part in parts], rel=2e-6)
    norms = {module: logged[f"grad_norm/{module}"] for module in told["norms"]}
    assert told["norms"] == pytest.approx(norms, rel=2e-4)
    assert len(norms) == 3


@pytest.mark.parametrize("name", ["one", "two"])
def test_losses_by_image_add_up(runs: Runs, name: str) -> None:
    told = replay(runs, name, "--step", "5")
    images = told["images"]
    assert len({image["sample"] for image in images}) == 16
    assert [image["loss"] for image in images] == sorted((image["loss"] for image in images), reverse=True)
    for part in ("dino_global", "dino_local", "ibot"):
        mean = sum(image[part] for image in images) / len(images)
        assert mean == pytest.approx(told["metrics"][part], rel=1e-5), part
    assert all(image["key"] and image["dataset"].endswith("dataset") for image in images)
    assert list(told["maxima"].values()) == sorted(told["maxima"].values(), reverse=True)
    assert "student.backbone.blocks.1.mlp.fc1" in told["maxima"] or "student.backbone.blocks.1" in told["maxima"]


def test_the_newest_checkpoint_before_is_taken_and_said(runs: Runs) -> None:
    told = replay(runs, "one", "--step", "7")
    assert told["checkpoint"] == 5
    assert told["notes"][0].startswith("the weights are of step 5, so losses differ")
    first = replay(runs, "one", "--step", "7", "--from-step", "0")
    assert first["weights"] == "initial"
    assert first["metrics"]["loss"] != told["metrics"]["loss"]
    ids = [sorted(image["sample"] for image in one["images"]) for one in (told, first)]
    assert ids[0] == ids[1]


def test_ranks_draw_the_same_images(runs: Runs) -> None:
    one, two = replay(runs, "one", "--step", "5"), replay(runs, "one", "--step", "5", "--ranks", "2")
    samples = [sorted(image["sample"] for image in told["images"]) for told in (one, two)]
    assert samples[0] == samples[1]
    assert {image["rank"] for image in two["images"]} == {0, 1}
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=0.1), "KoLeo and stochastic depth differ"


def test_what_is_not_there_is_told_in_a_line(runs: Runs) -> None:
    kept = "checkpoints there are: 5, 8; --from-step 0 takes the initial weights"
    for arguments, text in {
        ("one", "--step", "4"): f"no checkpoint at or before step 4 is left; {kept}",
        ("one", "--step", "7", "--from-step", "6"): f"no checkpoint of step 6 is left; {kept}",
        ("one", "--step", "8"): "one has steps 0 to 7; there is no step 8",
        ("pack", "--step", "0"): "pack is of stage pack, which has no training steps to replay",
        ("other", "--step", "0"): "no job named 'other'",
    }.items():
        code, output = runs.call("replay", *arguments)
        assert code == 2, output
        assert text in output
        assert output.count("\n") == 1, output


def test_crops_are_saved(runs: Runs, tmp_path: Path) -> None:
    code, output = runs.call("replay", "two", "--step", "5", "--save", str(tmp_path / "crops"), "--worst", "3")
    assert code == 0, output
    assert "two step 5 with the weights of the checkpoint of step 5, 2 rank(s) on cpu" in output
    assert output.count("  sample ") == 3
    pictures = sorted((tmp_path / "crops").glob("*.png"))
    assert len(pictures) == 3 * 4
    sizes = {path.name.split("-")[2][:5]: Image.open(path).size for path in pictures}
    assert sizes == {"globa": (16, 16), "local": (8, 8)}
    saved = json.loads((tmp_path / "crops" / "replay.json").read_text())
    named = {(image["rank"], image["sample"]) for image in saved["images"][:3]}
    assert {(int(p.name.split("-")[0][4:]), int(p.name.split("-")[1][6:])) for p in pictures} == named
