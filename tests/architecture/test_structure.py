"""The tree, the table of topics and the documents say the same thing."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from contracts.topics import TOPICS

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "contracts",
    "feature_store",
    "guard",
    "streams",
    "learner",
    "serving",
    "simulator",
    "console",
]
CODE = [*PACKAGES, "examples", "tests"]
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}

# name: (key, cleanup policy, partitions where they are fixed)
TABLE = {
    "decisions": ("session id", "delete", None),
    "feedback": ("session id", "delete", None),
    "rewards": ("session id", "delete", None),
    "samples": ("session id", "delete", 1),
    "releases": ("policy", "compact", 1),
    "rollouts": ("policy", "compact", 1),
    "rollout-commands": ("policy", "delete", 1),
    "dead-letters": ("origin", "delete", None),
    "audit": ("producer", "delete", None),
}


def sources() -> list[Path]:
    return sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.splitlines())


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_inside_the_checkout(package: str) -> None:
    """The names are common ones: an installed distribution of the same name must not win."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


def test_table_of_topics_is_the_designs() -> None:
    assert {t.name: (t.key_name, t.cleanup, t.partitions) for t in TOPICS} == TABLE


def test_overview_shows_every_topic_with_its_writers_and_readers() -> None:
    overview = (ROOT / "docs" / "overview.md").read_text()
    for topic in TOPICS:
        (row,) = re.findall(rf"(?m)^\| `{topic.name}` \|.*$", overview)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:] == [topic.key_name, topic.writers, topic.readers, topic.cleanup]


def test_no_file_is_longer_than_500_lines() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


def test_no_module_has_a_vague_name() -> None:
    vague = [path for path in sources() if path.stem in VAGUE or path.parent.name in VAGUE]
    assert vague == []


def test_every_module_says_what_it_does() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if "tests" not in path.relative_to(ROOT).parts
        and len((ast.get_docstring(ast.parse(path.read_text())) or "").split()) < 4
    ]
    assert silent == []


def test_every_exempted_rule_carries_its_reason() -> None:
    exempted = re.compile(r"#\s*(?:noqa|type:\s*ignore)\b(?P<rest>.*)$")
    bare = [
        f"{path.relative_to(ROOT).as_posix()}:{number}"
        for path in sources()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := exempted.search(line))
        and not re.match(r"(?::\s?\w+(?:,\s?\w+)*|\[[\w,\s-]+\]) +(?:-|#) *\w+", match["rest"])
    ]
    assert bare == []


def test_names_in_the_readmes_tree_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"(?s)<!-- tree -->\n```\n(.*?)```", readme)
    folder = ROOT
    missing = []
    for line in tree.splitlines():
        match = re.match(r"(?P<indent> *)(?P<name>[\w.*-]+/?) ", f"{line} ")
        if match is None:
            continue
        if not match["indent"]:
            folder = ROOT / match["name"] if match["name"].endswith("/") else ROOT
            path = ROOT / match["name"]
        else:
            path = folder / match["name"]
        if not list(path.parent.glob(path.name)):
            missing.append(path.relative_to(ROOT).as_posix())
    assert missing == []


def test_readmes_tree_shows_every_folder_at_the_top() -> None:
    readme = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"(?s)<!-- tree -->\n```\n(.*?)```", readme)
    shown = set(re.findall(r"(?m)^([\w-]+)/", tree))
    folders = {name.split("/")[0] for name in tracked() if "/" in name}
    assert shown == {name for name in folders if not name.startswith(".")}


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{document.relative_to(ROOT).as_posix()}: {target}"
        for document in documents
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert broken == []


def test_decision_records_have_a_number_of_their_own_and_say_what_was_decided() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [path.name[:4] for path in records]
    assert len(set(numbers)) == len(numbers)
    for path in records:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}"), path.name
        assert re.search(r"(?mi)^(#+ |\*\*)decision", text), path.name


def test_general_decisions_are_all_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert {path.name for path in folder.glob("00*.md")} <= listed
