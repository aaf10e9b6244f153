"""One call opens a model wherever it lies; what is no model is told in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dinoctl
from dinoctl.data.storage import open_storage
from dinoctl.loading import open_source
from dinoctl.model import RELEASED, VisionTransformer, ViTConfig, save_export, to_huggingface
from dinoctl.model.huggingface import huggingface_config
from dinoctl.spec.errors import EnvironmentProblem, UserError
from support import golden

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=4, img_size=16)
REGISTERS = ViTConfig(
    embed_dim=64, depth=2, num_heads=2, patch_size=4, img_size=16, ffn="swiglu", registers=4,
    interpolate_antialias=True, interpolate_offset=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.set_num_threads(1)


def released(case: golden.Case) -> bool:
    """Whether shapes tell all of a case's config, as they do for released models."""
    net = case["net"]
    return bool(net["interpolate_antialias"]) == (net["num_register_tokens"] > 0)


@pytest.mark.parametrize("case", golden.cases("vit"), ids=golden.name_of)
@torch.no_grad()
def test_golden_numbers_from_a_file(case: golden.Case, tmp_path: Path) -> None:
    torch.save({"teacher": golden.tensors(golden.inputs.weights_of(case))}, tmp_path / "released.pth")
    config = None if released(case) else golden.vit_config(case["net"])
    model = dinoctl.load_backbone(tmp_path / "released.pth", config=config)
    assert not model.training
    images, mask = golden.inputs.vit(case)
    features = model.forward_features(torch.from_numpy(images), None if mask is None else torch.from_numpy(mask))
    names = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens")
    assert features.keys() == {*names, "x_prenorm", "masks"}
    wanted = golden.expected("vit", case["name"])
    for name, value in golden.inputs.vit_summary(*(features[key].double().numpy() for key in names)).items():
        golden.assert_close(value, wanted[name], name)
    patches, cls = model.get_intermediate_layers(
        torch.from_numpy(images), n=2, reshape=True, return_class_token=True, norm=True
    )[-1]
    golden.assert_close(cls, wanted["layer1_cls"])
    golden.assert_close(patches.mean((2, 3)), wanted["layer1_mean"])


def test_golden_cases_cover_what_shapes_tell() -> None:
    cases = golden.cases("vit")
    assert any(released(case) for case in cases)
    assert any(case["height"] != case["width"] for case in cases), "sides that differ"


def write(kind: str, directory: Path, config: ViTConfig) -> tuple[Path, VisionTransformer]:
    """A model in one of the forms that are read, and where it is."""
    model = VisionTransformer(config).eval()
    state = {name: torch.randn_like(value) * 0.1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    if kind in ("export", "job"):
        place = directory / "export" if kind == "job" else directory
        save_export(place, model, config, {}, {"mean": [0.5, 0.5, 0.5]})
    elif kind in ("huggingface", "sharded"):
        write_huggingface(directory, state, config, shards=kind == "sharded")
    elif kind == "safetensors":
        save_file(state, directory / "weights.safetensors")
        return directory / "weights.safetensors", model
    else:
        torch.save(state, directory / f"weights.{kind}")
        return directory / f"weights.{kind}", model
    return directory, model


def write_huggingface(directory: Path, state: dict[str, torch.Tensor], config: ViTConfig, *, shards: bool) -> None:
    tensors = {name: value.contiguous() for name, value in to_huggingface(state).items()}
    (directory / "config.json").write_text(json.dumps(huggingface_config(config)))
    if not shards:
        save_file(tensors, directory / "model.safetensors")
        return
    names = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: value for name, value in tensors.items() if names[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("config", [TINY, REGISTERS], ids=["mlp", "swiglu with registers"])
@pytest.mark.parametrize("kind", ["export", "job", "huggingface", "sharded", "safetensors", "pth", "pt"])
@torch.no_grad()
def test_every_form(kind: str, config: ViTConfig, tmp_path: Path) -> None:
    path, model = write(kind, tmp_path, config)
    # The heads' width is 64 unless something says otherwise, and nothing in a lone file does.
    known = config if kind in ("safetensors", "pth", "pt") and config is REGISTERS else None
    images = torch.randn(2, 3, 12, 20)
    for source in (str(path), path, path.as_uri()):
        loaded = dinoctl.load_backbone(source, config=known)
        assert torch.equal(loaded(images), model(images))
        assert not loaded.training
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    (patches,) = loaded.get_intermediate_layers(images, reshape=True)
    assert patches.shape == (2, 64, 3, 5)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt", "export"])
@torch.no_grad()
def test_a_model_does_not_live_in_its_file(kind: str, tmp_path: Path) -> None:
    """Who saves it where it came from, or cuts the file, keeps the model."""
    path, model = write(kind, tmp_path, TINY)
    loaded = dinoctl.load_backbone(path)
    for file in [path] if path.is_file() else list(path.rglob("*.safetensors")):
        file.write_bytes(b"")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))


