"""Every format, loaded by its own library, gives the features of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import CONFIGS, PLAIN, save
from torch import Tensor

import dinoctl
from dinoctl.export.run import RECORD, Request, Result, export
from dinoctl.export.timm import timm_model
from dinoctl.export.verify import TOLERANCE
from dinoctl.model import RELEASED, VisionTransformer, ViTConfig, to_timm
from dinoctl.model.huggingface import huggingface_config
from dinoctl.spec.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(tmp_path: Path, config: ViTConfig, to: str, **more: Any) -> tuple[Path, VisionTransformer, Result]:
    """The directory of an export, and the backbone that it came from."""
    source = save(tmp_path / "model", config)
    result = export(Request(str(source), to, output=tmp_path / "out", **more), lambda _: None)
    assert result.directory == tmp_path / "out"
    return result.directory, dinoctl.load_backbone(source), result


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_safetensors(kind: str, tmp_path: Path) -> None:
    place, backbone, result = made(tmp_path, CONFIGS[kind], "safetensors")
    batch = images(2, 32 if CONFIGS[kind].patch_size == 16 else 28, CONFIGS[kind].patch_size * 5)
    assert torch.equal(dinoctl.load_backbone(place)(batch), backbone(batch))
    assert [one.absolute for one in result.differences] == [0.0, 0.0, 0.0]
    assert (place / "backbone.safetensors").is_file()


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    config = CONFIGS[kind]
    place, backbone, result = made(tmp_path, config, "hf")
    model = AutoModel.from_pretrained(place).eval()
    assert type(model).__name__ == ("Dinov2WithRegistersModel" if config.registers else "Dinov2Model")
    batch = images(2, config.img_size, config.img_size)
    output, features = model(batch), backbone.forward_features(batch)
    assert_same(output.pooler_output, features["x_norm_clstoken"])
    assert_same(output.last_hidden_state[:, 1 + config.registers :], features["x_norm_patchtokens"])
    if kind == "mlp-registers":
        assert list(AutoImageProcessor.from_pretrained(place).image_mean) == [0.5, 0.4, 0.3]
    ways = [remark for remark in result.remarks if "resizes positions in its own way" in remark]
    assert bool(ways) != (kind in ("mlp-registers", "swiglu-registers")), "only there both resize alike"
    ones = [remark for remark in result.remarks if "factors of one" in remark]
    assert bool(ones) == (config.layerscale is None)
    again = dinoctl.load_backbone(place)
    assert_same(again(batch), backbone(batch))


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_timm(kind: str, tmp_path: Path) -> None:
    import timm

    config = CONFIGS[kind]
    place, backbone, _ = made(tmp_path, config, "timm")
    model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    batch = images(2, config.img_size, config.img_size)
    features = backbone.forward_features(batch)
    assert_same(model(batch), features["x_norm_clstoken"])
    assert_same(model.forward_features(batch)[:, 1 + config.registers :], features["x_norm_patchtokens"])
    assert model.pretrained_cfg["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("name", RELEASED)
def test_timm_names_of_the_released_models(name: str) -> None:
    import timm

    config = RELEASED[name]
    architecture, arguments = timm_model(config)
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[name[len("dinov2_vit")]]
    assert architecture == f"vit_{size}_patch14_{'reg4_' if config.registers else ''}dinov2"
    assert arguments.keys() == {"img_size", "dynamic_img_size", "num_classes"}
    with torch.device("meta"):
        theirs = timm.create_model(architecture, **arguments).state_dict()
        ours = to_timm(VisionTransformer(config).state_dict())
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_transformers_classes_of_the_released_models(name: str) -> None:
    from transformers import AutoConfig, AutoModel

    document = huggingface_config(RELEASED[name])
    with torch.device("meta"):
        theirs = AutoModel.from_config(AutoConfig.for_model(**document))
        ours = VisionTransformer(RELEASED[name])
    assert [type(theirs).__name__] == document["architectures"]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("kind", ["mlp", "swiglu-registers"])
def test_onnx(kind: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    config = CONFIGS[kind]
    place, backbone, result = made(tmp_path, config, "onnx", opset=20 if kind == "mlp" else None)
    onnx.checker.check_model(place / "model.onnx", full_check=True)
    assert sorted(path.name for path in place.iterdir()) == [RECORD, "model.onnx"]
    session = onnxruntime.InferenceSession(place / "model.onnx")
    for batch in (1, 3, 4):
        given = images(batch, config.img_size, config.img_size)
        cls, patches = session.run(None, {"images": given.numpy()})
        features = backbone.forward_features(given)
        assert_same(torch.from_numpy(cls), features["x_norm_clstoken"].detach())
        assert_same(torch.from_numpy(patches), features["x_norm_patchtokens"].detach())
    opset = {entry.domain: entry.version for entry in onnx.load(place / "model.onnx").opset_import}[""]
    assert opset == (20 if kind == "mlp" else 18)
    assert any(f"opset {opset}, images of {config.img_size} x" in remark for remark in result.remarks)
    with pytest.raises(Exception, match="images"):
        session.run(None, {"images": images(1, config.patch_size, config.patch_size).numpy()})


@pytest.mark.parametrize("kind", ["mlp-registers", "swiglu"])
@torch.no_grad()
def test_torchscript(kind: str, tmp_path: Path) -> None:
    config = CONFIGS[kind]
    place, backbone, _ = made(tmp_path, config, "torchscript")
    model = torch.jit.load(place / "model.pt")  # type: ignore[no-untyped-call]
    for batch in (1, 5):
        given = images(batch, config.img_size, config.img_size)
        cls, patches = model(given)
        features = backbone.forward_features(given)
        assert_same(cls, features["x_norm_clstoken"])
        assert_same(patches, features["x_norm_patchtokens"])
    with pytest.raises(RuntimeError, match="size"):
        model(images(1, 2 * config.patch_size, 3 * config.patch_size))


@pytest.mark.parametrize("to", ["safetensors", "hf", "torchscript"])
@torch.no_grad()
def test_another_image_size(to: str, tmp_path: Path) -> None:
    place, backbone, _ = made(tmp_path, CONFIGS["mlp"], to, image_size=98)
    wanted = backbone(batch := images(2, 98, 98))
    if to == "torchscript":
        assert_same(torch.jit.load(place / "model.pt")(batch)[0], wanted)  # type: ignore[no-untyped-call]
        return
    model = dinoctl.load_backbone(place)
    assert model.config.img_size == 98
    assert_same(model(batch), wanted)


@pytest.mark.parametrize(("to", "fits"), [("torchscript", True), ("hf", False), ("timm", False)])
def test_a_norm_of_the_class_token(to: str, fits: bool, tmp_path: Path) -> None:
    config = ViTConfig.from_dict({**PLAIN, "cls_norm": True, "local_cls_norm": True})
    if fits:
        made(tmp_path, config, to)
        return
    with pytest.raises(UserError, match="has no model with cls_norm True; export to safetensors instead"):
        made(tmp_path, config, to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left behind"


@pytest.mark.parametrize("to", ["hf", "timm", "onnx", "torchscript"])
def test_rotary_positions_stay_with_dinoctl(to: str, tmp_path: Path) -> None:
    config = ViTConfig.from_dict({**PLAIN, "rope_base": 100.0})
    with pytest.raises(UserError, match=r"has no model with rope_base 100\.0; export to safetensors instead"):
        made(tmp_path, config, to)


@torch.no_grad()
def test_rotary_positions_at_another_size(tmp_path: Path) -> None:
    place, backbone, _ = made(
        tmp_path, ViTConfig.from_dict({**PLAIN, "rope_base": 100.0}), "safetensors", image_size=98
    )
    loaded = dinoctl.load_backbone(place)
    assert loaded.config.img_size == 98
    assert torch.equal(loaded(batch := images(1, 98, 70)), backbone(batch))


def test_a_width_that_transformers_can_not_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes whole mlp ratios; none gives a feed-forward width of 160 at width 64"):
        made(tmp_path, ViTConfig.from_dict({**PLAIN, "mlp_ratio": 2.5}), "hf")


def test_the_record_says_what_was_compared(tmp_path: Path) -> None:
    place, _, result = made(tmp_path, CONFIGS["swiglu"], "hf")
    record = json.loads((place / RECORD).read_text())
    assert record["format"] == "hf"
    assert record["source"] == str(tmp_path / "model")
    assert ViTConfig.from_dict(record["model"]) == CONFIGS["swiglu"]
    assert [(one["batch"], one["height"], one["width"]) for one in record["compared"]] == [
        (1, 64, 64), (1, 32, 48), (3, 32, 48),
    ]  # fmt: skip
    assert "transformers" in record["versions"]
    assert result.size == sum(path.stat().st_size for path in place.iterdir())
