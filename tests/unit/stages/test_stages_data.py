"""Opening training data, and reading a recipe off a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoctl.data.errors import DataError
from dinoctl.data.mixture import MixtureOrder
from dinoctl.data.order import SampleOrder
from dinoctl.data.pack import pack
from dinoctl.spec.errors import UserError
from dinoctl.spec.sources import JobRef
from dinoctl.spec.stages import HighRes, Pretrain
from dinoctl.stages.data import dataset_uri, open_data
from dinoctl.stages.recipe import Recipe


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "set"
    pack("builtin://digits", path, splits={"val": 500, "small": 100}, shard_bytes=40_000)
    return path


def recipe(data: dict[str, Any], **stage: Any) -> Recipe:
    stage = {"data": {"maxEnlargement": 28, **data}, "globalBatch": 8, **stage}
    return Recipe.of(Pretrain.model_validate(stage, by_alias=True, by_name=False))


def test_one_source(digits: Path) -> None:
    data = open_data(recipe({"source": str(digits), "split": "val"}), 3)
    assert [len(part) for part in data.parts] == [500]
    assert isinstance(data.order, SampleOrder)
    assert data.hash == data.parts[0].hash
    assert data.hash.endswith(":val")


def test_a_mixture(digits: Path) -> None:
    parts = [{"source": str(digits), "split": "val", "weight": 3}, {"source": str(digits), "split": "small"}]
    data = open_data(recipe({"mixture": parts, "homogeneous": 0.25, "runLength": 2}), 3)
    assert [len(part) for part in data.parts] == [500, 100]
    assert isinstance(data.order, MixtureOrder)
    data.order.check([500, 100])
    assert data.hash == "+".join(part.hash for part in data.parts)
    sources = [data.order.batch(step)[0] for step in range(1024)]
    assert np.mean(sources) == pytest.approx(0.25, abs=0.03), "weights 3 to 1"
    assert np.mean([len(set(batch.tolist())) == 1 for batch in sources]) > 0.25
    again = open_data(recipe({"mixture": parts, "homogeneous": 0.25, "runLength": 2}), 3)
    assert all(np.array_equal(again.order.batch(step), data.order.batch(step)) for step in range(8))


def test_images_far_smaller_than_the_crops(digits: Path) -> None:
    said = r"set \(split val\): the shorter side of the median image is 8 pixels; global crops of 40 pixels are 5 times"
    source, crops = {"source": str(digits), "split": "val", "maxEnlargement": 4}, {"global": {"size": 40}}
    with pytest.raises(UserError, match=said + r".* make the crops 32 pixels or smaller"):
        open_data(recipe(source, crops=crops), 0)
    with pytest.raises(UserError, match="are 5 times"):
        open_data(recipe(source, crops={"global": {"size": 32}, "sizes": [{"global": 32}, {"global": 40}]}), 0)
    assert len(open_data(recipe({**source, "maxEnlargement": 5}, crops=crops), 0).parts[0]) == 500
    assert len(open_data(recipe(source, crops={"global": {"size": 32}}), 0).parts[0]) == 500


def test_a_part_that_is_not_there(digits: Path, tmp_path: Path) -> None:
    for source, split, reason in (
        (str(tmp_path / "none"), "train", str(tmp_path / "none")),
        (str(digits), "vla", r"has no split 'vla'.*val"),
    ):
        part = {"source": source, "split": split}
        for data in (part, {"mixture": [{"source": str(digits)}, part]}):
            with pytest.raises(DataError, match=reason):
                open_data(recipe(data), 0)


def test_a_reference_has_to_be_pinned() -> None:
    assert dataset_uri("/data") == "/data"
    with pytest.raises(UserError, match="job 'pack' is not pinned to its output; run it through its lifecycle"):
        dataset_uri(JobRef(job="pack"))
    with pytest.raises(UserError, match="job 'pack' is not pinned"):
        open_data(recipe({"source": {"job": "pack"}}), 0)


def test_a_recipe_is_read_off_its_stage() -> None:
    stage = Pretrain.model_validate({"data": {"source": "/data"}, "steps": 7, "logEvery": 2}, by_alias=True)
    found = Recipe.of(stage)
    assert (found.steps, found.global_batch, found.log_every) == (7, 3072, 2)
    assert found.optimizer is stage.optimizer


def test_a_stage_that_is_not_resolved_is_refused() -> None:
    stage = HighRes.model_validate({"from": {"uri": "/parent"}, "globalBatch": 4, "masks": {}}, by_alias=True)
    with pytest.raises(UserError) as caught:
        Recipe.of(stage)
    assert str(caught.value) == (
        "the stage is not resolved: data, crops, losses, optimizer, schedules are open; run it with dinoctl run"
    )
