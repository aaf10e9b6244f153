import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoctl.evaluation import knn
from dinoctl.evaluation.knn import knn_accuracy, knn_votes
from support.golden import Case, cases, expected, inputs, name_of


def tensors(case: Case) -> list[Tensor]:
    return [torch.from_numpy(array) for array in inputs.knn(case)]


@pytest.mark.parametrize("case", cases("knn"), ids=name_of)
@pytest.mark.parametrize("block_bytes", [2**28, 7 * 4 * 600, 1])
def test_votes_are_those_of_the_official_code(case: Case, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_BLOCK_BYTES", block_bytes)
    train, labels, test, target = tensors(case)
    official = expected("knn", case["name"])
    votes = knn_votes(train, labels, test, case["ks"], case["temperature"], case["classes"])
    accuracy = knn_accuracy(train, labels, test, target, case["ks"], case["temperature"])
    for k in case["ks"]:
        np.testing.assert_allclose(votes[k].numpy(), official[f"votes{k}"], atol=1e-5)
        assert (votes[k].argmax(1).numpy() == official[f"predicted{k}"]).all()
        assert accuracy[f"top1@{k}"] == pytest.approx(float(official[f"accuracy{k}"]))


def blobs(classes: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(25 * classes) % classes
    return torch.eye(classes)[labels] + 0.05 * torch.randn(len(labels), classes, generator=generator), labels


def test_the_length_and_the_type_of_features_do_not_matter() -> None:
    features, labels = blobs()
    stretched = (features * torch.linspace(0.1, 9, len(features))[:, None]).double()
    one = knn_votes(features, labels, features, [5, 20])
    two = knn_votes(stretched, labels, stretched, [5, 20])
    for k in (5, 20):
        torch.testing.assert_close(one[k], two[k])
        assert two[k].dtype == torch.float32


def test_votes_of_the_largest_k_sum_to_one_and_smaller_ones_are_its_prefix() -> None:
    features, labels = blobs()
    votes = knn_votes(features, labels, features, [3, 20])
    torch.testing.assert_close(votes[20].sum(1), torch.ones(len(features)))
    assert bool((votes[3] <= votes[20] + 1e-6).all())


def test_the_best_k_is_reported_under_the_plain_names() -> None:
    # Three images of class 0 among five of class 1 at about the same cosine: one neighbour is right, eight are wrong.
    features = torch.tensor([[1.0, 0.0]] * 3 + [[1.0, 0.05]] * 5)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    measured = knn_accuracy(features, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), ks=[1, 8])
    assert measured["top1@1"] == measured["top1"] == measured["top5"] == 1.0
    assert measured["top1@8"] == 0.0
    assert measured["top5@8"] == 1.0  # two classes only
    assert measured["best_k"] == 1


def test_top5_counts_the_five_best_classes() -> None:
    features, labels = blobs(classes=8)
    measured = knn_accuracy(features, labels, features[:8].roll(1, 0), labels[:8], ks=[200])
    assert measured["top1"] == 0.0
    assert 0.0 < measured["top5"] < 1.0


def test_a_broken_feature_makes_every_accuracy_nan() -> None:
    features, labels = blobs()
    broken = features.clone()
    broken[3, 2] = math.nan
    for train, test in ((broken, features), (features, broken)):
        measured = knn_accuracy(train, labels, test, labels, ks=[10])
        assert all(math.isnan(measured[name]) for name in ("top1@10", "top5@10", "top1", "top5"))


@pytest.mark.parametrize(
    ("ks", "change", "message"),
    [
        ([201], {}, r"k must lie within 1 ... 200 \(the training images\), not \[201\]"),
        ([], {}, "k must lie within"),
        ([0], {}, "k must lie within"),
        ([1], {"classes": 7}, "training labels go from 0 to 7, not within 0 ... 6"),
        ([1], {"train_labels": torch.zeros(3, dtype=torch.long)}, "200 training features but 3 labels"),
        ([1], {"test_features": torch.zeros(200, 3)}, r"features must be \(images, dim\)"),
        ([1], {"test_labels": torch.zeros(3, dtype=torch.long)}, "200 test features but 3 test labels"),
    ],
)
def test_what_does_not_fit_is_a_value_error(ks: list[int], change: dict[str, object], message: str) -> None:
    features, labels = blobs()
    given = {"train_features": features, "train_labels": labels, "test_features": features, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        knn_accuracy(ks=ks, **(given | change))  # type: ignore[arg-type]
