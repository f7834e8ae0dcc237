"""Redis and PostgreSQL of one's own: they start, keep apart, end; what is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis
from sqlalchemy import create_engine, text

from console import store_servers
from console.doctor import doctor_text, examine
from console.store_servers import INSTALL, missing_servers, postgres_server, redis_server
from contracts.errors import UnavailableError
from contracts.settings import Settings


def needs(package: str) -> None:
    if package in missing_servers():
        pytest.skip(f"{package} not installed: {INSTALL}")


def test_two_servers_of_redis_keep_apart_and_end_with_their_blocks() -> None:
    needs("redis-server")
    with redis_server() as (one, pid), redis_server() as (other, _):
        clients = [Redis(*address.split(":")) for address in (one, other)]  # type: ignore[arg-type] # redis takes a port as text
        clients[0].set("key", "value")
        assert clients[1].get("key") is None
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_postgresql_answers_on_a_socket_of_its_own_and_ends_while_in_use() -> None:
    needs("postgresql")
    with postgres_server() as url:
        connection = create_engine(url).connect()
        assert connection.execute(text("SELECT 1")).scalar() == 1
        folder = Path(url.partition("host=")[2])
        assert folder.exists()
    assert not folder.exists()


def test_a_missing_server_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(store_servers, "DEBIAN", tmp_path)
    assert missing_servers() == ["redis-server", "postgresql"]
    with pytest.raises(UnavailableError, match=r"apt-get install .*redis-server"), redis_server():
        pass
    with pytest.raises(UnavailableError, match=r"apt-get install .*postgresql"), postgres_server():
        pass
    checks = [check for check in examine(Settings(state_dir=tmp_path)) if "tests" in check.name]
    shown = doctor_text(checks)
    assert "no redis-server, no postgresql" in shown
    assert INSTALL in shown
    assert not checks[0].needed


def test_set_up_asks_for_servers_with_the_standard_library_alone() -> None:
    code = "import console.environments, console.store_servers"
    command = [sys.executable, "-S", "-c", code]
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run(command, check=False, cwd=root).returncode == 0
