"""Released shapes, the forms in which checkpoints come, and the message when they do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinoctl.model import (
    RELEASED,
    ProjectionHead,
    VisionTransformer,
    ViTConfig,
    infer_config,
    load_strict,
    read_state_dict,
    to_official,
)
from support import golden

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=4, img_size=16)

# Width, depth and parameters without and with four registers, from the released files.
RELEASED_SIZES = {
    "s": (384, 12, 22_056_576, 22_058_112),
    "b": (768, 12, 86_580_480, 86_583_552),
    "l": (1024, 24, 304_368_640, 304_372_736),
    "g": (1536, 40, 1_136_480_768, 1_136_486_912),
}


def released_shapes(name: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Keys and shapes of a released file and its number of parameters, written down independently of the package."""
    size, registers = name[len("dinov2_vit")], name.endswith("_reg")
    d, depth, plain, with_registers = RELEASED_SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1370, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, 14, 14),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if registers:
        shapes["register_tokens"] = (1, 4, d)
    ffn = {"w12": (8192, d), "w3": (d, 4096)} if size == "g" else {"fc1": (4 * d, d), "fc2": (d, 4 * d)}
    linears = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), **{f"mlp.{key}": shape for key, shape in ffn.items()}}
    for i in range(depth):
        for vector in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{vector}"] = (d,)
        for linear, shape in linears.items():
            shapes[f"blocks.{i}.{linear}.weight"] = shape
            shapes[f"blocks.{i}.{linear}.bias"] = shape[:1]
    return shapes, with_registers if registers else plain


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_load_strictly(name: str) -> None:
    shapes, parameters = released_shapes(name)
    # On the meta device: keys and shapes are all that is compared, and the giant model would need 4.5 GB.
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with torch.device("meta"):
        model = VisionTransformer(RELEASED[name])
    load_strict(model, state, name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert infer_config(state) == RELEASED[name]


def test_released_small_model_runs_on_rule_made_weights() -> None:
    shapes, _ = released_shapes("dinov2_vits14_reg")
    state = golden.tensors(golden.weights.state_dict(shapes))
    with torch.device("meta"):
        model = VisionTransformer(RELEASED["dinov2_vits14_reg"])
    load_strict(model, state, "rule-made")
    assert model(torch.zeros(1, 3, 28, 42)).isfinite().all()
    assert all(parameter.requires_grad for parameter in model.parameters())


def chunked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"blocks.{k.split('.')[1]}.{k[7:]}" if k.startswith("blocks.") else k: v for k, v in state.items()}


@pytest.mark.parametrize("form", ["flat", "chunked", "teacher", "model", "module", "training"])
def test_forms_of_checkpoints(form: str) -> None:
    flat = VisionTransformer(TINY).state_dict()
    head = ProjectionHead(64, 8, 16, 4).state_dict()
    prefixed = {f"backbone.{k}": v for k, v in chunked(flat).items()} | {f"dino_head.{k}": v for k, v in head.items()}
    student = {f"student.{k}": torch.zeros_like(v) for k, v in prefixed.items()}
    forms = {
        "flat": flat,
        "chunked": chunked(flat),
        "teacher": {"teacher": prefixed},
        "model": {"model": flat, "iteration": 3},
        "module": {f"module.{k}": v for k, v in prefixed.items()},
        "training": {"model": student | {f"teacher.{k}": v for k, v in prefixed.items()}, "iteration": 3},
    }
    official = to_official(forms[form])
    assert official.backbone.keys() == flat.keys()
    assert all(torch.equal(official.backbone[key], flat[key]) for key in flat)
    if form in ("teacher", "module", "training"):
        assert list(official.heads) == ["dino_head"]
        assert official.heads["dino_head"].keys() == head.keys()
    else:
        assert not official.heads


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two tensors .* 'norm.weight'"):
        to_official({"norm.weight": torch.zeros(1), "backbone.norm.weight": torch.zeros(1)})


def test_message_lists_what_does_not_fit() -> None:
    model = VisionTransformer(TINY)
    before = model.norm.weight.clone()
    state = {key: value + 1 for key, value in model.state_dict().items()}
    for index in range(2):
        for name in ("weight", "bias"):
            del state[f"blocks.{index}.norm1.{name}"], state[f"blocks.{index}.attn.qkv.{name}"]
    state["fc.weight"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1, 50, 64)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_strict(model, state, "s3://bucket/model.pth")
    message = str(caught.value)
    assert message.startswith(
        "s3://bucket/model.pth does not fit the VisionTransformer: 8 missing: blocks.0.norm1.weight"
    )
    assert "..." in message
    assert "1 unexpected: fc.weight" in message
    assert "\n" not in message
    assert "1 of another shape: pos_embed (1, 50, 64) instead of (1, 17, 64)" in message
    assert torch.equal(model.norm.weight, before), "nothing is loaded unless all of it fits"


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
def test_files(tmp_path: Path, ending: str) -> None:
    state = VisionTransformer(TINY).state_dict()
    path = tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save({"teacher": state, "epoch": 1}, path)
    official = to_official(read_state_dict(path))
    assert official.backbone.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in official.backbone.items())


class NotATensor:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from the file ran",)


def test_files_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": NotATensor()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth: not readable as plain tensors"):
        read_state_dict(tmp_path / "code.pth")
    assert capsys.readouterr().out == ""
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not from '\.onnx'"):
        read_state_dict(tmp_path / "model.onnx")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_state_dict(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn": "swiglu"},
        {"ffn": "swiglu", "mlp_ratio": 3.0},
        {"mlp_ratio": 2.0, "layerscale": None},
        {"registers": 3, "interpolate_antialias": True, "interpolate_offset": 0.0},
        {"img_size": 28, "patch_size": 7, "depth": 11},
    ],
)
def test_config_from_shapes(changes: dict[str, object]) -> None:
    config = ViTConfig.from_dict({**TINY.to_dict(), **changes})
    state = VisionTransformer(config).state_dict()
    inferred = infer_config(state)
    assert inferred == config or (inferred.hidden_dim == config.hidden_dim and config.mlp_ratio != 4.0)
    load_strict(VisionTransformer(inferred), state, "itself")


def test_config_that_shapes_do_not_tell() -> None:
    state = VisionTransformer(ViTConfig(embed_dim=24, depth=1, num_heads=2, patch_size=4, img_size=8)).state_dict()
    with pytest.raises(ValueError, match="how many heads"):
        infer_config(state)
    assert infer_config(state, num_heads=2).num_heads == 2
    with pytest.raises(ValueError, match="not a flat DINOv2 backbone state"):
        infer_config({"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no blocks\.\*"):
        infer_config({key: value for key, value in state.items() if not key.startswith("blocks")})
