"""The broker keeps the contract, and the document says what the contract is."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import msgspec
import pytest

from console.local_broker import LocalBroker
from contracts.settings import Kafka
from tests.broker_contract.case import Case
from tests.broker_contract.conftest import OUTSIDE
from tests.broker_contract.contract import CONTRACT
from tests.broker_contract.document import CURE, DOCUMENT, fresh, main

ROOT = Path(__file__).parents[2]
LASTING = [case for case in CONTRACT if not case.restarts]
RESTARTING = [case for case in CONTRACT if case.restarts]


def parameter(case: Case) -> object:
    """Only what somebody relies on fails the suite; a claim that fails is reported as such.

    Of the development broker it is known what fails, and that it fails by an assertion.
    """
    marks = []
    if OUTSIDE and case.note:
        marks = [pytest.mark.xfail(reason=f"claimed only: {case.note}", strict=False)]
    elif not OUTSIDE and case.local:
        marks = [pytest.mark.xfail(reason=case.local, raises=AssertionError, strict=False)]
    return pytest.param(case, marks=marks, id=f"{case.noun}-{case.name}")


@pytest.mark.parametrize("case", [parameter(case) for case in LASTING])
def test_broker_keeps_the_contract(case: Case, kafka: Kafka) -> None:
    case.run(kafka)


@pytest.mark.skipif(bool(OUTSIDE), reason="the suite does not restart a broker that others started")
@pytest.mark.parametrize("case", [parameter(case) for case in RESTARTING])
def test_broker_keeps_the_contract_across_a_restart(case: Case, tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:

        def restart() -> None:
            broker.stop()
            broker.start()

        case.run(msgspec.structs.replace(broker.kafka, prefix="contract-"), restart)


def test_every_check_is_a_row_of_the_table() -> None:
    """A function that no row names would never run."""
    nouns = {case.check.__module__ for case in CONTRACT}
    written = {
        (noun, name)
        for noun in nouns
        for name, value in vars(importlib.import_module(noun)).items()
        if inspect.isfunction(value) and value.__module__ == noun and not name.startswith("_")
    }
    assert written == {(case.check.__module__, case.name) for case in CONTRACT}


@pytest.mark.parametrize("case", CONTRACT, ids=lambda case: case.name)
def test_a_row_names_those_who_rely_on_it_or_says_why_nobody_does(case: Case) -> None:
    assert [file for file in case.by if not (ROOT / file).is_file()] == []
    if case.status == "claimed only":
        assert not case.by
        assert case.note
    else:
        assert case.by
        assert not case.note
    assert bool(case.local) == (case.status == "relied on in production") or not case.by


def test_document_is_fresh() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == fresh(text), CURE


def test_check_of_the_document_says_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "broker-contract.md"
    stale.write_text(DOCUMENT.read_text(encoding="utf-8").replace("| the broker must", "| it must"))
    monkeypatch.setattr("tests.broker_contract.document.DOCUMENT", stale)
    assert main(["--check"]) == 1
    assert "is stale" in capsys.readouterr().out
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert main(["--chek"]) == 2


def test_a_document_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="put them back"):
        fresh("no marks")
