"""The projection head against the official numbers."""

import pytest
import torch

from dinoctl.model import ProjectionHead, head_arguments, load_strict
from support import golden


@pytest.mark.parametrize("case", golden.cases("head"), ids=golden.name_of)
def test_golden(case: golden.Case) -> None:
    state = golden.tensors(golden.inputs.weights_of(case))
    head = ProjectionHead(
        case["in_dim"], case["prototypes"], case["hidden_dim"], case["bottleneck_dim"], case["layers"]
    )
    load_strict(head, state, case["name"])
    rows, gradient = (torch.from_numpy(array) for array in golden.inputs.head(case))
    rows.requires_grad_()
    logits = head(rows)
    logits.backward(gradient)
    wanted = golden.expected("head", case["name"])
    golden.assert_close(logits, wanted["logits"], "logits")
    golden.assert_close(rows.grad, wanted["grad_input"], "grad_input")
    parameters = dict(head.named_parameters())
    checked = [key for key in wanted if key.startswith("grad/")]
    assert len(checked) >= 4
    for key in checked:
        golden.assert_close(parameters[key.removeprefix("grad/")].grad, wanted[key], key)


def test_one_layer_is_a_plain_linear() -> None:
    head = ProjectionHead(6, 10, bottleneck_dim=4, layers=1)
    assert sorted(head.state_dict()) == ["last_layer.weight_g", "last_layer.weight_v", "mlp.bias", "mlp.weight"]
    assert head(torch.randn(3, 6)).shape == (3, 10)
    with pytest.raises(ValueError, match="at least 1 layer"):
        ProjectionHead(6, 10, layers=0)


def test_init() -> None:
    one, other = (ProjectionHead(32, 64, 128, 16, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    state = one.state_dict()
    assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())
    assert (state["last_layer.weight_g"] == 1).all()
    assert state["last_layer.weight_g"].shape == (64, 1)
    assert 0.2 < state["last_layer.weight_v"].abs().max() <= 0.25
    assert state["mlp.2.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not state["mlp.4.bias"].any()
    assert all(parameter.requires_grad for parameter in one.parameters())
    assert one(torch.randn(9, 32)).abs().max() <= 1 + 1e-6, "logits are g times a cosine"


def test_bf16_weights_are_normalised_in_fp32() -> None:
    head = ProjectionHead(32, 64, 128, 16).bfloat16()
    assert head(torch.randn(9, 32).bfloat16()).dtype == torch.bfloat16
    assert head(torch.zeros(2, 32).bfloat16()).isfinite().all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_arguments_from_a_state(layers: int) -> None:
    head = ProjectionHead(6, 10, hidden_dim=12, bottleneck_dim=4, layers=layers)
    arguments = head_arguments(head.state_dict())
    wanted = {"in_dim": 6, "prototypes": 10, "bottleneck_dim": 4, "layers": layers}
    assert arguments == (wanted if layers == 1 else {**wanted, "hidden_dim": 12})
    load_strict(ProjectionHead(**arguments), head.state_dict(), "itself")
    with pytest.raises(ValueError, match="not the state of a projection head"):
        head_arguments({"norm.weight": torch.zeros(1)})
