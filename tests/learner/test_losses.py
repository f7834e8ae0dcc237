"""Each loss and its gradient agree with the formula written out in plain Python, token by token."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from msgspec import Struct
from msgspec.structs import replace

from learner.losses import (
    FAR,
    LOSSES,
    SUREST,
    Bounds,
    Terms,
    anchor_penalty,
    group_relative,
    importance_weights,
    leave_one_out,
    odds_of,
    push,
)

BOUNDS = Bounds(clip_low=0.2, clip_high=0.28, importance_cap=1.5, awr_temperature=0.7, beta=0.3)
DRIFT = 0.4
LENGTHS = (7, 3, 1, 5, 7, 2, 4, 6)
ADVANTAGES = (1.0, -1.0, 0.3, -2.0, 0.0, 3.0, -0.1, -3.0)

Row = Sequence[float]
Written = tuple[float, list[float]]
"""The loss of a sequence and its derivative by each of ``logp``."""


class _Answer(Struct, frozen=True):
    logp: Row
    prox: Row
    mu: Row
    anchor: Row
    advantage: float


def _answers(rng: random.Random) -> list[_Answer]:
    """Answers near and far from what drew them, so that every bound is met on either side."""
    found = []
    for length, advantage in zip(LENGTHS, ADVANTAGES, strict=True):
        logp = [-3.0 * rng.random() for _ in range(length)]
        prox, mu, anchor = ([p + rng.gauss(0.0, 0.4) for p in logp] for _ in range(3))
        found.append(_Answer(logp, prox, mu, anchor, advantage))
    return found


def _terms(answers: Sequence[_Answer]) -> Terms:
    width = max(len(answer.logp) for answer in answers)

    def padded(name: str) -> torch.Tensor:
        rows = [getattr(answer, name) for answer in answers]
        return torch.tensor(
            [[*row, *[-9.0] * (width - len(row))] for row in rows], dtype=torch.float64
        )

    return Terms(
        logp_bt=padded("logp").requires_grad_(),
        prox_bt=padded("prox"),
        mu_bt=padded("mu"),
        anchor_bt=padded("anchor"),
        advantage_b=torch.tensor([answer.advantage for answer in answers], dtype=torch.float64),
        mask_bt=torch.tensor([[at < len(a.logp) for at in range(width)] for a in answers]),
        drift=DRIFT,
    )


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _moved(answer: _Answer) -> float:
    return sum(answer.logp) - sum(answer.anchor)


def _clipped(ratio: float, a: float) -> tuple[float, float]:
    """−min(ratio·a, clip(ratio)·a), and its derivative by log ratio."""
    bounded = max(min(ratio, 1.0 + BOUNDS.clip_high), 1.0 - BOUNDS.clip_low)
    if ratio * a <= bounded * a:
        return -ratio * a, -ratio * a
    return -bounded * a, 0.0


def _ppo(answer: _Answer) -> Written:
    loss, gradient = 0.0, []
    for p, old, mu in zip(answer.logp, answer.prox, answer.mu, strict=True):
        weight = min(math.exp(old) / math.exp(mu), BOUNDS.importance_cap)
        value, slope = _clipped(math.exp(p) / math.exp(old), answer.advantage)
        loss += weight * value
        gradient.append(weight * slope)
    return loss, gradient


def _topr(answer: _Answer) -> Written:
    ratio = math.exp(sum(answer.logp)) / math.exp(sum(answer.mu))
    weight = 1.0 if answer.advantage >= 0 else min(ratio, 1.0)
    slope = -weight * answer.advantage
    return slope * sum(answer.logp), [slope] * len(answer.logp)


def _cispo(answer: _Answer) -> Written:
    gradient = [
        -min(math.exp(p) / math.exp(mu), BOUNDS.importance_cap) * answer.advantage
        for p, mu in zip(answer.logp, answer.mu, strict=True)
    ]
    return sum(g * p for g, p in zip(gradient, answer.logp, strict=True)), gradient


def _awr(answer: _Answer) -> Written:
    weight = min(math.exp(answer.advantage / BOUNDS.awr_temperature), 20.0)
    return -weight * sum(answer.logp), [-weight] * len(answer.logp)


def _likelihood(answer: _Answer) -> Written:
    said = min(math.exp(sum(answer.logp)), SUREST)
    weight = 1.0 if answer.advantage >= 0 else said / (1.0 - said)
    slope = -weight * answer.advantage
    return slope * sum(answer.logp), [slope] * len(answer.logp)


def _kto(answer: _Answer) -> Written:
    sign = math.copysign(1.0, answer.advantage) if answer.advantage else 0.0
    gain = _sigmoid(sign * BOUNDS.beta * (_moved(answer) - DRIFT))
    scale = 4.0 / BOUNDS.beta * abs(answer.advantage)
    slope = -scale * sign * BOUNDS.beta * gain * (1.0 - gain)
    return scale * (1.0 - gain), [slope] * len(answer.logp)


def _grpo(answer: _Answer) -> Written:
    return _ppo(replace(answer, mu=answer.prox))


def _rloo(answer: _Answer) -> Written:
    ratio = math.exp(sum(answer.logp)) / math.exp(sum(answer.prox))
    value, slope = _clipped(ratio, answer.advantage)
    return value, [slope] * len(answer.logp)


WRITTEN: dict[str, Callable[[_Answer], Written]] = {
    "ppo": _ppo,
    "topr": _topr,
    "cispo": _cispo,
    "awr": _awr,
    "likelihood": _likelihood,
    "kto": _kto,
    "grpo": _grpo,
    "rloo": _rloo,
}


def _gradient(terms: Terms, name: str) -> torch.Tensor:
    [gradient] = torch.autograd.grad(LOSSES[name](terms, BOUNDS).loss_b.sum(), terms.logp_bt)
    return gradient


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_loss_and_its_gradient_are_those_written_out(name: str, rng: random.Random) -> None:
    for _ in range(20):
        answers = _answers(rng)
        terms = _terms(answers)
        value = LOSSES[name](terms, BOUNDS)
        gradient = _gradient(terms, name)
        for place, answer in enumerate(answers):
            loss, slopes = WRITTEN[name](answer)
            found = float(value.loss_b[place].detach())
            assert found == pytest.approx(loss, rel=1e-9, abs=1e-12)
            zeros = [0.0] * (gradient.shape[1] - len(slopes))
            assert gradient[place].tolist() == pytest.approx([*slopes, *zeros], rel=1e-9, abs=1e-12)
            if answer.advantage:
                stopped = [slope == 0.0 for slope in slopes] + [False] * len(zeros)
                assert value.stopped_bt[place].tolist() == stopped
        assert not value.weight_bt.requires_grad


def test_dpo_and_its_gradient_are_those_written_out(rng: random.Random) -> None:
    answers = _answers(rng)
    terms = _terms(answers)
    value = LOSSES["dpo"](terms, BOUNDS)
    gradient = _gradient(terms, "dpo")

    half = len(answers) // 2
    for place in range(half):
        wanted, given = answers[place], answers[place + half]
        margin = BOUNDS.beta * (_moved(wanted) - _moved(given))
        slope = -BOUNDS.beta * (1.0 - _sigmoid(margin))
        assert float(value.loss_b[place].detach()) == pytest.approx(-math.log(_sigmoid(margin)))
        assert float(value.loss_b[place + half].detach()) == 0.0
        for row, answer, each in ((place, wanted, slope), (place + half, given, -slope)):
            zeros = [0.0] * (gradient.shape[1] - len(answer.logp))
            assert gradient[row].tolist() == pytest.approx([each] * len(answer.logp) + zeros)


def test_every_loss_is_written_out_here() -> None:
    assert LOSSES.keys() == {*WRITTEN, "dpo"}


def test_on_the_policys_own_answers_each_corrected_loss_is_reinforce_with_a_baseline(
    rng: random.Random,
) -> None:
    answers = [
        replace(a, prox=a.logp, mu=a.logp, anchor=a.logp, advantage=a.advantage or 1.0)
        for a in _answers(rng)
    ]
    terms = replace(_terms(answers), drift=0.0)
    reinforce = -terms.advantage_b[:, None] * terms.mask_bt

    for name in ("ppo", "topr", "cispo", "kto", "grpo", "rloo"):
        assert torch.allclose(_gradient(terms, name), reinforce), name


def test_what_has_fallen_far_is_pushed_no_further_where_the_loss_is_bounded() -> None:
    far = _Answer([-60.0], [-60.0], [-1.0], [-1.0], -1.0)
    terms = _terms([far])

    for name in ("topr", "cispo", "kto", "likelihood"):
        assert float(_gradient(terms, name).abs().max()) < 1e-6, name
    for name in ("ppo", "topr", "cispo", "awr", "kto", "likelihood"):
        for sign in (1.0, -1.0):
            wild = _terms([replace(far, mu=[-700.0], anchor=[-700.0], advantage=sign)])
            assert bool(LOSSES[name](wild, BOUNDS).loss_b.isfinite().all()), name
            assert bool(_gradient(wild, name).isfinite().all()), name


def test_a_sure_and_wrong_answer_is_pushed_where_a_policy_gradient_is_not() -> None:
    """By the logits: 1 - pi for the policy gradient, pi for the likelihood."""
    for sure in (0.1, 0.85, 0.998):
        logits_a = torch.tensor([sure, 1.0 - sure], dtype=torch.float64).log().requires_grad_()
        logp_bt = torch.log_softmax(logits_a, 0)[:1, None]
        same = logp_bt.detach()
        terms = Terms(
            logp_bt=logp_bt,
            prox_bt=same,
            mu_bt=same,
            anchor_bt=same,
            advantage_b=torch.tensor([-1.0], dtype=torch.float64),
            mask_bt=torch.ones((1, 1), dtype=torch.bool),
        )
        pushed = []
        for name in ("ppo", "likelihood"):
            loss = LOSSES[name](terms, BOUNDS).loss_b.sum()
            [slope_a] = torch.autograd.grad(loss, logits_a, retain_graph=True)
            pushed.append(float(slope_a[0]))
        assert pushed == pytest.approx([1.0 - sure, sure])


def test_terms_of_some_rows_give_the_losses_of_those_rows(rng: random.Random) -> None:
    terms = _terms(_answers(rng))
    rows = [6, 1, 4]

    for name in sorted(WRITTEN):
        whole = LOSSES[name](terms, BOUNDS)
        part = LOSSES[name](terms.rows(rows), BOUNDS)
        assert torch.equal(part.loss_b, whole.loss_b[rows]), name
        assert torch.equal(part.weight_bt, whole.weight_bt[rows]), name


def test_importance_weights_are_the_capped_ratio_and_carry_no_gradient(rng: random.Random) -> None:
    prox, mu = ([-3.0 * rng.random() for _ in range(9)] for _ in range(2))
    prox_bt = torch.tensor([prox], requires_grad=True)

    found = importance_weights(prox_bt, torch.tensor([mu]), 2.0)

    assert not found.requires_grad
    wanted = [min(math.exp(p) / math.exp(m), 2.0) for p, m in zip(prox, mu, strict=True)]
    assert found[0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_anchor_penalty_is_k3_zero_at_the_anchor_and_positive_elsewhere(
    rng: random.Random,
) -> None:
    logp, anchor = ([-3.0 * rng.random() for _ in range(9)] for _ in range(2))
    logp_bt = torch.tensor([logp], dtype=torch.float64, requires_grad=True)

    found = anchor_penalty(logp_bt, torch.tensor([anchor], dtype=torch.float64))

    ratios = [math.exp(a) / math.exp(p) for a, p in zip(anchor, logp, strict=True)]
    assert found[0].tolist() == pytest.approx([r - 1 - math.log(r) for r in ratios])
    assert float(found.detach().min()) >= 0.0
    [gradient] = torch.autograd.grad(found.sum(), logp_bt)
    assert gradient[0].tolist() == pytest.approx([1 - r for r in ratios])
    same = logp_bt.detach()
    assert float(anchor_penalty(same, same).abs().max()) == 0.0


@pytest.mark.parametrize("below", [0.5, FAR - 1e-6, FAR + 1e-6, 5.0, 80.0, 1e4])
def test_the_anchor_pulls_no_harder_from_far_below_it(below: float) -> None:
    """k3 up to there, its tangent beyond: what the policy has given up is not the whole step."""
    logp_bt = torch.tensor([[-below]], dtype=torch.float64, requires_grad=True)

    found = anchor_penalty(logp_bt, torch.zeros_like(logp_bt))
    (pull,) = torch.autograd.grad(found.sum(), logp_bt)

    near = min(below, FAR)
    tangent = math.expm1(near) * (below - near) + math.exp(near) - 1.0 - near
    assert found.item() == pytest.approx(tangent)
    assert -pull.item() == pytest.approx(math.expm1(near))


def test_group_advantages_are_those_written_out_and_nothing_for_equal_rewards() -> None:
    groups = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]]

    relative = group_relative(torch.tensor(groups, dtype=torch.float64))
    left_out = leave_one_out(torch.tensor(groups, dtype=torch.float64))

    for row, group in enumerate(groups):
        mean = sum(group) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        for place, r in enumerate(group):
            others = [group[other] for other in range(4) if other != place]
            assert float(relative[row, place]) == pytest.approx((r - mean) / (deviation + 1e-4))
            assert float(left_out[row, place]) == pytest.approx(r - sum(others) / 3)
    assert not relative[2].any()
    assert not left_out[2].any()


@pytest.mark.parametrize("name", ["ppo", "topr", "cispo", "awr", "likelihood"])
def test_a_push_is_the_derivative_of_the_loss_on_the_policy_s_own_answers(name: str) -> None:
    rng = random.Random(7)
    own = [replace(a, prox=a.logp, mu=a.logp, anchor=a.logp) for a in _answers(rng)]
    terms = _terms(own)

    LOSSES[name](terms, BOUNDS).loss_b.sum().backward()

    assert terms.logp_bt.grad is not None
    for answer, gradient_t in zip(own, terms.logp_bt.grad.tolist(), strict=True):
        pushed = push(name, BOUNDS, answer.advantage, odds_of(sum(answer.logp)))
        assert gradient_t[: len(answer.logp)] == pytest.approx([-pushed] * len(answer.logp))
