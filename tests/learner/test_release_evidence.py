"""Judges train nothing and their answers become the evidence of the next version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from contracts.codec import to_json
from contracts.errors import ManifestError
from contracts.events import Sample
from contracts.evidence import EVIDENCE_NAME, ReleaseEvidence, read_evidence
from contracts.judges import is_judge
from contracts.manifest import verify
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.evaluation import release_evidence
from learner.experience import Experience, experience_of
from learner.first_decision import Decisions, decisions_of, probabilities, taken
from learner.ledger import JUDGE
from learner.policy import Policy
from learner.progress import Beside, Progress, advance, keep_judged, released
from learner.publish import publish
from learner.reward_model import RewardModel, load_reward_model
from learner.train_state import new_train_state
from learner.usable import unusable
from tests.learner.small_reward_model import small_reward_model

MakeSample = Callable[..., Sample]
NEAR = 1e-9


def _judged(policy: Policy, make_sample: MakeSample, count: int) -> tuple[Experience, ...]:
    """Answers of six judges with the log-probabilities that the untrained policy gives."""
    samples = [make_sample(n, user_id=f"judge-{n % 6}", max_tokens=12) for n in range(count)]
    drawn = [experience_of(sample, offset=n) for n, sample in enumerate(samples)]
    asked = [TokenSequence(e.prompt_ids, e.token_ids) for e in drawn]
    logged = policy.logprobs(asked, 64)
    return tuple(
        msgspec.structs.replace(e, logprobs=tuple(row), violation=n % 10 == 0)
        for n, (e, row) in enumerate(zip(drawn, logged, strict=True))
    )


def _move(policy: Policy) -> None:
    """Move the weights further in one fixed direction."""
    draw = torch.Generator().manual_seed(3)
    for name, parameter in policy.adapters().items():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)


@pytest.fixture
def policy(settings: Settings) -> Policy:
    return load_policy(settings)


@pytest.fixture
def progress(policy: Policy, make_sample: MakeSample) -> Progress:
    moment = make_sample(0).decided_at
    return Progress(
        policy="assistant",
        base=policy.base,
        as_of=moment,
        newest_feedback_time=moment,
        evaluation=_judged(policy, make_sample, 60),
    )


def test_samples_of_judges_are_in_the_ledger_as_judge_and_never_in_the_weights(
    settings: Settings, make_sample: MakeSample
) -> None:
    train, alone = (new_train_state(load_policy(settings), settings.learner) for _ in range(2))
    before = Progress(policy="assistant", base=train.policy.base)
    fresh = [experience_of(make_sample(n), offset=2 * n) for n in range(8)]
    judged = [
        experience_of(make_sample(50 + n, user_id="user-4"), offset=2 * n + 1) for n in range(3)
    ]
    after = advance(train, before, fresh, settings, Beside(judged=judged))
    without = advance(alone, before, fresh, settings)

    share = settings.policy.judge_share
    assert all(is_judge("assistant", e.user_id, share) for e in judged)
    assert not any(is_judge("assistant", e.user_id, share) for e in fresh)
    kept_out = {line.sample_id for line in after.ledger if line.outcome == JUDGE}
    assert kept_out == {e.sample_id for e in judged}
    assert [line.offset for line in after.ledger] == sorted(line.offset for line in after.ledger)
    assert (after.judged, after.dropped, after.evaluation) == (3, without.dropped, tuple(judged))
    assert kept_out <= set(after.seen)
    assert not kept_out & {e.sample_id for e in after.replay.recent}
    for mine, other in zip(
        train.policy.adapters().values(), alone.policy.adapters().values(), strict=True
    ):
        assert (mine == other).all()


def test_the_newest_judged_answers_are_kept_and_a_revision_takes_the_place_of_the_older(
    make_sample: MakeSample,
) -> None:
    first = [experience_of(make_sample(n), offset=n) for n in range(5)]
    revised = msgspec.structs.replace(first[1], sample_id="again", reward=-1.0)
    kept = keep_judged(first, [revised], limit=3)
    assert [e.sample_id for e in kept] == [first[3].sample_id, first[4].sample_id, "again"]


def test_one_who_judges_all_day_is_no_more_than_twice_an_equal_share_of_the_evidence(
    make_sample: MakeSample,
) -> None:
    users = ["busy" if n % 2 else f"judge-{n % 40}" for n in range(400)]
    judged = [experience_of(make_sample(n, user_id=u), offset=n) for n, u in enumerate(users)]
    kept = keep_judged([], judged, limit=210)
    counts = Counter(e.user_id for e in kept)
    assert len(counts) == 21
    assert counts["busy"] == 2 * 210 // 21
    assert [e.offset for e in kept] == sorted(e.offset for e in kept)
    newest = [e.offset for e in judged if e.user_id == "busy"][-20:]
    assert [e.offset for e in kept if e.user_id == "busy"] == newest


def test_a_policy_that_learned_nothing_is_estimated_as_what_the_log_earned(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    found = release_evidence(policy, progress, settings)
    assert (found.samples, found.users, found.versions) == (60, 6, {"base": 60})
    assert found.kl_to_parent == pytest.approx(0.0, abs=NEAR)
    assert found.logged_cost == pytest.approx(0.1)
    for level in found.levels.values():
        assert level.support.effective_samples == pytest.approx(60.0)
        assert level.support.mean_weight == pytest.approx(1.0)
        assert level.snips.value == pytest.approx(found.logged_reward)
        assert level.cost.value == pytest.approx(0.1)
        assert level.value_lower_bound <= level.ips.value
        assert level.cost.value < level.cost.upper <= level.cost_upper_bound
    assert found.as_of == max(e.decided_at for e in progress.evaluation)


def test_weights_that_moved_show_in_the_divergence_and_in_the_effective_sample_size(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    _move(policy)
    near = release_evidence(policy, progress, settings)
    _move(policy)
    far = release_evidence(policy, progress, settings)
    assert near.kl_to_parent is not None
    assert far.kl_to_parent is not None
    assert 0.0 < near.kl_to_parent < far.kl_to_parent
    sizes = [e.levels["answer"].support.effective_samples for e in (near, far)]
    assert 60.0 > sizes[0] > sizes[1]


def test_the_divergence_is_to_the_parent_that_was_released_and_the_weights_stay_as_they_are(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    _move(policy)
    first = release_evidence(policy, progress, settings)
    published = publish(settings, policy, progress, first)
    later = released(progress, published.version)
    again = release_evidence(policy, later, settings)
    assert (again.parent, again.sequence) == (published.version, 2)
    assert again.kl_to_parent == pytest.approx(0.0, abs=NEAR)
    before = {name: tensor.clone() for name, tensor in policy.adapters().items()}
    assert to_json(release_evidence(policy, later, settings)) == to_json(again)
    assert all((before[name] == now).all() for name, now in policy.adapters().items())

    (published.directory / "adapter_model.safetensors").unlink()
    assert release_evidence(policy, later, settings).kl_to_parent is None


def test_what_rose_is_told_until_it_serves_however_many_versions_were_made_of_it(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    """Against its parent alone, the version after one that was held would pass."""

    def rises(found: ReleaseEvidence) -> list[float]:
        return [figure.rise for figure in found.watch or () if figure.view == "step"]

    _move(policy)
    first = release_evidence(policy, progress, settings)
    assert max(map(abs, rises(first))) > 1e-3
    published = publish(settings, policy, progress, first)
    held = released(progress, published.version)
    assert rises(release_evidence(policy, held, settings)) == rises(first)
    serves = msgspec.structs.replace(held, served=(0,) * 16 + (1,) * 48)
    assert rises(release_evidence(policy, serves, settings)) == pytest.approx(
        [0.0] * len(rises(first)), abs=NEAR
    )
    canary = msgspec.structs.replace(held, served=(0,) * 32 + (1,) * 32)
    assert rises(release_evidence(policy, canary, settings)) == rises(first)
    (published.directory / "adapter_model.safetensors").unlink()
    gone = release_evidence(policy, serves, settings)
    assert not rises(gone)
    assert "the weights of the version in service were gone" in {f.reason for f in gone.unwatched}


def test_the_evidence_is_a_file_of_the_version_that_its_id_pins(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    evidence = release_evidence(policy, progress, settings)
    published = publish(settings, policy, progress, evidence)
    assert EVIDENCE_NAME in published.manifest.files
    assert read_evidence(published.directory) == evidence
    assert publish(settings, policy, progress, evidence).version == published.version

    path = published.directory / EVIDENCE_NAME
    path.write_bytes(path.read_bytes().replace(b'"samples": 60', b'"samples": 99'))
    with pytest.raises(ManifestError, match=EVIDENCE_NAME):
        verify(published.directory, published.version)
    path.write_bytes(b"{")
    with pytest.raises(ManifestError, match="no evidence"):
        read_evidence(published.directory)
    path.unlink()
    assert read_evidence(published.directory) is None


def test_too_few_answers_or_answers_without_probabilities_give_no_estimate(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    unlogged = [msgspec.structs.replace(e, logprobs=()) for e in progress.evaluation]
    greedy = [msgspec.structs.replace(e, temperature=0.0) for e in progress.evaluation]
    for evaluation in ((), tuple(unlogged), tuple(greedy), progress.evaluation[:5]):
        found = release_evidence(
            policy, msgspec.structs.replace(progress, evaluation=evaluation), settings
        )
        assert found.levels == {}
        assert found.samples == min(len(evaluation), 5) * (evaluation == progress.evaluation[:5])


@pytest.fixture
def reward_model(settings: Settings, make_sample: MakeSample, tmp_path: Path) -> RewardModel:
    directory = small_reward_model(settings, make_sample, tmp_path / "models")
    return load_reward_model(settings, directory)


def test_a_reward_model_stands_behind_the_doubly_robust_estimates_alone(
    settings: Settings, policy: Policy, progress: Progress, reward_model: RewardModel
) -> None:
    plain = release_evidence(policy, progress, settings)
    found = release_evidence(policy, progress, settings, reward_model)
    assert (plain.reward_model, found.reward_model) == ("", reward_model.version)
    for level, estimates in found.levels.items():
        before = plain.levels[level]
        assert estimates.doubly_robust != before.doubly_robust
        assert estimates.doubly_robust.value == pytest.approx(found.logged_reward, abs=0.1)
        assert (estimates.snips, estimates.cost) == (before.snips, before.cost)
    assert to_json(release_evidence(policy, progress, settings, reward_model)) == to_json(found)

    learner = msgspec.structs.replace(settings.learner, drawn_answers=0)
    unasked = msgspec.structs.replace(settings, learner=learner)
    nothing = release_evidence(policy, progress, unasked, reward_model)
    difference = nothing.levels["answer"].doubly_robust.value
    assert difference == pytest.approx(plain.levels["answer"].doubly_robust.value)


def test_the_first_decision_ends_where_an_answer_leaves_the_opening_of_a_call() -> None:
    decisions = Decisions(("answer", "search", "refuse"), (7, 8), (20, 21))
    assert _place_and_tokens(decisions, (7, 8, 21, 5)) == (2, 3)
    assert _place_and_tokens(decisions, (9, 8, 21)) == (0, 1)
    assert _place_and_tokens(decisions, (7, 9, 21)) == (0, 2)
    assert _place_and_tokens(decisions, (7, 8, 22, 1)) == (0, 3)
    assert _place_and_tokens(decisions, (7,)) == (0, 1)
    alone = Decisions(("answer",), (7, 8), ())
    assert _place_and_tokens(alone, (7, 8, 21)) == (0, 3)


def _place_and_tokens(decisions: Decisions, tokens: tuple[int, ...]) -> tuple[int, int]:
    found = taken(decisions, tokens)
    return found.place, found.tokens


def test_probabilities_of_first_decisions_are_those_of_their_tokens(
    policy: Policy, make_sample: MakeSample
) -> None:
    decisions = Decisions(("answer", "search", "refuse"), (10, 11), (20, 21))
    questions = [TokenSequence(make_sample(n).prompt_token_ids, (1,), 0.7) for n in range(5)]
    found = probabilities(policy, decisions, questions, 2)
    assert found.sum(axis=1) == pytest.approx(np.ones(5))
    for place, name_id in ((1, 20), (2, 21)):
        whole = [TokenSequence(q.prompt_ids, (10, 11, name_id), 0.7) for q in questions]
        wanted = np.exp([sum(row) for row in policy.logprobs(whole, 64)])
        assert found[:, place] == pytest.approx(wanted, rel=1e-5)


def test_an_answer_whose_prompt_leaves_no_room_for_a_call_is_left_out(
    settings: Settings, policy: Policy, progress: Progress
) -> None:
    """On a model of learned positions there is no place after such a prompt."""
    room, one = settings.engine.max_model_len, progress.evaluation[0]
    prompt = (one.prompt_ids * room)[: room - len(one.token_ids)]
    long = msgspec.structs.replace(one, prompt_ids=prompt, decision_id="long")
    assert unusable(long, room, policy.vocabulary_size) is None
    with_it = msgspec.structs.replace(progress, evaluation=(*progress.evaluation, long))
    found = release_evidence(policy, with_it, settings)
    assert found == release_evidence(policy, progress, settings)


def test_decisions_come_from_how_the_tokenizer_writes_calls(tiny_policy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    found = decisions_of(tokenizer, ["answer", "search", "refuse", "refuse"])
    assert found.names == ("answer", "refuse", "search")
    text = '<tool_call>{"name": "search", "arguments": {"order": "12"}}</tool_call>'
    ids = tokenizer.encode(text, add_special_tokens=False)
    where = taken(found, ids)
    assert found.names[where.place] == "search"
    assert "search" in tokenizer.decode(ids[: where.tokens])
    spoken = tokenizer.encode("Please wait for it.", add_special_tokens=False)
    assert taken(found, spoken).tokens == 1
    assert decisions_of(tokenizer, ["answer"]).names == ("answer",)
