"""Opening what stages start from, and publishing what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoctl.data.local import LocalStorage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.model import ViTConfig, load_export, save_export
from dinoctl.spec.errors import UserError
from dinoctl.spec.job import JobSpec
from dinoctl.spec.model import ModelSpec, Rope
from dinoctl.spec.recipe import Head, Heads
from dinoctl.spec.sources import JobRef, ModelRef, UriRef
from dinoctl.stages import highres
from dinoctl.stages.distill import heads_like
from dinoctl.stages.models import OpenedModel, open_model, publish_export, vit_config
from dinoctl.training.engines.base import Slice
from dinoctl.training.learner import Learner
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
from dinoctl.training.networks import Network, build_network

HEADS = Heads(
    dino=Head(prototypes=12, hidden=16, bottleneck=8), ibot=Head(prototypes=10, hidden=16, bottleneck=8, layers=2)
)
MODEL = {"arch": "custom", "embedDim": 16, "depth": 2, "numHeads": 2, "patchSize": 4, "registers": 1}
CONFIG = ViTConfig(
    embed_dim=16, depth=2, num_heads=2, patch_size=4, img_size=16, registers=1, layerscale=1e-5,
    interpolate_antialias=True, interpolate_offset=0.0,
)  # fmt: skip


def network(seed: int = 0) -> Network:
    return build_network(CONFIG, HEADS, generator=torch.Generator().manual_seed(seed))


def parts(net: Network) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    assert net.ibot_head is not None
    heads = {"dino_head": net.dino_head.state_dict(), "ibot_head": net.ibot_head.state_dict()}
    return net.backbone.state_dict(), heads


def export(directory: Path, net: Network, *, heads: bool = True) -> Path:
    backbone, both = parts(net)
    save_export(directory, backbone, CONFIG, both if heads else {}, {"job": "parent"})
    return directory


def checkpoint(job: Path, net: Network, step: int = 5, *, without: str = "") -> None:
    """The student's weights, as the training of ``job`` commits them."""
    writer = LedgerWriter(Ledger(LocalStorage(job / CHECKPOINTS)), WriterIdentity(1, 0, 1, "s", "r", 0, {}), keep=2)
    names = {f"student.{name}": p.detach() for name, p in net.named_parameters() if name != without}
    writer.save(step, [Slice(name, "param", tuple(p.shape), 0, p.reshape(-1)) for name, p in names.items()])
    writer.wait()
    writer.close()


def opened(path: Path) -> OpenedModel:
    return open_model(UriRef(uri=str(path)), None)


def assert_same(found: Network, wanted: Network, *, but: tuple[str, ...] = ()) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - set(but):
        assert torch.equal(ours[name], theirs[name]), name


def test_an_export_and_a_job_with_an_export(tmp_path: Path) -> None:
    export(tmp_path / "export", network())
    for path, is_job in ((tmp_path, True), (tmp_path / "export", False)):
        found = opened(path)
        assert (found.job_storage is not None) == is_job
        assert found.exported.config == CONFIG
        assert found.exported.metadata == {"job": "parent"}
        assert_same(found.network(), network())
        assert not any(parameter.is_meta for parameter in found.network().parameters())


def no_directory(path: Path) -> None:
    pass


def empty_directory(path: Path) -> None:
    path.mkdir()


def no_weights(path: Path) -> None:
    export(path, network())
    (path / "backbone.safetensors").unlink()


def not_json(path: Path) -> None:
    export(path, network())
    (path / "config.json").write_text("{")


def of_another_program(path: Path) -> None:
    export(path, network())
    (path / "config.json").write_text('{"architectures": ["Dinov2Model"]}')


def of_transformers(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "vit"}')


def damaged(path: Path) -> None:
    export(path, network())
    document = json.loads((path / "config.json").read_text())
    del document["metadata"]
    (path / "config.json").write_text(json.dumps(document))


