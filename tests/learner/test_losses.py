"""The loss terms agree with loops written out by hand."""

from __future__ import annotations

import math
import random

import pytest
import torch

from learner.losses import anchor_penalty, clipped_surrogate, importance_weights, is_clipped


def _logs(rng: random.Random, rows: int = 5, columns: int = 7) -> list[list[float]]:
    return [[-3.0 * rng.random() for _ in range(columns)] for _ in range(rows)]


def test_importance_weights_are_the_capped_ratio_and_carry_no_gradient(rng: random.Random) -> None:
    prox, mu = _logs(rng), _logs(rng)
    prox_bt = torch.tensor(prox, requires_grad=True)

    found = importance_weights(prox_bt, torch.tensor(mu), 2.0)

    assert not found.requires_grad
    for row, (ps, ms) in enumerate(zip(prox, mu, strict=True)):
        for column, (p, m) in enumerate(zip(ps, ms, strict=True)):
            wanted = min(math.exp(p) / math.exp(m), 2.0)
            assert float(found[row, column]) == pytest.approx(wanted, rel=1e-5)


def test_the_surrogate_is_the_clipped_one_written_out(rng: random.Random) -> None:
    logp, prox = _logs(rng), _logs(rng)
    advantage = [1.0, -1.0, 0.3, -2.0, 0.0]

    arguments = (torch.tensor(logp), torch.tensor(prox), torch.tensor(advantage), 0.2, 0.28)
    found, clipped = clipped_surrogate(*arguments), is_clipped(*arguments)

    for row, a in enumerate(advantage):
        for column in range(7):
            rho = math.exp(logp[row][column] - prox[row][column])
            bounded = max(min(rho, 1.28), 0.8)
            wanted = -min(rho * a, bounded * a)
            assert float(found[row, column]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)
            stopped = (a > 0 and rho > 1.28) or (a <= 0 and rho < 0.8)
            assert bool(clipped[row, column]) is stopped


def test_the_anchor_penalty_is_k3_zero_at_the_anchor_and_positive_elsewhere(
    rng: random.Random,
) -> None:
    logp, anchor = _logs(rng), _logs(rng)

    found = anchor_penalty(torch.tensor(logp), torch.tensor(anchor))

    for row, (ps, refs) in enumerate(zip(logp, anchor, strict=True)):
        for column, (p, ref) in enumerate(zip(ps, refs, strict=True)):
            ratio = math.exp(ref) / math.exp(p)
            wanted = ratio - 1 - math.log(ratio)
            assert float(found[row, column]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert float(found.min()) >= 0.0
    same = torch.tensor(logp)
    assert float(anchor_penalty(same, same).abs().max()) == 0.0


def test_on_policy_the_gradient_is_that_of_reinforce_with_a_baseline(rng: random.Random) -> None:
    logp_bt = torch.tensor(_logs(rng), requires_grad=True)
    same = logp_bt.detach()
    advantage_b = torch.tensor([1.0, -1.0, 0.3, -2.0, 0.5])

    weights = importance_weights(same, same, 2.0)
    (weights * clipped_surrogate(logp_bt, same, advantage_b, 0.2, 0.28)).sum().backward()

    assert logp_bt.grad is not None
    assert torch.allclose(logp_bt.grad, -advantage_b[:, None].expand(5, 7))


def test_what_the_clip_stops_has_no_gradient() -> None:
    prox_bt = torch.zeros(1, 2)
    logp_bt = torch.tensor([[0.5, -0.5]], requires_grad=True)

    clipped_surrogate(logp_bt, prox_bt, torch.tensor([1.0]), 0.2, 0.28).sum().backward()

    assert logp_bt.grad is not None
    assert float(logp_bt.grad[0, 0]) == 0.0  # already 1.28 times as likely: enough
    assert float(logp_bt.grad[0, 1]) < 0.0  # grown unlikely, though it was good: come back
