"""The base policy of the demo: made by a short supervised warm start, kept for the next run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from console.child_environment import inherited_environment, public_settings
from console.waiting import Shown
from contracts.errors import UnavailableError
from contracts.settings import Settings

DEMONSTRATION_SECONDS = 120.0
WARM_START_SECONDS = 900.0
RECIPE = ("warm_start.py", "warm_start_tokenizer.py")
"""The learner's files that say how a policy is made: another one is made when they change."""


def base_policy(
    settings: Settings, users: str, seed: int, shown: Shown, steps: int | None = None
) -> Path:
    """Return the directory of the base policy for these users, making it when it is not there.

    ``seed`` draws the demonstrations and the initial weights. The policy is found again by the
    hash of the demonstrations, of the arguments of the warm start and of the files that make it.
    """
    policies = settings.state_dir.absolute() / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    arguments = ["--seed", str(seed), *(("--steps", str(steps)) if steps else ())]
    with tempfile.TemporaryDirectory(dir=policies) as scratch:
        demonstrations = Path(scratch) / "demonstrations.jsonl"
        make_demonstrations(settings, users, seed, demonstrations, shown)
        learner = Path(__file__).parent.parent / "learner"
        recipe = b"".join((learner / name).read_bytes() for name in RECIPE)
        key = sha256(demonstrations.read_bytes() + recipe + " ".join(arguments).encode())
        directory = policies / f"{users}-{key.hexdigest()[:16]}"
        if (directory / "config.json").exists():
            shown.say(f"base policy: {directory} (made before)")
            return directory
        shown.say(f"base policy: warm start into {directory}, at most two minutes on two cores")
        command = ["learner", "warm-start", "--demonstrations", str(demonstrations)]
        run_module(
            [*command, "--out", str(directory), *arguments],
            settings,
            "warm start",
            WARM_START_SECONDS,
        )
    return directory


def make_demonstrations(settings: Settings, users: str, seed: int, out: Path, shown: Shown) -> None:
    """Have the simulator write what the policy that served before answered, one JSON per line."""
    shown.say(f"demonstrations of {users}")
    command = ["simulator", "demonstrations", "--users", users]
    command += ["--seed", str(seed), "--out", str(out)]
    run_module(command, settings, "demonstrations", DEMONSTRATION_SECONDS)


def run_module(command: list[str], settings: Settings, name: str, seconds: float) -> None:
    """Run one of our modules to its end with its output shown; it ends with us on Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=inherited_environment() | public_settings(settings)
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{name} did not end within {seconds:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code != 0:
        raise UnavailableError(f"{name} ended with code {code}; its message is above")
