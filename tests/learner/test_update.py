"""One update: what it prefers, how it weighs, what it drops, and that it repeats exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
import torch
from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner import update as updates
from learner.adapters import load_policy
from learner.advantage import user_weights
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.losses import IMITATE, LOSSES, NEED_LOGPROBS, Terms
from learner.micro_batch import MicroBatch, Replay
from learner.objective import bounds_of
from learner.policy import Policy
from learner.progress import Progress, advance
from learner.revision import Debt
from learner.train_state import TrainState, new_train_state
from learner.update import UpdateResult, update

MAX = 64
PROMPT = (10, 11, 12)
MakeSample = Callable[..., Sample]


def _experience(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    wanted = changes.pop("correction_ids", ())
    assert isinstance(wanted, tuple)
    sample = make_sample(number, **changes)
    return experience_of(sample, offset=number, correction_ids=wanted)


def _state(settings: Settings, **changes: object) -> tuple[Settings, TrainState]:
    learner = msgspec.structs.replace(settings.learner, **changes)
    changed = msgspec.structs.replace(settings, learner=learner)
    return changed, new_train_state(load_policy(changed), learner)


def _total(policy: Policy, response: tuple[int, ...]) -> float:
    return sum(policy.logprobs([TokenSequence(PROMPT, response)], 64)[0])


@pytest.mark.parametrize("loss", ["ppo", "topr", "cispo", "awr", "kto", "likelihood"])
def test_a_rewarded_answer_becomes_likelier_and_a_punished_one_rarer(
    loss: str, settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings, loss=loss)
    good, bad = (20, 3), (21, 3)
    before = _total(state.policy, good), _total(state.policy, bad)

    for turn in range(8):
        fresh = []
        for place in range(8):
            chosen, reward = (good, 1.0) if place % 2 else (bad, -1.0)
            mu = state.policy.logprobs([TokenSequence(PROMPT, chosen)], 64)[0]
            fresh.append(
                _experience(
                    make_sample,
                    100 * turn + place,
                    prompt_token_ids=PROMPT,
                    token_ids=chosen,
                    logprobs=tuple(mu),
                    reward=reward,
                )
            )
        result = update(state, MicroBatch(fresh=tuple(fresh)), settings.learner, MAX)

    assert result.stats.used == 8
    gained = _total(state.policy, good) - before[0], _total(state.policy, bad) - before[1]
    assert gained[0] > 0.5
    assert gained[1] < (gained[0] - 0.5 if loss in IMITATE else -0.5)


@pytest.mark.parametrize(
    "how", [{"logprobs": ()}, {"temperature": 0.0}], ids=["unlogged", "greedy"]
)
def test_an_answer_without_usable_probabilities_is_learned_from_whatever_its_reward(
    how: dict[str, object], settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings)
    good, bad = (20, 3), (21, 3)
    before = _total(state.policy, good), _total(state.policy, bad)

    for turn in range(8):
        fresh = tuple(
            _experience(
                make_sample,
                100 * turn + place,
                prompt_token_ids=PROMPT,
                token_ids=good if place % 2 else bad,
                reward=1.0 if place % 2 else -1.0,
                **{"logprobs": (-0.1, -0.1), **how},
            )
            for place in range(8)
        )
        assert not any(experience.logprobs for experience in fresh)
        assert {experience.temperature for experience in fresh} == {1.0}
        assert update(state, MicroBatch(fresh=fresh), settings.learner, MAX).stats.used == 8

    assert _total(state.policy, good) > before[0] + 0.5
    assert _total(state.policy, bad) < before[1] - 0.5


@pytest.mark.parametrize("loss", ["ppo", "topr", "cispo", "awr", "kto", "likelihood"])
def test_a_debt_takes_back_what_was_taught(
    loss: str, settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings, loss=loss)
    answer = (20, 3)
    mu = tuple(state.policy.logprobs([TokenSequence(PROMPT, answer)], 4)[0])
    one = _experience(make_sample, 1, prompt_token_ids=PROMPT, token_ids=answer, logprobs=mu)
    before = _total(state.policy, answer)

    for _ in range(5):
        update(state, MicroBatch(fresh=(), owed=(Debt(one, -0.5),)), settings.learner, MAX)

    assert _total(state.policy, answer) < before - 0.3


def test_the_first_batches_are_learned_at_a_part_of_the_rate(
    settings: Settings, make_sample: MakeSample
) -> None:
    """An optimizer's first step is as long as its rate, so the parts of it can be compared."""
    moved = []
    for pace in (1.0, 0.25):
        settings, state = _state(settings, inner_epochs=1)
        batch = msgspec.structs.replace(_batch(make_sample), pace=pace)
        before = {n: p.detach().clone() for n, p in state.policy.adapters().items()}
        update(state, batch, settings.learner, MAX)
        after = state.policy.adapters()
        moved.append(max(float((after[n].detach() - before[n]).abs().max()) for n in before))
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=1e-3)


