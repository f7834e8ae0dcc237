"""The OpenFeature provider gives every user what the gateway gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from contracts.events import Rollout
from contracts.settings import Kafka, Segment, Settings
from contracts.topics import ROLLOUTS
from serving.flags import PolicyFlags
from serving.turn import FLAG
from tests.serving.rollout_states import canary_state
from tests.serving.scripted_gateway import ScriptedGateway
from tests.topic_log import publish
from tests.until import until

SEGMENTS = (Segment(policy="german", language="de"),)
GENERAL = canary_state(0.3, salt="one")
GERMAN = replace(canary_state(0.6, salt="two", stable="alt", canary="neu"), id="g", policy="german")
STATES = {"assistant": GENERAL, "german": GERMAN}


def context(user: str, language: str = "") -> EvaluationContext:
    return EvaluationContext(user, {"language": language, "tier": 7} if language else {})


@pytest.fixture
def settings(kafka: Kafka, state_dir: Path) -> Settings:
    return Settings(kafka=kafka, state_dir=state_dir, segments=SEGMENTS)


@pytest.fixture
def flags(settings: Settings) -> Iterator[OpenFeatureClient]:
    """A client of the provider, registered with the SDK under a domain of its own."""
    api.set_provider_and_wait(PolicyFlags(settings), domain="tests")
    yield api.get_client(domain="tests")
    api.clear_providers()


def follow(client: OpenFeatureClient, kafka: Kafka, *states: Rollout) -> None:
    """Publish states and wait until the provider has read them from the topic."""
    publish(kafka, ROLLOUTS, *states)
    for state in states:
        language = "de" if state.policy == "german" else ""

        def is_known(language: str = language) -> bool:
            details = client.get_string_details(FLAG, "none", context("u", language))
            return details.reason == Reason.SPLIT

        until(f"the rollout of {state.policy}", is_known)


async def test_the_provider_and_the_gateway_assign_every_user_alike(
    flags: OpenFeatureClient, kafka: Kafka, tmp_path: Path
) -> None:
    follow(flags, kafka, GENERAL, GERMAN)
    gateway = ScriptedGateway(tmp_path / "gateway", segments=SEGMENTS)
    gateway.states = STATES.__getitem__
    for number in range(60):
        for language in ("", "de"):
            user = f"user-{number}"
            await gateway.ask(user, metadata={"language": language})
            given = gateway.decisions()[-1].assignment
            found = flags.get_string_details(FLAG, "none", context(user, language))
            assert (found.value, found.variant) == (given.policy_version, given.arm)
            whole = flags.get_object_value(FLAG, {}, context(user, language))
            assert isinstance(whole, dict)
            assert whole["policy"] == given.policy
            assert whole["probability"] == given.probability
    arms = {(d.assignment.policy, d.assignment.arm) for d in gateway.decisions()}
    assert len(arms) == 4
    await gateway.close()


def test_the_reason_says_how_sure_it_is(
    flags: OpenFeatureClient, kafka: Kafka, settings: Settings
) -> None:
    until("the provider", lambda: flags.get_string_value(FLAG, "none", context("u")) == "base")
    first = flags.get_string_details(FLAG, "none", context("u"))
    assert (first.value, first.reason) == ("base", Reason.DEFAULT)
    follow(flags, kafka, GENERAL)
    publish(kafka, ROLLOUTS, replace(GENERAL, id="s2", epoch=2, phase="promoted", candidate=None))

    def reason() -> str | None:
        return flags.get_string_details(FLAG, "none", context("u")).reason

    until("the promotion", lambda: reason() == Reason.STATIC)
    api.clear_providers()  # the provider stops and leaves its cache
    away = replace(settings, kafka=replace(settings.kafka, bootstrap="127.0.0.1:1"))
    api.set_provider_and_wait(PolicyFlags(away), domain="tests")
    until("the provider to begin anew", lambda: reason() == Reason.STALE)
    assert flags.get_string_value(FLAG, "none", context("u")) == "old"


def test_what_cannot_be_resolved_gives_the_callers_default(flags: OpenFeatureClient) -> None:
    until("the provider", lambda: flags.get_string_value(FLAG, "none", context("u")) == "base")
    unknown = flags.get_string_details("another", "mine", context("u"))
    assert (unknown.value, unknown.error_code) == ("mine", ErrorCode.FLAG_NOT_FOUND)
    nobody = flags.get_string_details(FLAG, "mine", EvaluationContext())
    assert (nobody.value, nobody.error_code) == ("mine", ErrorCode.TARGETING_KEY_MISSING)
    wrong = flags.get_boolean_details(FLAG, True, context("u"))
    assert (wrong.value, wrong.error_code) == (True, ErrorCode.TYPE_MISMATCH)
    for details in (
        flags.get_integer_details(FLAG, 7, context("u")),
        flags.get_float_details(FLAG, 0.5, context("u")),
    ):
        assert details.error_code == ErrorCode.TYPE_MISMATCH
