"""The shape of a backbone as a value."""

import pytest

from dinoctl.model import RELEASED, ViTConfig


def test_hidden_widths() -> None:
    for width, swiglu in ((384, 1024), (768, 2048), (1024, 2736), (1536, 4096)):
        shape = {"embed_dim": width, "depth": 1, "num_heads": width // 64, "patch_size": 14}
        assert ViTConfig(**shape).hidden_dim == 4 * width
        assert ViTConfig(**shape, ffn="swiglu").hidden_dim == swiglu


def test_dict_round_trip() -> None:
    for config in RELEASED.values():
        assert ViTConfig.from_dict(config.to_dict()) == config
    assert RELEASED["dinov2_vitg14"].grid == 37


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "not a multiple of num_heads 5"),
        ({"img_size": 225}, "img_size 225 is not a multiple of patch_size 14"),
        ({"depth": 0}, "depth is 0"),
        ({"drop_path": 1.0}, r"lies in \[0, 1\)"),
        ({"ffn": "identity"}, "'mlp' or 'swiglu'"),
        ({"mlp_ratio": float("nan")}, "positive number"),
        ({"registers": -1}, "negative"),
        ({"depht": 3}, r"unknown fields \['depht'\]"),
    ],
)
def test_values_that_no_network_can_have(changes: dict[str, object], message: str) -> None:
    values = {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 14}
    with pytest.raises(ValueError, match=message):
        ViTConfig.from_dict({**values, **changes})
    with pytest.raises(ValueError, match=r"missing fields \['embed_dim'\]"):
        ViTConfig.from_dict({key: value for key, value in values.items() if key != "embed_dim"})
