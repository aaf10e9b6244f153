"""``dinoctl export``: jobs and paths, what it prints, and every mistake in one line with its exit code."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import CONFIGS, save

from dinoctl.cli.main import main
from dinoctl.export import onnx
from dinoctl.export import run as running
from dinoctl.export.base import Extract
from dinoctl.export.run import RECORD, default_name
from dinoctl.export.verify import DifferentFeaturesError, compare, difference, images
from dinoctl.lifecycle import Output, Status
from dinoctl.local.state import StateDir
from dinoctl.model import VisionTransformer
from dinoctl.spec.errors import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DINOCTL_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def dinoctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dinoctl", "export", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def finished(root: Path, name: str) -> None:
    """A job of the state directory with its export."""
    job = StateDir(root).job(name)
    job.save_document({"spec": {"seed": 0, "pretrain": {}}, "parents": []})
    job.save_status(Status("hash", output=Output(5, "hash", 1)))
    save(Path(job.storage_uri(job.status)) / "export", CONFIGS["mlp"])


def test_a_job(tmp_path: Path, dinoctl: Any) -> None:
    finished(tmp_path / ".dinoctl", "tiny")
    code, out, err = dinoctl("tiny", "--to", "safetensors")
    assert code == 0
    assert out.splitlines()[0].startswith("wrote exports/tiny-safetensors (")
    assert "features equal in safetensors: largest difference for 1 x 56 x 56 px: 0.0e+00" in out
    assert out.splitlines()[-1] == 'load it: dinoctl.load_backbone("exports/tiny-safetensors")'
    assert "ViT of 2 blocks, width 64, patch 14, mlp" in err
    assert json.loads((tmp_path / "exports/tiny-safetensors" / RECORD).read_text())["format"] == "safetensors"


def test_a_file_without_verification(tmp_path: Path, dinoctl: Any) -> None:
    torch.save(VisionTransformer(replace(CONFIGS["mlp"], num_heads=1)).state_dict(), tmp_path / "released.pth")
    code, out, _ = dinoctl("released.pth", "--to", "timm", "--no-verify")
    assert code == 0
    assert out.startswith("wrote exports/released-timm (")
    assert "not compared with the model (--no-verify)" in out
    assert json.loads((tmp_path / "exports/released-timm" / RECORD).read_text())["compared"] == []


def test_what_is_there_is_replaced_only_when_told(tmp_path: Path, dinoctl: Any) -> None:
    save(tmp_path / "model", CONFIGS["mlp"])
    assert dinoctl("./model", "--to", "safetensors")[0] == 0
    code, _, err = dinoctl("./model", "--to", "safetensors")
    assert (code, "exports/model-safetensors is there already; give --force" in err) == (2, True)
    assert dinoctl("./model", "--to", "safetensors", "--force")[0] == 0
    (tmp_path / "precious").mkdir()
    code, _, err = dinoctl("./model", "--to", "safetensors", "--force", "--output", "precious")
    assert (code, "precious is not an export (it has no export.json)" in err) == (2, True)


def without_keys(root: Path) -> str:
    state = VisionTransformer(replace(CONFIGS["mlp"], num_heads=1)).state_dict()
    del state["norm.bias"]
    torch.save({**state, "fc.weight": torch.zeros(1)}, root / "odd.pth")
    return "odd.pth"


def good(root: Path) -> str:
    return f"./{save(root / 'model', CONFIGS['mlp']).name}"


def not_finished(root: Path) -> str:
    finished(root / ".dinoctl", "other")
    StateDir(root / ".dinoctl").job("other").save_status(Status("hash"))
    return "other"


def unknown_job(root: Path) -> str:
    finished(root / ".dinoctl", "tiny")
    return "tinny"


def several(root: Path) -> str:
    """A job of two students of unequal widths."""
    job = StateDir(root / ".dinoctl").job("both")
    job.save_document({"spec": {"seed": 0, "distill": {"students": {"small": {}, "wide": {}}}}, "parents": []})
    job.save_status(Status("hash", output=Output(5, "hash", 1)))
    output = Path(job.storage_uri(job.status))
    save(output / "export/small", CONFIGS["mlp"])
    save(output / "export/wide", CONFIGS["antialias"])
    return "both"


def of_one_model(root: Path) -> str:
    finished(root / ".dinoctl", "tiny")
    return "tiny"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (without_keys, [], "odd.pth: the checkpoint does not fit the VisionTransformer: 1 missing: norm.bias; 1 unexp"),
        (good, ["--image-size", "60"], "image size 60 is not a multiple of the patch size 14 of ./model; nearest: 56"),
        (good, ["--image-size", "0"], "image size 0 is not a multiple of the patch size 14"),
        (good, ["--opset", "18"], "--opset is for --to onnx, not for --to safetensors"),
        (not_finished, [], "job other has no model yet; see dinoctl status other"),
        (unknown_job, [], "tinny: neither a path nor a job in"),
        (
            lambda root: several(root),
            [],
            "job both distils several students; give --student small (there are small,",
        ),
        (several, ["--student", "big"], "job both has no student 'big'; give --student small"),
        (of_one_model, ["--student", "small"], "job tiny has one model; leave --student out"),
        (good, ["--student", "small"], "of a path name the student's own, .../export/small"),
        (good, ["--output", "s3://b/x"], "--output s3://b/x: exports are written to a directory; copy it afterwards"),
        (good, ["--output", "file://other/x"], "--output file://other/x: exports are written to a directory"),
        (good, ["--to", "onnx", "--opset", "0"], "--opset 0: the ONNX export writes opsets 18 to "),
        (good, ["--to", "onnx", "--opset", "17"], "--opset 17: the ONNX export writes opsets 18 to "),
        (good, ["--to", "onnx", "--opset", "99"], "--opset 99: the ONNX export writes opsets 18 to "),
        (lambda _: "dinov2_vits14", [], "dinoctl downloads no released models"),
        (lambda _: "nowhere/model.pth", [], "nowhere/model.pth: nothing is there"),
        (lambda _: "models:/vit@champion", [], "models:/vit@champion: there is no MLflow registry here"),
    ],
)
def test_mistakes(make: Any, options: list[str], message: str, tmp_path: Path, dinoctl: Any) -> None:
    source = make(tmp_path)
    code, out, err = dinoctl(source, "--to", "safetensors", *options)
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "exports").exists() or not list((tmp_path / "exports").iterdir())


def test_an_unknown_format(tmp_path: Path, dinoctl: Any) -> None:
    code, _, err = dinoctl(good(tmp_path), "--to", "keras")
    assert code == 2
    assert "torchscript" in err


def test_a_library_that_is_not_installed(tmp_path: Path, dinoctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = ("timm", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in hidden else real(name, *more))
    code, _, err = dinoctl(good(tmp_path), "--to", "timm")
    assert code == 3
    assert err == "error: --to timm needs timm, not installed here; pip install 'dinoctl[train,export]'\n"
    assert dinoctl("./model", "--to", "timm", "--no-verify")[0] == 0, "writing needs no timm"


def test_other_features_are_not_kept(tmp_path: Path, dinoctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    form = running._FORMATS["safetensors"]

    def off(directory: Path) -> Extract:
        extract = form.read(directory)
        return lambda images: (extract(images)[0] * 1.001, extract(images)[1])

    monkeypatch.setitem(running._FORMATS, "safetensors", replace(form, read=off))
    code, out, err = dinoctl(good(tmp_path), "--to", "safetensors")
    assert code == 1
    assert "features differ by more than 1e-04 of their largest value (1 x 56 x 56 px: " in err
    assert out == ""
    assert list((tmp_path / "exports").iterdir()) == []
    nan = replace(form, read=lambda _: lambda images: (torch.full((len(images), 64), torch.nan), torch.zeros(1)))
    monkeypatch.setitem(running._FORMATS, "safetensors", nan)
    assert dinoctl("./model", "--to", "safetensors")[0] == 1


def test_names_of_directories() -> None:
    assert default_name("models:/vit@champion") == "vit-champion"
    assert default_name("models:/vit/3") == "vit-3"
    assert default_name("s3://bucket/jobs/vit/run-0001/export/") == "run-0001"
    assert default_name("weights/dinov2_vits14_pretrain.pth") == "dinov2_vits14_pretrain"
    assert default_name(".") == "model"


def test_one_of_several_students(tmp_path: Path, dinoctl: Any) -> None:
    several(tmp_path)
    assert dinoctl("both", "--to", "safetensors", "--student", "wide")[0] == 0
    config = json.loads((tmp_path / "exports/both-wide-safetensors/config.json").read_text())
    assert config["model"]["embed_dim"] == 88


@pytest.mark.parametrize("output", ["{}/my place", "file://{}/my%20place"])
def test_where_it_is_written(output: str, tmp_path: Path, dinoctl: Any) -> None:
    place = output.format(tmp_path)
    assert dinoctl(good(tmp_path), "--to", "safetensors", "--no-verify", "--output", place)[0] == 0
    assert (tmp_path / "my place" / RECORD).is_file()


def test_a_collapsed_address_is_refused_too() -> None:
    with pytest.raises(UserError, match="--output s3:/bucket/vit: exports are written to a directory"):
        running.export(running.Request("model", "safetensors", output=Path("s3://bucket/vit")), print)


def test_what_a_link_names_is_replaced(tmp_path: Path, dinoctl: Any) -> None:
    good(tmp_path)
    call = ("./model", "--to", "safetensors", "--output", "link", "--force")
    assert dinoctl("./model", "--to", "safetensors", "--output", "real")[0] == 0
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "older").touch()
    code, _, err = dinoctl(*call)
    assert (code, "Traceback" in err) == (0, False)
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "real" / "older").exists()
    assert (tmp_path / "real" / RECORD).is_file()


def test_an_opset_that_the_exporter_did_not_write(
    tmp_path: Path, dinoctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    monkeypatch.setattr(onnx, "written_opset", lambda _: 18)
    code, _, err = dinoctl(good(tmp_path), "--to", "onnx", "--opset", "19", "--no-verify")
    assert code == 2
    assert "writes ONNX opset 18, not 19" in err.splitlines()[-1]


def test_a_file_that_onnxruntime_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    monkeypatch.setattr(onnx, "written_opset", lambda _: 28)
    with pytest.raises(DifferentFeaturesError, match=r"onnxruntime .* can't load opset 28, nothing") as said:
        onnx.FORMAT.read(tmp_path)
    assert "\n" not in str(said.value)


def with_final_norm(root: Path, value: float) -> str:
    """A model whose features all have one value."""
    state = VisionTransformer(replace(CONFIGS["mlp"], num_heads=1)).state_dict()
    state |= {"norm.weight": torch.zeros(64), "norm.bias": torch.full((64,), value)}
    torch.save(state, root / "flat.pth")
    return "flat.pth"


def test_features_that_are_not_finite_or_all_zero(tmp_path: Path, dinoctl: Any) -> None:
    code, _, err = dinoctl(with_final_norm(tmp_path, torch.nan), "--to", "safetensors")
    assert (code, "flat.pth: the model's own features are not finite" in err) == (2, True)
    code, out, _ = dinoctl(with_final_norm(tmp_path, 0.0), "--to", "safetensors")
    assert (code, "0.0e+00" in out) == (0, True)


def test_a_difference_of_patches_alone_that_is_not_a_number() -> None:
    model = VisionTransformer(CONFIGS["mlp"]).eval()
    batch = images(1, 56, 56)

    def off(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = model.forward_features(given)
        return features["x_norm_clstoken"], features["x_norm_patchtokens"] * torch.nan

    with pytest.raises(DifferentFeaturesError, match="nan"):
        compare(model, off, [(1, 56, 56)])
    assert math.isnan(difference(model, off, batch).relative)