@torch.no_grad()
def test_dtype_and_the_config_beside_a_file(tmp_path: Path) -> None:
    odd = ViTConfig(embed_dim=24, depth=1, num_heads=3, patch_size=4, img_size=16, interpolate_offset=0.0)
    _, model = write("export", tmp_path, odd)
    loaded = dinoctl.load_backbone(tmp_path / "backbone.safetensors", dtype=torch.bfloat16)
    assert loaded.config == odd
    images = torch.randn(1, 3, 16, 16)
    assert torch.allclose(loaded(images.bfloat16()).float(), model(images), atol=0.1)
    assert dinoctl.load_backbone(tmp_path).cls_token.dtype == torch.float32


@pytest.mark.parametrize("kind", ["export", "job", "sharded", "pth"])
@torch.no_grad()
def test_a_bucket(kind: str, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = write(kind, tmp_path, TINY)
    bucket, root = open_storage(f"{s3}/models"), path if path.is_dir() else path.parent
    for file in (file for file in root.rglob("*") if file.is_file()):
        bucket.write(str(file.relative_to(root)), file.read_bytes())
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    source = f"{s3}/models" if path.is_dir() else f"{s3}/models/{path.name}"
    loaded = dinoctl.load_backbone(source)
    assert list((tmp_path / "scratch").iterdir()) == [], "copies are gone"
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))
    for absent in (f"{s3}/nothing", f"{s3}/nothing.pth"):
        with pytest.raises(UserError, match=f"{absent}: nothing is there"):
            dinoctl.load_backbone(absent)
    garbage(tmp_path)
    bucket.write("w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"^{s3}/models/w.safetensors: not a safetensors file"):
        dinoctl.load_backbone(f"{s3}/models/w.safetensors")


def test_half_precision_files_become_fp32(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in VisionTransformer(TINY).state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    assert dinoctl.load_backbone(tmp_path / "half.pth")(torch.randn(1, 3, 16, 16)).dtype == torch.float32


def missing_keys(root: Path) -> Path:
    state = VisionTransformer(TINY).state_dict()
    del state["norm.weight"], state["blocks.1.attn.qkv.bias"]
    state["head.weight"] = torch.zeros(1)
    torch.save(state, root / "broken.pth")
    return root / "broken.pth"


def other_patch_size(root: Path) -> Path:
    save_export(root / "m", VisionTransformer(TINY), TINY, {}, {})
    path = root / "m" / "config.json"
    path.write_text(path.read_text().replace('"patch_size": 4', '"patch_size": 8'))
    return root / "m"


def other_patch_size_of_transformers(root: Path) -> Path:
    path, _ = write("huggingface", root, TINY)
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**document, "patch_size": 8}))
    return path


def other_activation(root: Path) -> Path:
    path, _ = write("huggingface", root, TINY)
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**document, "hidden_act": "relu"}))
    return path


def no_shard(root: Path) -> Path:
    path, _ = write("sharded", root, TINY)
    (path / "model-00002-of-00002.safetensors").unlink()
    return path