def half_a_file(path: Path) -> None:
    export(path, network())
    data = (path / "backbone.safetensors").read_bytes()
    (path / "backbone.safetensors").write_bytes(data[: len(data) // 2])


def other_shapes(path: Path) -> None:
    export(path, network())
    document = json.loads((path / "config.json").read_text())
    document["model"]["depth"] = 3
    (path / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_directory, "nothing is there"),
        (empty_directory, "no model is there: a dinoctl export and a Hugging Face directory have a config.json"),
        (no_weights, "is not an exported model: no backbone.safetensors"),
        (not_json, "Expecting property name"),
        (of_another_program, "format_version None, this version reads 1"),
        (of_transformers, "config.json is of a 'vit' model; dinoctl reads dinov2 and dinov2_with_registers"),
        (damaged, "config.json is damaged: 'metadata'"),
        (half_a_file, "(?i)deserializing header"),
        (other_shapes, "missing: blocks.2"),
    ],
)
def test_what_is_no_model_is_the_users_mistake(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "model"
    make(path)
    with pytest.raises(UserError, match=reason) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_references_that_lead_nowhere() -> None:
    with pytest.raises(UserError, match="job 'parent' is not pinned to its output; run it through its lifecycle"):
        open_model(JobRef(job="parent"), None)
    with pytest.raises(UserError, match="models:/m@champion: there is no MLflow registry here"):
        open_model(ModelRef(model="models:/m@champion"), None)


def test_a_model_without_heads_can_not_go_on(tmp_path: Path) -> None:
    found = opened(export(tmp_path / "bare", network(), heads=False))
    for use in (found.network, lambda: heads_like(found)):
        with pytest.raises(UserError, match="bare has no heads; name a model that dinoctl trained"):
            use()


def test_heads_that_do_not_fit_together_are_refused_with_their_keys(tmp_path: Path) -> None:
    found = opened(export(tmp_path / "parent", network()))
    bias = found.exported.heads["dino_head"].pop("mlp.2.bias")
    found.exported.heads["dino_head"]["odd"] = bias
    with pytest.raises(UserError, match=r"parent: dino_head .*1 missing: mlp.2.bias; 1 unexpected: odd"):
        found.blank()


def test_heads_like_the_teachers(tmp_path: Path) -> None:
    assert heads_like(opened(export(tmp_path / "teacher", network()))) == HEADS


def test_positions_are_enlarged_to_the_new_size(tmp_path: Path) -> None:
    found = opened(export(tmp_path / "export", network()))
    large = found.network(24, drop_path=0.1)
    assert large.backbone.config.img_size == 24
    assert large.backbone.config.drop_path == 0.1
    assert large.backbone.pos_embed.shape == (1, 1 + 6 * 6, 16)
    state = large.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network().state_dict().items() if "pos_e" not in name)
    image = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the small model resizes for itself
        wanted = network().backbone.eval()(image)
        torch.testing.assert_close(found.network(24).backbone.eval()(image), wanted, rtol=1e-5, atol=1e-6)
    assert found.network(16).backbone.pos_embed.shape == (1, 17, 16)


def test_rotary_positions_need_no_enlarging(tmp_path: Path) -> None:
    model = ModelSpec(arch="custom", embed_dim=16, depth=2, num_heads=2, patch_size=4, rope=Rope(), untie_norms="both")
    config = vit_config(model.resolved(drop_path=0.0), 16)
    assert (config.rope_base, config.rope_rescale, config.local_cls_norm, config.cls_norm) == (100.0, 2.0, True, True)
    net = build_network(config, HEADS, generator=torch.Generator().manual_seed(0))
    backbone, both = parts(net)
    save_export(tmp_path / "export", backbone, config, both, {"job": "parent"})
    large = opened(tmp_path / "export").network(24)
    assert large.backbone.config.img_size == 24
    state = large.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_student_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    export(tmp_path / "export", network(0))
    found = opened(tmp_path)
    assert_same(found.network(student=True), network(0))
    checkpoint(tmp_path, network(1), 5)
    checkpoint(tmp_path, network(2), 10)
    assert_same(found.network(student=True), network(2))
    assert_same(found.network(), network(0))
    assert_same(opened(tmp_path / "export").network(student=True), network(0))
    grown = found.network(24, student=True)
    assert grown.backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(grown.backbone.cls_token, network(2).backbone.cls_token)


def test_a_child_keeps_the_checkpoint_that_it_started_from(tmp_path: Path) -> None:
    """The parent goes on; an attempt of the child that comes later still starts from the same weights."""
    export(tmp_path / "export", network(0))
    checkpoint(tmp_path, network(1), 5)
    blank = opened(tmp_path).blank()
    first = dict(opened(tmp_path).tensors(blank, student=True, by="child"))
    checkpoint(tmp_path, network(2), 10)
    again = dict(opened(tmp_path).tensors(blank, student=True, by="child"))
    assert torch.equal(first["backbone.cls_token"], network(1).backbone.cls_token)
    assert torch.equal(again["backbone.cls_token"], network(1).backbone.cls_token)
    other = dict(opened(tmp_path).tensors(blank, student=True, by="another"))
    assert torch.equal(other["backbone.cls_token"], network(2).backbone.cls_token)
    assert Ledger(LocalStorage(tmp_path / CHECKPOINTS)).pinned() == {5, 10}


def test_a_distilled_parent_has_no_mask_token_in_its_checkpoint(tmp_path: Path) -> None:
    export(tmp_path / "export", network(0))
    checkpoint(tmp_path, network(1), without="backbone.mask_token")
    student = opened(tmp_path).network(student=True)
    assert_same(student, network(1), but=("backbone.mask_token",))
    assert torch.equal(student.backbone.mask_token, network(0).backbone.mask_token)


