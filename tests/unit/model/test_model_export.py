"""Exported models: round trip, equal bytes, nothing half-written."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinoctl.model import ProjectionHead, VisionTransformer, ViTConfig, load_export, save_export

CONFIG = ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=4, img_size=16, ffn="swiglu", registers=4)
METADATA = {"step": 12, "job": "tiny", "numbers": [1, 2.5]}


def heads() -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: ProjectionHead(32, 16, 24, 8, layers).state_dict()
        for name, layers in (("ibot_head", 2), ("dino_head", 3))
    }


@torch.no_grad()
def test_round_trip(tmp_path: Path) -> None:
    model, saved = VisionTransformer(CONFIG).eval(), heads()
    save_export(tmp_path / "deep" / "export", model, CONFIG, saved, METADATA)
    exported = load_export(tmp_path / "deep" / "export")
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(exported.backbone(images), model(images))
    assert not exported.backbone.training
    assert exported.config == CONFIG
    assert exported.metadata == METADATA
    assert {name: list(state) for name, state in exported.heads.items()}.keys() == saved.keys()
    for name, state in saved.items():
        assert exported.heads[name].keys() == state.keys()
        assert all(torch.equal(exported.heads[name][key], value) for key, value in state.items())
    document = json.loads((tmp_path / "deep" / "export" / "config.json").read_text())
    assert document["format_version"] == 1
    assert document["heads"]["ibot_head"]["layers"] == 2
    ProjectionHead(**document["heads"]["dino_head"])
    assert load_file(tmp_path / "deep" / "export" / "backbone.safetensors").keys() == model.state_dict().keys()


def test_same_content_same_bytes_and_an_older_export_is_replaced(tmp_path: Path) -> None:
    state, saved = VisionTransformer(CONFIG).state_dict(), heads()
    save_export(tmp_path / "a", VisionTransformer(CONFIG), CONFIG, {}, {"old": True})
    save_export(tmp_path / "a", state, CONFIG, saved, METADATA)
    reverse = dict(reversed(list(METADATA.items())))
    save_export(
        tmp_path / "b", dict(reversed(list(state.items()))), CONFIG, dict(reversed(list(saved.items()))), reverse
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    for name in ("backbone.safetensors", "heads.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_heads(tmp_path: Path) -> None:
    save_export(tmp_path / "export", VisionTransformer(CONFIG), CONFIG, {}, {})
    assert load_export(tmp_path / "export").heads == {}


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    model = VisionTransformer(CONFIG)
    other = ViTConfig(**{**CONFIG.to_dict(), "depth": 3})
    for arguments, message in (
        ((model, other, {}, {}), "missing: blocks.2"),
        ((model, CONFIG, {"head": {}}, {}), "unknown heads"),
        ((model, CONFIG, {}, {"path": Path()}), "plain JSON"),
        ((model, CONFIG, {"dino_head": {}}, {}), "not the state of a projection head"),
    ):
        with pytest.raises(ValueError, match=message):
            save_export(tmp_path / "export", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_directories_that_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no backbone"):
        load_export(tmp_path)
    save_export(tmp_path / "export", VisionTransformer(CONFIG), CONFIG, {}, {})
    path = tmp_path / "export" / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="format_version 2, this version reads 1"):
        load_export(tmp_path / "export")


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_export(tmp_path / "model", VisionTransformer(CONFIG), CONFIG, {}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