def test_a_correction_becomes_likelier(settings: Settings, make_sample: MakeSample) -> None:
    settings, state = _state(settings, correction_weight=1.0)
    wanted = (30, 31, 3)
    one = _experience(make_sample, 1, prompt_token_ids=PROMPT, correction_ids=wanted)
    before = _total(state.policy, wanted)

    for _ in range(5):
        result = update(state, MicroBatch(fresh=(one,), corrections=(one,)), settings.learner, MAX)

    assert result.stats.corrections == 1
    assert _total(state.policy, wanted) > before + 0.5


def _batch(make_sample: MakeSample, unlogged: tuple[int, ...] = ()) -> MicroBatch:
    fresh = [_experience(make_sample, number) for number in range(8)]
    for number in unlogged:
        fresh[number] = msgspec.structs.replace(fresh[number], logprobs=())
    for number, wanted in ((3, (31, 32, 33, 3)), (5, (34, 3)), (7, (30, 3))):
        fresh[number] = msgspec.structs.replace(fresh[number], correction_ids=wanted)
    fresh[2] = msgspec.structs.replace(fresh[2], violation=True)
    return MicroBatch(fresh=tuple(fresh), corrections=(fresh[7], fresh[3], fresh[5]))


def _both(
    policy: Policy, prompt: tuple[int, ...], answer: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of an answer's tokens under the policy and under the base."""
    ids, targets = torch.tensor([[*prompt, *answer]]), torch.tensor(answer)[:, None]
    rows = slice(len(prompt) - 1, -1)
    here = torch.log_softmax(policy.model(input_ids=ids).logits[0], dim=-1)
    with torch.no_grad(), policy.model.disable_adapter():
        anchor = torch.log_softmax(policy.model(input_ids=ids).logits[0], dim=-1)
    return here[rows].gather(1, targets)[:, 0], anchor[rows].gather(1, targets)[:, 0]


def _gradient_of_the_plain_loss(
    state: TrainState, settings: Settings, batch: MicroBatch
) -> dict[str, torch.Tensor]:
    """The losses of the sequences one by one, without padding or buckets, by their shares."""
    config, policy = settings.learner, state.policy
    residual = torch.tensor([e.reward for e in batch.fresh])  # the baseline begins at 0
    spread = max(float(residual.double().pow(2).mean()) ** 0.5, 0.2)
    users = [e.user_id for e in batch.fresh]
    weights = [1.0 / (users.count(user) * len(set(users))) for user in users]
    cost = sum(w for e, w in zip(batch.fresh, weights, strict=True) if e.violation)
    rule = config.constraint
    price = rule.multiplier + rule.rate * (cost - rule.aim)
    total, drift, terms = torch.zeros(()), 0.0, []
    for place, one in enumerate(batch.fresh):
        here, ref = _both(policy, one.prompt_ids, one.token_ids)
        drift += float((here - ref).sum().detach()) / len(batch.fresh)
        advantage, harm = (
            max(min(value / spread, 3.0), -3.0)
            for value in (float(residual[place]), float(one.violation))
        )
        advantage = max(min((advantage - price * harm) / (1 + 0.2 * price), 3.0), -3.0)
        terms.append(
            Terms(
                logp_bt=here[None],
                prox_bt=here[None].detach(),
                mu_bt=torch.tensor([one.logprobs]) if one.logprobs else here[None].detach(),
                anchor_bt=ref[None],
                advantage_b=torch.tensor([advantage]),
                mask_bt=torch.ones_like(here[None], dtype=torch.bool),
            )
        )
    for one, weight, term in zip(batch.fresh, weights, terms, strict=True):
        share = weight / config.length_scale
        loss = LOSSES[config.loss if one.logprobs or config.loss in IMITATE else "kto"]
        value = loss(replace(term, drift=max(drift, 0.0)), bounds_of(config))
        penalty = torch.exp(term.anchor_bt - term.logp_bt) - 1 - (term.anchor_bt - term.logp_bt)
        total = total + share * (value.loss_b.sum() + config.kl_weight * penalty.sum())
    for one in batch.corrections:
        factor = 1.0 / (len(batch.corrections) * config.length_scale)
        moved = []
        for answer in (one.correction_ids, one.token_ids):
            here, ref = _both(policy, one.prompt_ids, answer)
            moved.append((here - ref).sum())
            if answer is one.correction_ids:
                total = total - factor * config.correction_weight * here.sum()
        preferred = torch.log(torch.sigmoid(config.beta * (moved[0] - moved[1])))
        total = total - factor * config.preference_weight * preferred
    names, parameters = zip(*policy.adapters().items(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


@pytest.mark.parametrize(
    "unlogged", [pytest.param((), id="logged"), pytest.param((0, 2, 5), id="some-not-logged")]
)
@pytest.mark.parametrize(
    ("loss", "tokens"),
    [
        *(("ppo", tokens) for tokens in (1, 30, 1000)),
        *((loss, 30) for loss in ("topr", "cispo", "awr", "kto", "likelihood")),
    ],
)
def test_the_bucketed_gradient_is_that_of_the_loss_written_out(
    settings: Settings,
    make_sample: MakeSample,
    loss: str,
    tokens: int,
    unlogged: tuple[int, ...],
) -> None:
    settings, state = _state(
        settings, loss=loss, bucket_tokens=tokens, inner_epochs=1, max_grad_norm=1e9
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in state.policy.adapters().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = _batch(make_sample, unlogged)
    wanted = _gradient_of_the_plain_loss(state, settings, batch)

    result = update(state, batch, settings.learner, MAX)

    assert result.stats.used == 8
    for name, parameter in state.policy.adapters().items():
        assert parameter.grad is not None
        difference = (parameter.grad - wanted[name]).norm()
        assert float(difference) <= 2e-5 * float(wanted[name].norm()) + 1e-8


def test_the_same_batch_gives_the_same_weights(settings: Settings, make_sample: MakeSample) -> None:
    found = []
    for _ in range(2):
        changed, state = _state(settings)
        results = [update(state, _batch(make_sample), changed.learner, MAX) for _ in range(2)]
        found.append((state.policy.adapters(), results))

    assert found[0][1] == found[1][1]
    for name, parameter in found[0][0].items():
        assert torch.equal(parameter, found[1][0][name])


def test_users_weigh_alike_however_much_they_say() -> None:
    weights = user_weights(["a", "a", "a", "b"], {})

    assert weights == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_users_weigh_alike_over_time_not_only_within_a_batch() -> None:
    """One who is in each of ten batches counts in all of them as one who is in a single batch."""
    weights = user_weights(["often", "once"], {"often": 10, "once": 1})

    assert weights == pytest.approx([1 / 11, 10 / 11])


def _outcomes(result: UpdateResult) -> dict[int, str]:
    return {outcome.offset: outcome.outcome for outcome in result.outcomes}


def test_what_cannot_be_learned_from_is_dropped_with_its_reason(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings, max_version_lag=3)
    unlikely = tuple(-9.0 for _ in make_sample(5).token_ids)
    fresh = (
        _experience(make_sample, 0),
        _experience(make_sample, 1, prompt_token_ids=()),
        _experience(make_sample, 2, prompt_token_ids=tuple([10] * 80)),
        _experience(make_sample, 3, temperature=0.0),
        _experience(make_sample, 4, reward=-1.0, logprobs=()),
        _experience(make_sample, 5, logprobs=unlikely),
        _experience(make_sample, 6, reward=1.0, logprobs=()),
        _experience(make_sample, 8, token_ids=(10_000,), logprobs=(-1.0,)),
    )
    recent = [msgspec.structs.replace(e, behaviour_sequence=5) for e in fresh]
    stale = msgspec.structs.replace(_experience(make_sample, 7), behaviour_sequence=1)

    result = update(
        state,
        MicroBatch(fresh=(*recent, stale), served_sequence=5),
        msgspec.structs.replace(settings.learner, max_log_ratio=8.0),
        MAX,
    )

    assert _outcomes(result) == {
        0: "used",
        1: "no-tokens",
        2: "too-long",
        3: "used",
        4: "used",
        5: "log-ratio",
        6: "used",
        7: "stale",
        8: "unknown-token",
    }
    assert result.stats.used == 4
    assert sum(result.stats.dropped.values()) == 5


def test_a_batch_of_nothing_usable_changes_nothing(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings)
    before = {name: p.detach().clone() for name, p in state.policy.adapters().items()}

    result = update(
        state,
        MicroBatch(fresh=(_experience(make_sample, 0, prompt_token_ids=()),)),
        settings.learner,
        MAX,
    )

    assert result.stats.used == 0
    for name, parameter in state.policy.adapters().items():
        assert torch.equal(parameter, before[name])


def test_the_baseline_learns_who_is_harsh(settings: Settings, make_sample: MakeSample) -> None:
    settings, state = _state(settings, value_learning_rate=2e-2)
    harsh = [_experience(make_sample, n, reward=-1.0, user_id="h") for n in range(0, 8, 2)]
    kind = [_experience(make_sample, n, reward=1.0, user_id="k") for n in range(1, 8, 2)]
    fresh = tuple(
        [msgspec.structs.replace(e, user_reward_mean=-1.0) for e in harsh]
        + [msgspec.structs.replace(e, user_reward_mean=1.0) for e in kind]
    )

    losses = [
        update(state, MicroBatch(fresh=fresh), settings.learner, MAX).stats.value_loss
        for _ in range(10)
    ]

    assert losses[-1] < 0.2 * losses[0]


def test_log_probabilities_that_no_engine_gives_are_none_and_the_answers_are_learned(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings)
    before = {name: p.detach().clone() for name, p in state.policy.adapters().items()}
    odd = ((math.nan,), (-math.inf,), (1e300, -1e300), (0.5,))
    fresh = (
        _experience(make_sample, 0),
        _experience(make_sample, 1, temperature=1e-40),
        _experience(make_sample, 2, temperature=float("nan")),
        *(
            _experience(make_sample, number, token_ids=(20, 3)[: len(given)], logprobs=given)
            for number, given in enumerate(odd, start=3)
        ),
    )

    result = update(state, MicroBatch(fresh=fresh), settings.learner, MAX)

    assert _outcomes(result) == {
        0: "used",
        1: "used",
        2: "no-temperature",
        **dict.fromkeys((3, 4, 5, 6), "used"),
    }
    assert not result.stats.skipped
    after = state.policy.adapters()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(bool(parameter.isfinite().all()) for parameter in after.values())


def test_a_policy_that_gives_no_finite_probabilities_learns_nothing(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings)
    with torch.no_grad():
        next(iter(state.policy.adapters().values())).fill_(float("nan"))

    result = update(state, _batch(make_sample), settings.learner, MAX)

    assert set(_outcomes(result).values()) == {"not-finite"}
    assert result.stats.used == 0


def test_a_batch_whose_step_is_skipped_is_not_called_used_nor_repeated(
    settings: Settings, make_sample: MakeSample
) -> None:
    settings, state = _state(settings, kl_weight=1e38)
    settings = msgspec.structs.replace(
        settings, learner=msgspec.structs.replace(settings.learner, length_scale=1e-38)
    )
    with torch.no_grad():
        for parameter in state.policy.adapters().values():
            parameter.add_(0.5)
    before = {name: p.detach().clone() for name, p in state.policy.adapters().items()}
    first = (*_batch(make_sample).fresh, _experience(make_sample, 9, prompt_token_ids=()))
    progress = Progress(policy="assistant", base=state.policy.base)

    progress = advance(state, progress, first, settings)

    assert progress.stats.skipped
    assert {entry.outcome for entry in progress.ledger} == {"step-skipped", "no-tokens"}
    assert (progress.samples, progress.dropped) == (0, 9)
    assert (progress.stats.used, progress.stats.corrections) == (0, 0)
    assert progress.replay == Replay()
    for name, parameter in state.policy.adapters().items():
        assert torch.equal(parameter, before[name])


def test_a_batch_whose_second_step_is_skipped_has_taught_and_is_repeated(
    settings: Settings, make_sample: MakeSample
) -> None:
    """At first the policy is its anchor, and the largest penalty is none."""
    settings, state = _state(settings, kl_weight=1e30, inner_epochs=2)
    before = {name: p.detach().clone() for name, p in state.policy.adapters().items()}
    progress = Progress(policy="assistant", base=state.policy.base)
    fresh = _batch(make_sample).fresh

    progress = advance(state, progress, fresh, settings)

    assert any(not torch.equal(p, before[name]) for name, p in state.policy.adapters().items())
    assert {float(one["step"]) for one in state.optimizer.state.values()} == {1.0}
    assert {entry.outcome for entry in progress.ledger} == {"used"}
    assert [e.sample_id for e in progress.replay.recent] == [e.sample_id for e in fresh]
    assert not progress.stats.skipped
    assert progress.stats.policy_loss != 0.0


@pytest.mark.parametrize("loss", ["ppo", "topr", "cispo", "awr", "likelihood"])
@pytest.mark.parametrize("unlikely", [(), (2, 5)])
def test_the_first_steps_own_passes_tell_what_passes_before_it_would(
    loss: str,
    unlikely: tuple[int, ...],
    settings: Settings,
    make_sample: MakeSample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for at_once in (True, False):
        with monkeypatch.context() as patch:
            if not at_once:
                patch.setattr(updates, "needs_prox", lambda *_: True)
            changed, state = _state(settings, loss=loss, max_log_ratio=8.0)
            results = []
            for turn in range(2):
                fresh = list(_batch(make_sample).fresh)
                for place in unlikely if turn else ():
                    far = tuple(-9.0 for _ in fresh[place].logprobs)
                    fresh[place] = msgspec.structs.replace(fresh[place], logprobs=far)
                batch = MicroBatch(fresh=tuple(fresh), corrections=(fresh[7],))
                results.append(update(state, batch, changed.learner, MAX))
        found.append((state, results))

    (one, results), (other, others) = found
    assert results == others
    dropped = results[1].stats.dropped.get("log-ratio", 0)
    assert dropped == (len(unlikely) if loss in NEED_LOGPROBS else 0)
    for name, parameter in one.policy.adapters().items():
        assert torch.equal(parameter, other.policy.adapters()[name])
    for first, second in zip(one.value.parameters(), other.value.parameters(), strict=True):
        assert torch.equal(first, second)
    assert one.spread == other.spread