def no_weight_map(root: Path) -> Path:
    path, _ = write("sharded", root, TINY)
    (path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    return path


def of_another_kind(root: Path) -> Path:
    (root / "model.onnx").write_bytes(b"\x08\x07")
    return root / "model.onnx"


def no_backbone(root: Path) -> Path:
    torch.save({"conv1.weight": torch.zeros(2, 3, 7, 7)}, root / "resnet.pth")
    return root / "resnet.pth"


def garbage(root: Path) -> Path:
    (root / "w.safetensors").write_bytes(b"nothing of the kind")
    return root / "w.safetensors"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            missing_keys,
            "the checkpoint does not fit the VisionTransformer: 2 missing: blocks.1.attn.qkv.bias, norm.weight; "
            "1 unexpected: head.weight",
        ),
        (other_patch_size, "patch_embed.proj.weight (64, 3, 4, 4) instead of (64, 3, 8, 8)"),
        (other_patch_size_of_transformers, "config.json says patch_size 8, the weights have 4"),
        (other_activation, "config.json says hidden_act 'relu'; DINOv2 has hidden_act gelu"),
        (no_shard, "there is no model-00002-of-00002.safetensors beside config.json"),
        (no_weight_map, "model.safetensors.index.json has no weight_map of tensors' names to files"),
        (of_another_kind, "weights are read from .safetensors, .pth or .pt, not from '.onnx'"),
        (no_backbone, "not a flat DINOv2 backbone state: no cls_token, pos_embed, patch_embed.proj.weight"),
        (garbage, "not a safetensors file"),
        (lambda root: root / "absent.pth", "nothing is there"),
        (lambda root: root / "absent", "nothing is there"),
        (lambda root: root, "no model is there: a dinoctl export and a Hugging Face directory have a config.json"),
    ],
)
def test_what_is_no_model(make: Any, message: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        dinoctl.load_backbone(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(tmp_path)) == 1 or make is other_patch_size


@pytest.mark.parametrize("name", [*RELEASED, "facebook/dinov2-small", "vit_small_patch14_dinov2.lvd142m"])
def test_released_names_are_not_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="downloads no released models; fetch the weights yourself") as caught:
        dinoctl.load_backbone(name)
    if name in RELEASED:
        assert f"{name.replace('_reg', '_reg4')}_pretrain.pth" in str(caught.value)
    (tmp_path / name).mkdir(parents=True)
    write("huggingface", tmp_path / name, TINY)
    assert dinoctl.load_backbone(name).config == TINY, "a directory of that name is a directory"


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/m@champion: there is no MLflow registry here"):
        dinoctl.load_backbone("models:/m@champion")
    with pytest.raises(UserError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        dinoctl.load_backbone("models:/m", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(EnvironmentProblem, match="models:/m/1: MLflow at nonsense:// failed: "):
        dinoctl.load_backbone("models:/m/1", tracking_uri="nonsense://")


def test_metadata_comes_along(tmp_path: Path) -> None:
    path, _ = write("huggingface", tmp_path, TINY)
    (path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "size": 4}')
    assert open_source(str(path)).exported.metadata == {"mean": [0.1, 0.2, 0.3]}


def test_importing_dinoctl_imports_no_torch() -> None:
    probe = "import dinoctl, sys; assert 'torch' not in sys.modules; assert callable(dinoctl.load_backbone)"
    subprocess.run([sys.executable, "-c", probe], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_backbones'"):
        _ = dinoctl.load_backbones  # type: ignore[attr-defined]


def test_the_output_of_several_students(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write("export", tmp_path / "export" / name, TINY)
    with pytest.raises(UserError, match=r"several students \(a, b\): name one, \.\.\./export/a"):
        dinoctl.load_backbone(tmp_path)
    assert dinoctl.load_backbone(tmp_path / "export/a").config == TINY


@pytest.mark.parametrize(("module", "advice"), [("mlflow", "'dinoctl\\[train\\]'"), ("psycopg2", "psycopg2")])
def test_what_a_registry_lacks(module: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dinoctl.tracking import registry

    def fail(*_: str) -> None:
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr(registry, "resolve_model", fail)
    with pytest.raises(EnvironmentProblem, match=f"{module} is not installed; pip install {advice}$"):
        dinoctl.load_backbone("models:/m/1", tracking_uri="postgresql://nowhere/db")
