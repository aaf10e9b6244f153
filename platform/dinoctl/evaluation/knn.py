"""k-nearest-neighbour classification of frozen features, the protocol of DINO and DINOv2 (dinov2/eval/knn.py).

Features are compared by cosine in fp32. The max(ks) nearest training images vote with softmax(cosine / temperature),
the softmax taken over all max(ks) of them; the votes for a smaller k are those of its first k, not normalised again
(the ranking is the same). Labels are 0 ... classes - 1. Queries are done in blocks, so that memory stays bounded
whatever the number of training images is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

PAPER_KS = (10, 20, 100, 200)
PAPER_TEMPERATURE = 0.07
_BLOCK_BYTES = 256 * 2**20  # of the cosines of one block of queries


def knn_votes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    ks: Sequence[int],
    temperature: float = PAPER_TEMPERATURE,
    classes: int | None = None,
) -> dict[int, Tensor]:
    """Votes of every class for every k: {k: (test, classes) fp32}.

    Features (train, dim) and (test, dim) of any float type, normalised here; labels (train,) integer. classes: by
    default the largest training label + 1. The work is done on the device of `train_features`. Raises ValueError for a
    k beyond the number of training images, for shapes that do not fit, and for labels outside the classes.
    """
    blocks = list(_blocks(train_features, train_labels, test_features, ks, temperature, classes))
    return {k: torch.cat([block[k] for block in blocks]) for k in ks}


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = PAPER_KS,
    temperature: float = PAPER_TEMPERATURE,
    classes: int | None = None,
) -> dict[str, float]:
    """Fractions in [0, 1]: `top1@k` and `top5@k` for every k; `top1`, `top5`, `best_k` of the k with the best top-1.

    With fewer than five classes top-5 is over all of them. A feature that is nan or infinite makes every accuracy nan:
    a model that broke has no accuracy, and a gate refuses nan. Raises as `knn_votes` does, and ValueError for no test
    images.
    """
    if len(test_labels) != len(test_features) or not len(test_labels):
        raise ValueError(f"{len(test_features)} test features but {len(test_labels)} test labels; both must be there")
    right = _right(train_features, train_labels, test_features, test_labels, ks, temperature, classes)
    sound = bool(train_features.isfinite().all() and test_features.isfinite().all())
    share = {name: count / len(test_labels) if sound else float("nan") for name, count in right.items()}
    best = max(ks, key=lambda k: right[f"top1@{k}"])
    return share | {"top1": share[f"top1@{best}"], "top5": share[f"top5@{best}"], "best_k": float(best)}


def _right(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    classes: int | None,
) -> dict[str, int]:
    """How many test images are right, by `top1@k` and `top5@k`."""
    right = {f"top{n}@{k}": 0 for k in ks for n in (1, 5)}
    done = 0
    for block in _blocks(train_features, train_labels, test_features, ks, temperature, classes):
        rows = len(block[ks[0]])
        target = test_labels[done : done + rows].to(train_features.device)
        done += rows
        for k, votes in block.items():
            hit = votes.topk(min(5, votes.shape[1]), dim=1).indices == target[:, None]
            right[f"top1@{k}"] += int(hit[:, 0].sum())
            right[f"top5@{k}"] += int(hit.sum())
    return right


def _blocks(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    ks: Sequence[int],
    temperature: float,
    classes: int | None,
) -> Iterator[dict[int, Tensor]]:
    """The votes of one block of queries after another."""
    _check(train_features, train_labels, test_features, ks)
    labels = train_labels.to(train_features.device).long()
    count = int(labels.max()) + 1 if classes is None else classes
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ValueError(
            f"training labels go from {int(labels.min())} to {int(labels.max())}, not within 0 ... {count - 1}"
        )
    train = functional.normalize(train_features.float(), dim=1)
    rows = max(1, _BLOCK_BYTES // (4 * len(train)))
    for block in torch.split(test_features, rows):
        yield _vote(train, labels, functional.normalize(block.to(train.device).float(), dim=1), ks, temperature, count)


def _vote(
    train: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float, classes: int
) -> dict[int, Tensor]:
    """Train (N, dim) and queries (Q, dim) normalised, labels (N,) -> {k: (Q, classes)}."""
    cosines, nearest = (queries @ train.T).topk(max(ks), dim=1)
    weights = (cosines / temperature).softmax(dim=1)
    votes = {}
    for k in ks:
        empty = weights.new_zeros(len(queries), classes)
        votes[k] = empty.scatter_add(1, labels[nearest[:, :k]], weights[:, :k])
    return votes


def _check(train_features: Tensor, train_labels: Tensor, test_features: Tensor, ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1 or max(ks) > len(train_features):
        raise ValueError(f"k must lie within 1 ... {len(train_features)} (the training images), not {list(ks)}")
    if len(train_labels) != len(train_features):
        raise ValueError(f"{len(train_features)} training features but {len(train_labels)} labels")
    if train_features.ndim != 2 or test_features.ndim != 2 or train_features.shape[1] != test_features.shape[1]:
        raise ValueError(f"features must be (images, dim): {tuple(train_features.shape)}, {tuple(test_features.shape)}")
