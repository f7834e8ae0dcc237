"""A version says by which code and libraries it was made."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from contracts.settings import Settings
from learner.adapters import load_policy
from learner.publish import LIBRARIES, OWN_PACKAGES, code_hash, code_version, computed_by

ROOT = Path(__file__).parents[2]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_own_package_that_the_learner_comes_to_import_is_part_of_its_code() -> None:
    own = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    sources = [path for name in OWN_PACKAGES for path in (ROOT / name).rglob("*.py")]
    reached = {name.split(".")[0] for path in sources for name in _imports(path)}
    assert reached & own == set(OWN_PACKAGES)


@pytest.mark.parametrize(
    "changed", ["learner/update.py", "guard/rules.py", "contracts/settings/learner.py"]
)
def test_code_is_another_when_any_file_of_it_is(tmp_path: Path, changed: str) -> None:
    for name in ("learner/update.py", "guard/rules.py", "contracts/settings/learner.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n")
    before = code_hash(tmp_path)
    assert code_hash(tmp_path) == before
    (tmp_path / changed).write_text("x = 2\n")
    assert code_hash(tmp_path) != before


def test_the_code_is_told_by_release_and_hash() -> None:
    assert code_version() == f"headrace {version('headrace')} {code_hash(ROOT)[:16]}"


def test_the_libraries_that_compute_a_version_are_named_with_it(settings: Settings) -> None:
    named = computed_by(load_policy(settings))
    assert named["torch"] == torch.__version__
    assert {name: named[name] for name in LIBRARIES} == {name: version(name) for name in LIBRARIES}
