"""Indicators against values that follow from their definitions."""

import math

import pytest
import torch

from dinoctl.objective import agreement, effective_rank, spread_rows


def orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]


def test_the_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(orthogonal(16)) == pytest.approx(16.0, rel=1e-4)
    assert effective_rank(7.0 * orthogonal(16)[:5]) == pytest.approx(5.0, rel=1e-4)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == pytest.approx(math.exp(entropy))


def test_the_effective_rank_of_what_is_not_finite_is_no_number() -> None:
    rows = torch.ones(4, 3)
    rows[2, 1] = math.inf
    assert math.isnan(effective_rank(rows))
    assert effective_rank(torch.zeros(4, 3)) == 1.0
    assert effective_rank(orthogonal(4).bfloat16()) == pytest.approx(4.0, rel=1e-2)


def test_agreement_is_a_share_of_rows() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 8, 9]])
    targets = torch.tensor([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]])
    assert agreement(logits, targets) == 0.5
    assert agreement(logits[:0], targets[:0]) == 0


@pytest.mark.parametrize(("rows", "most"), [(0, 4), (3, 4), (4, 4), (5, 4), (9, 4), (1000, 256), (257, 256)])
def test_rows_are_taken_evenly(rows: int, most: int) -> None:
    taken = spread_rows(torch.arange(rows), most).tolist()
    assert len(taken) <= most
    assert taken == list(range(rows))[:: -(-rows // most) or 1]
    assert len(taken) >= min(rows, most / 2)
