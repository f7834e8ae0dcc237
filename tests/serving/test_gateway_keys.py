"""API keys: who is let in, how often, how much at once, and who learns the name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from console.local_broker import free_port
from console.main import main
from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.heartbeat import heartbeat_path
from contracts.settings import Gateway, Kafka
from serving.api_keys import KeyEntry, entry_of, key_hash, line_of, make_key, read_keys, write_keys
from serving.key_door import KeyDoor, check_openness
from serving.wire_errors import Refusal
from tests.serving.http_server import Server
from tests.serving.scripted_gateway import ScriptedGateway
from tests.until import until

Open = Callable[..., tuple[ScriptedGateway, dict[str, str]]]


def entry(name: str, key: str, **limits: Any) -> KeyEntry:
    return KeyEntry(name=name, sha256=key_hash(key), **{"requests_per_minute": 6000, **limits})


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Open a gateway with one key, and return the header that holds it."""
    made: list[ScriptedGateway] = []

    def make(**limits: Any) -> tuple[ScriptedGateway, dict[str, str]]:
        path = tmp_path / "keys"
        key, _ = make_key("shop")
        write_keys(path, {"shop": entry("shop", key, **limits)})
        made.append(ScriptedGateway(tmp_path, api_keys_file=str(path)))
        return made[-1], {"Authorization": f"Bearer {key}"}

    yield make
    for one in made:
        await one.close()


async def test_the_decision_and_its_audit_record_name_the_key_and_never_hold_it(
    opened: Open,
) -> None:
    gateway, header = opened()
    assert (await gateway.ask("u", header)).status_code == 200
    [decision], [record] = gateway.decisions(), gateway.audit()
    assert decision.key == record.detail["key"] == "shop"
    secret = header["Authorization"].rpartition("-")[2]
    written = [
        item.record.value.decode() for item in gateway.running.outbox.pending(9) if item.record
    ]
    assert not any(
        secret in text or key_hash(header["Authorization"][7:]) in text for text in written
    )


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer none",
        "Bearer hr-shop-" + "0" * 64,
        "Bearer hr-else-1",
        "Basic x",
    ],
)
async def test_without_a_valid_key_every_route_of_the_api_is_a_401(
    opened: Open, authorization: str | None
) -> None:
    gateway, _ = opened()
    header = {} if authorization is None else {"Authorization": authorization}
    answers = [
        await gateway.ask("u", header),
        await gateway.client.post("/v1/feedback", json={}, headers=header),
        await gateway.client.get("/v1/models", headers=header),
    ]
    for answer in answers:
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert gateway.decisions() == []
    assert (await gateway.client.get("/healthz")).status_code == 200


async def test_a_key_has_its_own_rate_and_tells_when_to_come_back(opened: Open) -> None:
    gateway, header = opened(requests_per_minute=12)
    answers = [await gateway.ask("u", header) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] in ("4", "5")
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


