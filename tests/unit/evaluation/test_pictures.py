import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinoctl.data.pack import pack
from dinoctl.data.storage import open_storage
from dinoctl.evaluation.pictures import component_colours, pca_picture
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.spec.policy import Gate, KnnSettings
from dinoctl.stages.measure import Normalisation
from dinoctl.stages.pictures import PCA_PICTURE, draw_pictures


def backbone(size: int = 16, patch: int = 4, dim: int = 12) -> VisionTransformer:
    config = ViTConfig(embed_dim=dim, depth=2, num_heads=3, patch_size=patch, img_size=size, registers=2)
    return VisionTransformer(config, generator=torch.Generator().manual_seed(0)).eval()


def images(n: int, size: int = 16) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return pixels.float() / 255 - 0.5, pixels


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_the_picture_shows_every_image_beside_its_patches() -> None:
    normalised, pixels = images(6)
    drawn = np.asarray(opened(pca_picture(backbone(), normalised, pixels)))
    assert drawn.shape == (2 * 96 + 14, 4 * (2 * 96 + 2) + 3 * 14, 4)
    assert (drawn[:96, :96, :3] == pixels[0].permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1)).all()
    assert (drawn[110:, 208:304, :3] == pixels[5].permute(1, 2, 0).numpy().repeat(6, 0).repeat(6, 1)).all()
    blocks = drawn[:96, 98:194, :3].reshape(4, 24, 4, 24, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # one colour a patch
    assert (drawn[:, 194:208, 3] == 0).all()  # nothing between the pairs
    assert (drawn[110:, 416:, 3] == 0).all()  # nor where images are missing


def test_the_same_images_give_the_same_bytes() -> None:
    first, second = (pca_picture(backbone(), *images(5)) for _ in range(2))
    assert first == second


def test_colours_tell_groups_of_patches_apart_across_images() -> None:
    kinds = torch.eye(8)[[0, 0, 1, 1, 2, 2, 3, 3]] * 5
    colours = component_colours(torch.stack([kinds, kinds.flip(0)]))
    assert colours.shape == (2, 8, 3)
    assert (colours[0] == colours[1].flip(0)).all()
    assert len({tuple(colour) for colour in colours[0].tolist()}) == 4


def test_components_come_in_order_of_variance_and_fill_their_channels() -> None:
    generator = torch.Generator().manual_seed(2)
    scales = torch.tensor([1.0, 30.0, 5.0, 0.1])
    tokens = torch.randn(4, 50, 4, generator=generator) * scales
    colours = component_colours(tokens).float()
    for channel, feature in enumerate((1, 2, 0)):
        pair = torch.stack([colours[..., channel].flatten(), tokens[..., feature].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.95  # positive: that is how the sign is chosen
    assert colours.amin(dim=(0, 1)).tolist() == [0, 0, 0]
    assert colours.amax(dim=(0, 1)).tolist() == [255, 255, 255]


def test_features_that_are_all_alike_are_grey() -> None:
    alike = torch.full((3, 4, 6), 0.3) + 1e-8 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3))
    assert component_colours(alike).unique().tolist() == [128]


def test_two_features_leave_the_third_channel_grey() -> None:
    tokens = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(4))
    assert component_colours(tokens)[..., 2].unique().tolist() == [128]


def test_features_that_are_not_finite_are_refused() -> None:
    tokens = torch.zeros(2, 4, 6)
    tokens[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        component_colours(tokens)


@pytest.mark.parametrize(("size", "patch", "cell"), [(16, 4, 96), (32, 4, 96), (224, 14, 224), (518, 14, 222)])
def test_tiny_images_are_enlarged_and_large_ones_reduced_to_whole_patches(size: int, patch: int, cell: int) -> None:
    drawn = opened(pca_picture(backbone(size, patch), *images(1, size)))
    assert drawn.size == (2 * cell + 2, cell)


def test_no_images_and_unequal_ones_are_refused() -> None:
    normalised, pixels = images(3)
    with pytest.raises(ValueError, match="both need the same n"):
        pca_picture(backbone(), normalised[:0], pixels[:0])
    with pytest.raises(ValueError, match="both need the same n"):
        pca_picture(backbone(), normalised, pixels[:2])


def test_a_drawing_that_fails_is_told_and_does_not_fail_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate(dataset=str(tmp_path / "nowhere"))
    attempt = SimpleNamespace(name="learn", spec=SimpleNamespace(gate=gate), storage=open_storage(str(tmp_path)))
    context = SimpleNamespace(device=torch.device("cpu"))
    draw_pictures(attempt, context, backbone(), Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("learn: no picture of the features was drawn: ")
    assert not attempt.storage.exists(PCA_PICTURE)


def test_a_job_without_a_gate_has_no_picture(tmp_path: Path) -> None:
    attempt = SimpleNamespace(spec=SimpleNamespace(gate=None), storage=open_storage(str(tmp_path)))
    draw_pictures(attempt, None, backbone(), Normalisation((0, 0, 0), (1, 1, 1)))  # type: ignore[arg-type]
    assert list(attempt.storage.list()) == []


def test_the_pictures_images_come_from_the_gates_test_split(tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / "raw" / str(i % 2) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (12 * i, 0, 0)).save(path)
    pack(str(tmp_path / "raw"), tmp_path / "data", splits={"val": 9})
    gate = Gate(dataset=str(tmp_path / "data"), knn=KnnSettings(image_size=16, resize=16))
    attempt = SimpleNamespace(
        name="learn", spec=SimpleNamespace(gate=gate), storage=open_storage(str(tmp_path / "job"))
    )
    context = SimpleNamespace(device=torch.device("cpu"))
    draw_pictures(attempt, context, backbone(), Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))  # type: ignore[arg-type]
    drawn = np.asarray(opened(attempt.storage.read(PCA_PICTURE)))
    centres = drawn[48::110, 48::208]
    assert int((centres[..., 3] > 0).sum()) == 9
    assert {int(red) // 12 for red in centres[centres[..., 3] > 0][:, 0]} <= set(range(20))
