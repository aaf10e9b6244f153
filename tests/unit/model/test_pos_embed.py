"""The position table at other image sizes, against the official numbers."""

import pytest
import torch

from dinoctl.model import VisionTransformer, ViTConfig, interpolate_pos_embed, resize_pos_embed
from support import golden


@pytest.mark.parametrize("case", golden.cases("pos_embed"), ids=golden.name_of)
def test_golden(case: golden.Case) -> None:
    config = golden.vit_config(case["net"])
    table = golden.tensors(golden.inputs.weights_of(case))["pos_embed"]
    wanted = golden.expected("pos_embed", case["name"])
    assert len(wanted) == len(case["sizes"])
    for height, width in case["sizes"]:
        rows, columns = height // config.patch_size, width // config.patch_size
        result = interpolate_pos_embed(
            table, rows, columns, antialias=config.interpolate_antialias, offset=config.interpolate_offset
        )
        golden.assert_close(result, wanted[f"{height}x{width}"], f"{height}x{width}")


def test_skipped_only_for_a_square_image_with_a_matching_count() -> None:
    table = torch.randn(1, 17, 8)
    assert interpolate_pos_embed(table, 4, 4, antialias=False, offset=0.1) is table
    same_count = interpolate_pos_embed(table, 2, 8, antialias=False, offset=0.1)
    assert same_count.shape == table.shape
    assert not torch.allclose(same_count, table)
    assert torch.equal(same_count[:, 0], table[:, 0])


def test_computed_in_fp32_and_differentiable() -> None:
    table = torch.randn(1, 17, 8, requires_grad=True)
    result = interpolate_pos_embed(table.bfloat16(), 3, 2, antialias=True, offset=0.0)
    exact = interpolate_pos_embed(table.bfloat16().float(), 3, 2, antialias=True, offset=0.0)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, exact.bfloat16())
    result.float().sum().backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_table_that_is_not_square() -> None:
    with pytest.raises(ValueError, match="15 patches is not a square"):
        interpolate_pos_embed(torch.zeros(1, 16, 4), 2, 2, antialias=False, offset=0.0)


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (True, 0.0)])
@torch.no_grad()
def test_enlarged_table_gives_the_same_features_at_its_size(antialias: bool, offset: float) -> None:
    settings = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "registers": 1}
    config = ViTConfig(
        **settings, img_size=16, interpolate_antialias=antialias, interpolate_offset=offset, layerscale=1.0
    )
    small = VisionTransformer(config).eval()
    state = resize_pos_embed(small.state_dict(), 7, config)
    large = VisionTransformer(ViTConfig(**{**config.to_dict(), "img_size": 28})).eval()
    large.load_state_dict(state)
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(small(images), large(images))
    assert small.state_dict()["pos_embed"].shape == (1, 17, 32)
    with pytest.raises(ValueError, match="new_grid"):
        resize_pos_embed(state, 0, config)