async def test_a_key_has_its_own_bound_on_requests_at_once(opened: Open) -> None:
    gateway, header = opened(concurrent=2)
    gateway.engine.faults = {"base": "hang"}
    short = {**header, "X-Headrace-Timeout-Seconds": "0.3"}
    answers = await asyncio.gather(*(gateway.ask("u", short) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]


async def test_a_key_has_its_own_bound_on_the_size_of_a_body(opened: Open) -> None:
    gateway, header = opened(max_body=400)
    assert (await gateway.ask("u", header)).status_code == 200
    assert (
        await gateway.ask("u", header, tools=[], seed=1, metadata={"x": "y" * 400})
    ).status_code == 413
    feedback = {"kind": "report", "reason": "y" * 400}
    answer = await gateway.client.post("/v1/feedback", json=feedback, headers=header)
    assert answer.status_code == 413


def test_a_bucket_fills_with_time_up_to_ten_seconds_worth(
    tmp_path: Path, clock: ManualClock
) -> None:
    write_keys(tmp_path / "keys", {"shop": entry("shop", "k", requests_per_minute=60)})
    door = KeyDoor(Gateway(api_keys_file=str(tmp_path / "keys")), clock)
    caller = read_keys(tmp_path / "keys")["shop"]

    def ask() -> bool:
        try:
            with door.admitted(caller, "chat"):
                return True
        except Refusal:
            return False

    assert [ask() for _ in range(11)] == [True] * 10 + [False]
    clock.advance(2.0)
    assert [ask() for _ in range(3)] == [True, True, False]
    clock.advance(1000.0)
    assert [ask() for _ in range(11)] == [True] * 10 + [False]


def test_a_changed_file_is_taken_in_and_a_broken_one_is_not(
    tmp_path: Path, clock: ManualClock
) -> None:
    path = tmp_path / "keys"
    key, _ = make_key("first")
    write_keys(path, {"first": entry("first", key)})
    door = KeyDoor(Gateway(api_keys_file=str(path)), clock)
    assert door.identify(f"Bearer {key}") is not None
    broken = tmp_path / "broken"
    broken.write_text("nonsense")
    broken.replace(path)
    door.refresh()
    assert "nonsense" in door.note
    assert door.identify(f"Bearer {key}") is not None
    write_keys(path, {"second": entry("second", "k")})
    door.refresh()
    assert door.note == ""
    with pytest.raises(Refusal):
        door.identify(f"Bearer {key}")


def test_a_removed_key_is_refused_although_no_heartbeat_can_be_written(
    start_gateway: Callable[..., Server], tmp_path: Path
) -> None:
    keys, state_dir = tmp_path / "keys", tmp_path / "state"
    key, _ = make_key("shop")
    write_keys(keys, {"shop": entry("shop", key)})
    broker, engine = Kafka(bootstrap=f"127.0.0.1:{free_port()}"), "http://127.0.0.1:1"
    gateway = start_gateway(broker, engine, state_dir=state_dir, api_keys_file=str(keys))
    beats = heartbeat_path(state_dir, "gateway")
    until("a heartbeat", beats.exists)
    beats.parent.rename(tmp_path / "away")
    beats.parent.open("x").close()  # a file: no folder can be made there again
    until("a beat in vain", lambda: "cannot write the heartbeat" in gateway.log())
    assert gateway.request("GET", "/v1/models", key=key)[0].status == 200
    write_keys(keys, {})
    until("a 401", lambda: gateway.request("GET", "/v1/models", key=key)[0].status == 401)


def test_a_key_is_found_by_its_name_and_fits_only_whole() -> None:
    key, hashed = make_key("a-b.c")
    keys = {"a-b.c": KeyEntry(name="a-b.c", sha256=hashed, requests_per_minute=1)}
    assert entry_of(keys, key) is keys["a-b.c"]
    for wrong in (key[:-1], key + "0", key.replace("a-b.c", "a"), hashed, ""):
        assert entry_of(keys, wrong) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("shop:abc:10", "NAME:SHA256:REQUESTS_PER_MINUTE"),
        (f"shop:{'0' * 64}:0", "requests_per_minute"),
        (f"shop:{'0' * 64}:9 colour=red", "colour"),
        (f"shop:{'0' * 64}:9 max_body=much", "max_body"),
        (f"shop:{'0' * 64}:9\nshop:{'0' * 64}:9", ":2: 'shop' is there twice"),
    ],
)
def test_a_line_that_is_no_key_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "keys").write_text(line)
    with pytest.raises(SettingsError, match=f"(?s)keys.*{says}"):
        read_keys(tmp_path / "keys")


def test_what_is_written_is_read_again_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    entries = {
        "a": entry("a", "k", max_body=9, concurrent=2, tier="gold", language="de", region="eu"),
        "b": entry("b", "l"),
    }
    write_keys(tmp_path / "keys", entries)
    assert read_keys(tmp_path / "keys") == entries
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert line_of(entries["b"]).count(" ") == 0


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),  # noqa: S104 - compared, not bound
        ({"host": "desk.example"}, False),
        ({"host": "10.0.0.1", "open": True}, True),
        ({"host": "10.0.0.1", "api_keys_file": "keys"}, True),
    ],
)
def test_a_gateway_that_others_can_reach_asks_for_keys_or_does_not_start(
    values: dict[str, Any], allowed: bool
) -> None:
    settings = Gateway(**values)
    if allowed:
        check_openness(settings)
    else:
        with pytest.raises(SettingsError, match="headrace keys add"):
            check_openness(settings)


def test_the_command_shows_a_key_once_and_keeps_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "keys"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_GATEWAY__API_KEYS_FILE", str(path))
    runner = CliRunner()
    added = runner.invoke(main, ["keys", "add", "shop", "--tier", "gold", "--concurrent", "3"])
    assert added.exit_code == 0, added.output
    key = added.stdout.strip()
    assert key not in path.read_text()
    assert entry_of(read_keys(path), key) is not None
    listed = runner.invoke(main, ["keys", "list"]).output
    assert "shop" in listed
    assert "gold" in listed
    assert key_hash(key) not in listed
    assert runner.invoke(main, ["keys", "add", "shop"]).exit_code == 2
    assert runner.invoke(main, ["keys", "remove", "shop"]).exit_code == 0
    assert read_keys(path) == {}


def test_without_a_file_in_the_settings_the_command_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["keys", "add", "shop"])
    assert result.exit_code == 2
    assert "gateway.api_keys_file is empty" in result.output