def test_highres_trains_the_parents_student_under_its_average(tmp_path: Path) -> None:
    export(tmp_path / "export", network(0))
    checkpoint(tmp_path, network(1))
    seen: list[Any] = []
    highres.run(attempt(tmp_path), None, lambda *arguments: seen.extend(arguments))  # type: ignore[arg-type]
    learner, size, tensors = seen[3:]
    assert isinstance(learner, Learner)
    assert size == 24
    learner.load_state_dict(dict(tensors), strict=True, assign=True)
    assert_same(learner.student, network(1), but=("backbone.pos_embed",))
    assert_same(learner.teacher, network(0), but=("backbone.pos_embed",))
    assert learner.ema is None
    for part, drop_path in ((learner.student, 0.2), (learner.teacher, 0.0)):
        assert part.backbone.pos_embed.shape == (1, 37, 16)
        assert part.backbone.config.drop_path == drop_path


def test_highres_of_another_model_than_the_documents(tmp_path: Path) -> None:
    export(tmp_path / "export", network(0))
    with pytest.raises(UserError, match=r"has depth 2, but highres\.model says 3"):
        highres.run(attempt(tmp_path, depth=3), None)  # type: ignore[arg-type]


def attempt(parent: Path, **model: Any) -> Attempt:
    stage = {
        "from": {"uri": str(parent)},
        "size": 24,
        "steps": 4,
        "globalBatch": 4,
        "model": {**MODEL, "dropPath": 0.2, **model},
        "data": {"source": "/data"},
        **{name: {} for name in ("crops", "masks", "heads", "losses", "optimizer", "schedules")},
    }
    spec = JobSpec.model_validate({"highres": stage}, by_alias=True, by_name=False)
    return Attempt("hr", spec, "hash", 1, str(parent / "out"), parent, parent / "spool")


def test_the_backbone_of_a_model_section() -> None:
    section = ModelSpec.model_validate({**MODEL, "ffn": "mlp"}, by_alias=True, by_name=False)
    config = vit_config(section, 32)
    assert (config.embed_dim, config.depth, config.img_size, config.registers) == (16, 2, 32, 1)
    with pytest.raises(ValueError, match="the model section is not resolved"):
        vit_config(section.model_copy(update={"depth": None}), 32)


def published(root: Path, seed: int, about: dict[str, object], card: str = "# card\n") -> str:
    return publish_export(LocalStorage(root), CONFIG, *parts(network(seed)), about, card)


def test_the_hash_of_an_export_is_that_of_its_content(tmp_path: Path) -> None:
    about: dict[str, object] = {"job": "a", "step": 3}
    first = published(tmp_path / "a", 0, about)
    assert len(first) == 64
    assert published(tmp_path / "b", 0, dict(reversed(about.items()))) == first
    assert published(tmp_path / "a", 0, about) == first, "again, after a crash before the proof"
    others = [
        published(tmp_path / "c", 1, about),
        published(tmp_path / "c", 0, {}),
        published(tmp_path / "c", 0, about, "x"),
    ]
    assert len({first, *others}) == 4
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md", "backbone.safetensors", "config.json", "heads.safetensors",
    ]  # fmt: skip
    assert load_export(tmp_path / "a").metadata == about
    assert_same(opened(tmp_path / "a").network(), network(0))


class Noting(LocalStorage):
    """Keeps the order of writes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def write(self, key: str, data: bytes) -> None:
        self.written.append(key)
        super().write(key, data)


def test_who_sees_the_config_sees_all(tmp_path: Path) -> None:
    storage = Noting(tmp_path)
    publish_export(storage, CONFIG, *parts(network()), {}, "card")
    assert storage.written == ["README.md", "backbone.safetensors", "heads.safetensors", "config.json"]


def test_a_pinned_checkpoint_that_turns_out_damaged_gives_way(tmp_path: Path) -> None:
    export(tmp_path / "export", network())
    checkpoint(tmp_path, network(2), step=100)
    found, ledger = opened(tmp_path), Ledger(LocalStorage(tmp_path / CHECKPOINTS))

    def student() -> Network:
        blank = found.blank()
        blank.load_state_dict(dict(found.tensors(blank, student=True, by="child")), assign=True)
        return blank

    assert_same(student(), network(2))
    checkpoint(tmp_path, network(3), step=110)
    assert_same(student(), network(2))
    for step, values in ((100, network(3)), (110, network())):  # the last: no checkpoint is left, the average is
        ledger.storage.write(f"step-{step:08d}/CORRUPT", b"")
        assert_same(student(), values)
