"""Tier, language and region choose the policy; each policy has a rollout of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.events import Candidate
from contracts.settings import Segment
from serving.api_keys import KeyEntry, Traits, make_key, write_keys
from serving.segments import known_best, policy_for
from tests.serving.rollout_states import canary_state
from tests.serving.scripted_gateway import ScriptedGateway

SEGMENTS = (
    Segment(policy="gold-de", tier="gold", language="de"),
    Segment(policy="german", language="de"),
    Segment(policy="gold", tier="gold"),
)


@pytest.mark.parametrize(
    ("traits", "policy"),
    [
        (Traits(), "assistant"),
        (Traits(language="de"), "german"),
        (Traits(tier="gold", language="de", region="eu"), "gold-de"),
        (Traits(tier="gold", language="fr"), "gold"),
        (Traits(tier="iron"), "assistant"),
    ],
)
def test_the_first_segment_that_fits_has_the_request(traits: Traits, policy: str) -> None:
    assert policy_for(SEGMENTS, "assistant", traits) == policy


def test_what_the_key_says_wins_over_the_request() -> None:
    asked = Traits(tier="gold", language="fr")
    assert known_best(None, asked) == asked
    assert known_best(Traits(tier="iron"), asked) == Traits(tier="iron", language="fr")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    key, hashed = make_key("shop")
    entry = KeyEntry(name="shop", sha256=hashed, requests_per_minute=6000, tier="gold")
    write_keys(tmp_path / "keys", {"shop": entry})
    made = ScriptedGateway(tmp_path, segments=SEGMENTS, api_keys_file=str(tmp_path / "keys"))
    made.client.headers["Authorization"] = f"Bearer {key}"
    idle = replace(canary_state(0.0), phase="idle", candidate=None, rollout_id=None)
    made.states = lambda policy: replace(
        idle, policy=policy, stable=Candidate(version=f"{policy}-3")
    )
    yield made
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_each_policy_serves_its_segment_with_its_own_stable_version(
    gateway: ScriptedGateway, stream: bool
) -> None:
    for metadata, policy in (
        ({"language": "de"}, "gold-de"),
        ({"tier": "iron", "language": "de"}, "gold-de"),
        ({"language": "fr"}, "gold"),
        (None, "gold"),
    ):
        assert (await gateway.ask(metadata=metadata, stream=stream)).status_code == 200
        decision = gateway.decisions()[-1]
        assert decision.assignment.policy == policy
        assert decision.assignment.policy_version == f"{policy}-3"
        assert decision.text == f"I am {policy}-3."


async def test_a_trait_that_is_no_text_is_a_400(gateway: ScriptedGateway) -> None:
    answer = await gateway.ask(metadata={"tier": 7})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata.tier")
