"""The feature benchmark runs on both stores; what it last found meets what is promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import features
from benchmarks.features import FILE, table
from console.store_servers import INSTALL, missing_servers

OURS = ("ours, online", "ours, online and offline", "ours, with ages")


@pytest.fixture
def kept() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(FILE.read_bytes())
    return found


def test_a_short_run_measures_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "redis-server" in missing_servers():
        pytest.skip(f"redis-server not installed: {INSTALL}")
    out = tmp_path / "features.json"
    words = ["features", "--rounds", "1", "--rows", "40", "--batches", "20", "--reads", "4"]
    monkeypatch.setattr("sys.argv", [*words, "--history", "64", "--out", str(out)])
    assert features.main() == 0
    found = msgspec.json.decode(out.read_bytes())
    assert found["commit"]
    assert found["options"]["rows"] == "40"
    assert {len(ways) for ways in found["writes"].values()} == {5}
    assert {len(ways) for ways in found["reads"].values()} == {3}
    assert all(name in table(found) for name in OURS)


def test_redis_is_written_and_read_as_fast_as_promised(kept: dict[str, Any]) -> None:
    for where, ways in kept["writes"].items():
        ours, feast = (ways[name] for name in ("ours, online", "Feast, online_write_batch"))
        assert ours["cpu_ms"] < feast["cpu_ms"], where
    batch = kept["writes"]["redis, 500 rows"]
    for way in ("ours, online", "ours, online and offline"):
        assert batch[way]["rows"] / batch[way]["cpu_ms"] * 1000 >= 30_000
    assert kept["reads"]["redis"]["ours, with ages"]["cpu_ms"] <= 0.25


def test_a_write_costs_the_same_after_thousands(kept: dict[str, Any]) -> None:
    first, *_, last = kept["history"]
    assert last["writes"] >= 8 * first["writes"]
    assert last["cpu_ms"] < 1.5 * first["cpu_ms"]
    assert last["files"] < 100
