"""Redis and PostgreSQL servers of one's own, for tests and benchmarks, and where to get them.

Each runs from a folder of its own until its block ends, keeps nothing, and listens where no one
else does. PostgreSQL refuses to run as root, so root starts it as the user nobody. Set-up asks
what is missing before anything is installed: importing this takes the standard library only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from contracts.errors import DeadlineError, UnavailableError

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02
INSTALL = "apt-get install --no-install-recommends redis-server postgresql"
DATABASES = 1000
DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian puts PostgreSQL, one folder per version, off the PATH."""


def missing_servers() -> list[str]:
    """Return the Debian packages of the servers that are not installed."""
    found = {"redis-server": redis_program(), "postgresql": postgres_programs()}
    return [package for package, program in found.items() if program is None]


def redis_program() -> str | None:
    """Return the path of redis-server, None when it is not installed."""
    return shutil.which("redis-server")


def postgres_programs() -> Path | None:
    """Return the folder with PostgreSQL's programs, None when not installed."""
    on_path = shutil.which("initdb")
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda path: path.parts[-2].zfill(3), reverse=True)
    folders = [Path(on_path).resolve().parent, *debian] if on_path else debian
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready")):
            return folder
    return None


@contextmanager
def redis_server(port: int = 0) -> Iterator[tuple[str, int]]:
    """Run an empty Redis without persistence, by default on a free port; give HOST:PORT and pid.

    Raises UnavailableError when it is not installed or does not start.
    """
    from console.local_broker import free_port

    program = redis_program()
    if program is None:
        raise UnavailableError(f"redis-server is not installed: {INSTALL}")
    with TemporaryDirectory(prefix="redis-") as folder:
        port = port or free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", folder, "--databases", str(DATABASES)]
        log = Path(folder) / "log"
        asked = [str(Path(program).with_name("redis-cli")), "-p", str(port), "ping"]

        def answers() -> bool:
            if Path(asked[0]).exists():
                return subprocess.run(asked, capture_output=True, check=False).returncode == 0
            return "Ready to accept connections" in log.read_text()

        with _running(command, log, answers) as pid:
            yield f"127.0.0.1:{port}", pid


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run an empty PostgreSQL on a Unix socket; give the URL of its database, for Feast's registry.

    Raises UnavailableError when it is not installed or does not start.
    """
    programs = postgres_programs()
    if programs is None:
        raise UnavailableError(f"PostgreSQL is not installed: {INSTALL}")
    with TemporaryDirectory(prefix="postgres-") as folder:
        data = Path(folder) / "data"
        if as_nobody := _as_nobody():
            shutil.chown(folder, "nobody")
        made = subprocess.run(
            [*as_nobody, str(programs / "initdb"), "-D", str(data), "-U", "headrace", "-N"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        if made.returncode != 0:
            raise UnavailableError(f"initdb failed: {made.stderr.strip()}")
        command = [*as_nobody, str(programs / "postgres"), "-D", str(data), "-k", folder, "-F"]
        command += ["-c", "listen_addresses="]
        asked = [str(programs / "pg_isready"), "-h", folder, "-U", "headrace", "-d", "postgres"]

        def answers() -> bool:
            return subprocess.run(asked, capture_output=True, check=False).returncode == 0

        with _running(command, Path(folder) / "log", answers):
            yield f"postgresql+psycopg://headrace@/postgres?host={folder}"


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@contextmanager
def _running(command: Sequence[str], log: Path, answers: Callable[[], bool]) -> Iterator[int]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None:
                said = log.read_text(errors="replace")[-1000:]
                raise UnavailableError(f"{command[0]} ended at once: {said}")
            if time.monotonic() > deadline:
                raise DeadlineError(f"{command[0]} did not answer within {START_SECONDS} s")
            time.sleep(POLL_SECONDS)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)  # at SIGTERM PostgreSQL waits for its clients to leave
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
